"""Questions about scenes, answered again by another route: their words, and the objects' boxes."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.scenes import SPLITS, Question, Scene, SceneObject, ask, make_scene, scenes
from edgevlm.scenes.ask import absent_nouns
from edgevlm.scenes.catalogue import COLOURS, NOUNS, SIGN
from edgevlm.scenes.question import MODES, SKILLS

NAMES = {n.name: n for n in (*NOUNS, SIGN)} | {n.plural: n for n in (*NOUNS, SIGN)}
COLOUR_WORDS = "|".join(COLOURS)
THING = rf"(?:(?P<c>{COLOUR_WORDS}) )?(?P<n>{'|'.join(sorted(NAMES, key=len, reverse=True))})"


def find(scene: Scene, text: str) -> list[SceneObject]:
    """The objects that a noun phrase means."""
    if text == "objects":
        return list(scene.objects)
    match = re.fullmatch(THING, text)
    assert match, text
    name = NAMES[match["n"]].name
    return [i for i in scene.objects if i.name == name and match["c"] in (None, i.colour)]


def things(question: str) -> list[str]:
    """The noun phrases of a question, in order. 'object(s)', 'picture' and 'image' are none."""
    return [match[0] for match in re.finditer(rf"\b{THING}\b", question)]


def only(scene: Scene, text: str) -> SceneObject:
    found = find(scene, text)
    assert len(found) == 1, text
    return found[0]


def check_existence(scene: Scene, q: Question) -> None:
    (what,) = things(q.question)
    assert q.answer == ("yes" if find(scene, what) else "no") and q.mode in MODES
    assert f" {'an' if what[0] in 'aeiou' else 'a'} {what}" in q.question


def check_colour(scene: Scene, q: Question) -> None:
    (what,) = things(q.question)
    found = find(scene, what)
    for words, axis, largest in (
        ("on the left", 0, False),
        ("on the right", 0, True),
        ("at the top", 1, False),
        ("at the bottom", 1, True),
    ):
        if words in q.question:
            found = sorted(found, key=lambda i: i.centre[axis], reverse=largest)[:1]
    assert {item.colour for item in found} == {q.answer}


def check_count(scene: Scene, q: Question) -> None:
    (what,) = things(q.question) or ["objects"]
    assert q.answer == str(len(find(scene, what))) and int(q.answer) <= 10


SIDES = {
    "left": lambda a, b: a.box[2] <= b.box[0],
    "right": lambda a, b: a.box[0] >= b.box[2],
    "above": lambda a, b: a.box[3] <= b.box[1],
    "below": lambda a, b: a.box[1] >= b.box[3],
}
WORDS = {"left": "left", "right": "right", "above": "above", "higher": "above", "below": "below", "lower": "below"}


def check_spatial(scene: Scene, q: Question) -> None:
    named = things(q.question)
    if q.answer in ("top", "bottom") or (q.answer in ("left", "right") and len(named) == 1):
        left, top, right, bottom = scene.fraction(only(scene, named[0]).box)
        halves = {"left": right <= 0.5, "right": left >= 0.5, "top": bottom <= 0.5, "bottom": top >= 0.5}
        assert halves[q.answer] and ("left or" in q.question.lower() or " or " in q.question)
        return
    if len(named) == 2:
        first, second = (only(scene, name) for name in named)
        true = {side for side, holds in SIDES.items() if holds(first, second)}
        if q.answer in ("yes", "no"):
            (asked,) = {WORDS[w] for w in re.findall(r"\w+", q.question) if w in WORDS}
            assert (q.answer == "yes") == (asked in true)
        else:
            assert q.answer in true
            across, down = (abs(a - b) for a, b in zip(first.centre, second.centre, strict=True))
            assert (across > down) == (q.answer in ("left", "right"))
        return
    item = only(scene, named[0])
    (asked,) = {WORDS[w] for w in re.findall(r"\w+", q.question) if w in WORDS}
    beyond = [i for i in scene.objects if SIDES[asked](i, item)]
    assert [i.name for i in beyond] == [q.answer]
    edge, sign = {"left": (0, 1), "above": (1, 1), "right": (2, -1), "below": (3, -1)}[asked]
    assert all(sign * (i.box[edge] - item.box[edge]) > 0 for i in scene.objects if i is not item and i not in beyond)


def area(item: SceneObject) -> int:
    return (item.box[2] - item.box[0]) * (item.box[3] - item.box[1])


def check_size(scene: Scene, q: Question) -> None:
    named = things(q.question)
    large = bool(re.search("bigger|larger|biggest|largest", q.question))
    if not named:
        ordered = sorted(scene.objects, key=area, reverse=large)
        assert ordered[0].name == q.answer and max(map(area, ordered[:2])) >= 1.7 * min(map(area, ordered[:2]))
        return
    first, second = (only(scene, name) for name in named)
    assert max(area(first), area(second)) >= 1.7 * min(area(first), area(second))
    bigger = area(first) > area(second)
    if q.answer in ("yes", "no"):
        assert (q.answer == "yes") == (bigger == large)
    else:
        assert q.answer == (named[0] if bigger == large else named[1])


def check_naming(scene: Scene, q: Question) -> None:
    colour = re.search(COLOUR_WORDS, q.question)
    corner = re.search("(top|bottom) (left|right)", q.question)
    if colour:
        assert [i.name for i in scene.objects if i.colour == colour[0]] == [q.answer]
        assert all(i.colour for i in scene.objects)
    elif corner:
        width, height = scene.picture.size
        there = [
            i.name
            for i in scene.objects
            if (i.centre[1] < height / 2) == (corner[1] == "top") and (i.centre[0] < width / 2) == (corner[2] == "left")
        ]
        assert there == [q.answer]
    elif "middle" in q.question:
        width, height = scene.picture.size
        nearest = min(scene.objects, key=lambda i: abs(i.centre[0] / width - 0.5) + abs(i.centre[1] / height - 0.5))
        assert nearest.name == q.answer
    else:
        rest = [i for i in scene.objects if i.name != "sign"]
        assert {i.name for i in rest} == {NAMES[q.answer].name}
        assert q.answer == (rest[0].name if len(rest) == 1 else rest[0].noun.plural)


def check_text(scene: Scene, q: Question) -> None:
    texts = [i.text for i in scene.objects if i.text]
    if "number" in q.question:
        texts = [text for text in texts if text.isdigit()]
    elif "word" in q.question:
        texts = [text for text in texts if text.isalpha()]
    assert texts == [q.answer]


def check_grounding(scene: Scene, q: Question) -> None:
    (what,) = things(q.question)
    assert q.box == scene.fraction(only(scene, what).box)
    bins = [int(n) for n in re.fullmatch(r"<loc_(\d+)>" * 4, q.answer).groups()]  # type: ignore[union-attr]
    assert all(n / 64 <= value < (n + 1) / 64 or (n == 63 and value == 1) for n, value in zip(bins, q.box, strict=True))


NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def check_caption(scene: Scene, q: Question) -> None:
    tally = Counter((i.name, i.colour) for i in scene.objects)
    assert {(f.name, f.colour): f.count for f in q.facts} == tally
    said = Counter[tuple[str, str | None]]()
    things_said, _, signs = re.sub("(^|, | and )(a sign that says|two signs that say) ", "@", q.answer).partition("@")
    assert signs.split() == " and ".join(i.text for i in scene.objects if i.text).split()
    said["sign", None] += len([i for i in scene.objects if i.text])
    for part in re.split(r", | and ", things_said) if things_said else []:
        number, what = part.split(" ", 1)
        match = re.fullmatch(THING, what)
        assert match, part
        count = 1 if number in ("a", "an") else NUMBER_WORDS.index(number)
        said[NAMES[match["n"]].name, match["c"]] += count
    assert +said == tally


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(0, 2**32), st.integers(0, 10**6))
def test_every_answer_is_found_again_from_the_words_and_the_boxes(split: str, seed: int, index: int) -> None:
    scene = make_scene(split, seed, index)  # type: ignore[arg-type]
    questions = ask(scene, rounds=3)
    assert set(CHECKS) == set(SKILLS)
    assert len({q.question for q in questions}) == len({q.id for q in questions}) == len(questions)
    for question in questions:
        CHECKS[question.skill](scene, question)


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    return [(scene, question) for scene in scenes("train", 21, 250) for question in ask(scene)]


def test_all_skills_are_asked_often_and_in_several_wordings(asked: list[tuple[Scene, Question]]) -> None:
    tally = Counter(question.skill for _, question in asked)
    assert set(tally) == set(SKILLS) and min(tally.values()) > 40
    forms = {(q.skill, re.sub(THING, "X", q.question)) for _, q in asked}
    assert all(sum(skill == s for s, _ in forms) >= 6 for skill in SKILLS)


def test_yes_and_no_are_even_in_each_mode(asked: list[tuple[Scene, Question]]) -> None:
    for mode in MODES:
        answers = Counter(q.answer for _, q in asked if q.mode == mode)
        assert answers["yes"] == answers["no"] > 50
    for skill in ("spatial", "size"):
        answers = Counter(q.answer for _, q in asked if q.skill == skill)
        assert 0.5 < answers["yes"] / answers["no"] < 2


def test_the_modes_ask_for_what_they_say(asked: list[tuple[Scene, Question]]) -> None:
    """popular: frequent nouns; adversarial: none of the absent nouns shares more themes with what is there."""
    popular = {n.name for n in NOUNS if n.popular}
    hits = Counter[str]()
    for scene, q in asked:
        if q.skill != "existence" or q.answer == "yes":
            continue
        match = re.fullmatch(THING, things(q.question)[0])
        assert match
        noun = NAMES[match["n"]]
        present = {i.name for i in scene.objects}
        if q.mode == "popular":
            assert noun.name in popular
        elif q.mode == "adversarial" and noun.name not in present:
            shared = {
                n.name: sum(len(set(n.themes) & set(NAMES[p].themes)) for p in present) for n in absent_nouns(scene)
            }
            assert shared[noun.name] == max(shared.values())
            hits["theme"] += 1
        elif q.mode == "adversarial":
            hits["pair"] += 1
    assert hits["theme"] > 15 and hits["pair"] > 5


def test_more_rounds_keep_the_first_questions() -> None:
    scene = make_scene("train", 0, 3)
    once, thrice = ask(scene), ask(scene, rounds=3)
    assert thrice[: len(once)] == once and len(thrice) > 1.8 * len(once)
