"""A question with its one right answer, and its form in questions.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SKILLS = ("existence", "colour", "count", "spatial", "size", "naming", "text", "grounding", "caption")
MODES = ("random", "popular", "adversarial")
LOC_BINS = 64


@dataclass(frozen=True)
class Fact:
    """`count` objects `name`, all of that colour; colour None where the noun has colours of its own."""

    count: int
    colour: str | None
    name: str


@dataclass(frozen=True)
class Question:
    id: str  # "000000-3"
    image: str  # path below the folder, with forward slashes
    skill: str  # one of SKILLS
    question: str
    answer: str
    mode: str | None = None  # existence: one of MODES
    box: tuple[float, float, float, float] | None = None  # grounding: left, top, right, bottom in 0..1
    facts: tuple[Fact, ...] = ()  # caption

    def to_dict(self) -> dict[str, Any]:
        """The line of questions.jsonl."""
        row: dict[str, Any] = {key: getattr(self, key) for key in ("id", "image", "skill", "question", "answer")}
        if self.mode is not None:
            row["mode"] = self.mode
        if self.box is not None:
            row["box"] = [round(value, 5) for value in self.box]
        if self.facts:
            row["facts"] = [{"count": f.count, "colour": f.colour, "name": f.name} for f in self.facts]
        return row


def parse_question(row: Any) -> Question:
    """A line of questions.jsonl, parsed and checked. Raises ValueError that names the fault.

    Columns other than the format's are allowed, so that a folder can carry more.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {_kind(row)}")
    texts: dict[str, Any] = {key: _text(row, key) for key in ("id", "image", "skill", "question", "answer")}
    if texts["skill"] not in SKILLS:
        raise ValueError(f"skill '{texts['skill']:.60}' is none of {', '.join(SKILLS)}")
    extra = _EXTRAS.get(texts["skill"])
    return Question(**texts, **(extra(row, texts["answer"]) if extra else {}))


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise ValueError(f"the column '{key}' is missing")
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be text, not {_kind(value)}")
    if not value.strip():
        raise ValueError(f"'{key}' is empty")
    return value


def _existence(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    if answer not in ("yes", "no"):
        raise ValueError(f"the answer of an existence question is yes or no, not '{answer}'")
    if row.get("mode") not in MODES:
        raise ValueError(f"'mode' must be one of {', '.join(MODES)}")
    return {"mode": row["mode"]}


def _count(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    if not (answer.isascii() and answer.isdigit()) or str(int(answer)) != answer or int(answer) > 10:
        raise ValueError(f"the answer of a count question is 0 to 10 in digits, not '{answer}'")
    return {}


def _grounding(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    box = row.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise ValueError("'box' must be a list of four numbers")
    left, top, right, bottom = map(float, box)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError("'box' must be left < right and top < bottom, within 0 and 1")
    return {"box": (left, top, right, bottom)}


def _caption(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    facts = row.get("facts")
    if not isinstance(facts, list) or not facts:
        raise ValueError("'facts' must be a list of facts")
    parsed = []
    for fact in facts:
        if not isinstance(fact, dict) or not {"count", "colour", "name"} <= fact.keys():
            raise ValueError("each fact has 'count', 'colour' and 'name'")
        count, colour, name = fact["count"], fact["colour"], fact["name"]
        if type(count) is not int or count < 1 or not isinstance(name, str) or not isinstance(colour, str | None):
            raise ValueError("a fact's count is a whole number above 0, its name a text, its colour a text or null")
        parsed.append(Fact(count, colour, name))
    return {"facts": tuple(parsed)}


_EXTRAS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "existence": _existence,
    "count": _count,
    "grounding": _grounding,
    "caption": _caption,
}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 2


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def loc_answer(box: tuple[float, float, float, float], bins: int = LOC_BINS) -> str:
    """`<loc_a><loc_b><loc_c><loc_d>`: Florence-2's order x1 y1 x2 y2 (arXiv 2311.06242), bin = floor(v * bins)."""
    return "".join(f"<loc_{min(bins - 1, max(0, int(value * bins)))}>" for value in box)
