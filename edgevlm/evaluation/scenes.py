"""Scenes: questions with one right answer each, scored by skill.

Answers are compared as text, except for two skills. Grounding: a box is right from an intersection over union of one
half (PASCAL VOC, Everingham et al. 2010, section 4.2). Captions: F1 of stated against true facts, and CHAIR (Rohrbach
et al. 2018, arXiv 1809.02156): the share of named things that the picture lacks, and of captions that name any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgevlm.evaluation.item import Item, Picture, Result, Scored
from edgevlm.evaluation.pope import MODES, pope_metrics
from edgevlm.evaluation.text import exact, plain
from edgevlm.inputs.grounding import Frame, Grounding, find
from edgevlm.scenes.catalogue import COLOUR_NAMES, NOUNS, SIGN
from edgevlm.scenes.folder import read_questions
from edgevlm.scenes.question import Fact, Question

SKILLS = ("existence", "colour", "count_to_5", "count_to_10", "spatial", "size", "naming", "text", "grounding",
          "caption")  # fmt: skip
IOU = 0.5
_LOC = re.compile(r"<loc_(\d{1,6})>")
_FLOAT = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
_WORDS = "one two three four five six seven eight nine ten"
_COUNTS = {"a": 1, "an": 1, "single": 1} | {word: value for value, word in enumerate(_WORDS.split(), 1)}
_BREAKS = frozenset((",", ".", ";", "and", "with", "on", "in"))
_SAYS = re.compile(r"\b(?:says|saying|reads|reading)\s+\S+")
_PLURALS = frozenset(noun.plural for noun in (*NOUNS, SIGN) if noun.plural != noun.name)
_NAMES = {word: noun.name for noun in (*NOUNS, SIGN) for word in (noun.name, noun.plural)}

Box = tuple[float, float, float, float]


def read_scenes(folder: Path, *, skip_bad: bool = False) -> tuple[list[Item], tuple[str, ...]]:
    """The questions of a Scenes folder, and the lines that were left out."""
    found = read_questions(folder, skip_bad=skip_bad)
    return [_item(question, found.picture(question), found.loc_bins) for question in found.questions], found.problems


def _item(question: Question, path: Path, bins: int) -> Item:
    skill = question.skill
    if skill == "count":
        skill = "count_to_5" if int(question.answer) <= 5 else "count_to_10"
    data = {"mode": question.mode, "box": question.box, "facts": question.facts, "bins": bins}
    picture = Picture(question.image, lambda: path)
    return Item(question.id, (picture,), question.question, (question.answer,), skill, data)


def score_scenes(item: Item, answer: str) -> Scored:
    if item.skill == "grounding":
        box = parse_box(answer, item.data["bins"], item.data.get("size"))
        overlap = intersection_over_union(box, item.data["box"]) if box else 0.0
        return Scored(float(overlap >= IOU), {"iou": overlap})
    if item.skill == "caption":
        return _score_caption(answer, item.data["facts"])
    right = exact(answer, item.answers)
    if item.skill == "existence":
        return Scored(right, {"said_yes": float(plain(answer).startswith("yes"))})
    return Scored(right)


def parse_box(answer: str, bins: int, size: tuple[int, int] | None = None) -> Box | None:
    """(left, top, right, bottom) in 0..1 from four <loc_N> tokens, else from the first four numbers.

    A token means the middle of its bin (Florence-2, arXiv 2311.06242). Numbers are fractions where none is above 1,
    else pixels of a picture of `size` (width, height). None where there are no four, or no area.
    """
    if len(_LOC.findall(answer)) >= 4:
        convention = Grounding("tokens", bins, middle=True, open="<loc_", close=">")
        boxes, _ = find(answer, convention, Frame(1, 1, 1.0, 1.0, 0.0, 0.0, (1, 1)))
        return (boxes[0].x0, boxes[0].y0, boxes[0].x1, boxes[0].y1) if boxes else None
    numbers = [float(number) for number in _FLOAT.findall(_LOC.sub(" ", answer))][:4]
    if len(numbers) < 4:
        return None
    if max(numbers) > 1:
        if size is None:
            return None
        numbers = [value / side for value, side in zip(numbers, size * 2, strict=True)]
    left, top, right, bottom = numbers
    return (left, top, right, bottom) if left < right and top < bottom else None


def intersection_over_union(one: Box, two: Box) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1]) - both)


def stated_facts(caption: str) -> list[Fact]:
    """The (count, colour, noun) phrases of a caption: "three red cars" or "a dog". A plural without a count is 2.

    Only the nouns of Scenes are looked for. What a sign says is no statement about things.
    """
    caption = _SAYS.sub(" ", caption.lower())
    found: list[Fact] = []
    count, colour = None, None
    for word in re.findall(r"[a-z]+|[0-9]{1,6}|[,.;]", caption):
        if word in _NAMES:
            found.append(Fact(count or (2 if word in _PLURALS else 1), colour, _NAMES[word]))
        if word in _NAMES or word in _BREAKS:
            count, colour = None, None
        elif word in _COUNTS or word.isdigit():
            count, colour = _COUNTS.get(word) or int(word), None
        elif word in COLOUR_NAMES:
            colour = word
    return found


def _score_caption(caption: str, facts: Sequence[Fact]) -> Scored:
    """F1 of stated against true facts; the colour of a thing that has its own colours may be stated or not."""
    stated = stated_facts(caption)
    open_facts = list(facts)
    right = 0
    for fact in stated:
        match = next((f for f in open_facts if _agree(fact, f)), None)
        if match is not None:
            open_facts.remove(match)
            right += 1
    there = {fact.name for fact in facts}
    invented = sum(fact.name not in there for fact in stated)
    score = 2 * right / (len(stated) + len(facts)) if stated or facts else 1.0
    return Scored(score, {"named": len(stated), "invented": invented})


def _agree(stated: Fact, fact: Fact) -> bool:
    return (stated.name, stated.count) == (fact.name, fact.count) and fact.colour in (None, stated.colour)


def scenes_metrics(results: list[Result]) -> dict[str, float]:
    """POPE's metrics of existence questions by mode, the mean overlap of boxes, and CHAIR of captions."""
    metrics: dict[str, float] = {}
    for mode in MODES:
        of_mode = [r for r in results if r.item.skill == "existence" and r.item.data["mode"] == mode]
        if of_mode:
            pairs = [(r.scored.figures["said_yes"] > 0, r.item.answers[0] == "yes") for r in of_mode]
            metrics |= {f"existence_{mode}_{name}": value for name, value in pope_metrics(pairs).items()}
    boxes = [r.scored.figures["iou"] for r in results if r.item.skill == "grounding"]
    if boxes:
        metrics["grounding_mean_iou"] = sum(boxes) / len(boxes)
    captions: list[Mapping[str, float]] = [r.scored.figures for r in results if r.item.skill == "caption"]
    if captions:
        named = sum(caption["named"] for caption in captions)
        metrics["caption_chair_i"] = sum(caption["invented"] for caption in captions) / named if named else 0.0
        metrics["caption_chair_s"] = sum(caption["invented"] > 0 for caption in captions) / len(captions)
    return metrics
