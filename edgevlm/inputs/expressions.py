"""Whether a regular expression of a tokenizer.json takes time in proportion to the text, whatever the text.

tokenizers runs them in Oniguruma, which backtracks: some expressions take years on forty letters. What is accepted is
a form in which that cannot happen, and a few expressions of known models that are not of that form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Quadratic in a run of spaces at worst.
KNOWN = frozenset((r"\s+$", r" +▁", r"^▁+$", r"\A +| +\z", r"\A▁+| +\z"))

MOST_LENGTH = 4096
MOST_WAYS = 256  # of one alternative to match without its unbounded repeats
MOST_TIMES = 256  # of a bounded repeat

_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w ]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|x\{[0-9a-fA-F]+\}|[sSdDwWhHrntfvae]|[^\w\s])"
)
_PLACE = re.compile(r"\^|\$|\\[bBAzZ]")
_REPEAT = re.compile(r"[*+?][+?]?|\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\((\?:|\?i:|\?[=!]|\?<[=!]|(?!\?))")


class _Refused(Exception):
    """The expression has a form that is not known to be fast."""


@dataclass
class _Cost:
    """What a part of an expression may cost.

    risky: what is repeated without bound before something that may fail, so that all of it is read in vain.
    trailing: what is repeated without bound at the end. ways: the choices that backtracking may go through.
    whole: what is repeated without bound and surely taken, where it is the only thing that must be there.
    """

    risky: list[str] = field(default_factory=list)
    trailing: list[str] = field(default_factory=list)
    ways: int = 1
    whole: str = ""


def is_fast(expression: str) -> bool:
    """True for expressions whose time grows with the text's length and no faster."""
    if expression in KNOWN:
        return True
    if len(expression) > MOST_LENGTH:
        return False
    try:
        alternatives, end = _alternatives(expression, 0)
    except _Refused:
        return False
    if end != len(expression):
        return False
    # A run that one alternative reads in vain is passed over at once where the next one takes it.
    taken = ""
    for cost in reversed(alternatives):
        if not cost.risky:
            taken = cost.whole
        elif cost.risky != [taken]:
            return False
    return True


def _alternatives(text: str, at: int) -> tuple[list[_Cost], int]:
    """The costs of alternatives up to the end or an unpaired ")", and where that is."""
    found = []
    while True:
        cost, at = _sequence(text, at)
        found.append(cost)
        if at == len(text) or text[at] == ")":
            return found, at
        at += 1  # "|"


def _sequence(text: str, at: int) -> tuple[_Cost, int]:
    cost, needed = _Cost(), list[str]()
    while at < len(text) and text[at] not in "|)":
        if place := _PLACE.match(text, at):
            at = place.end()
            _must(cost, needed, "")
            continue
        if group := _GROUP.match(text, at):
            at = _take_group(text, group, cost, needed)
            continue
        end = _atom(text, at)
        atom, (least, most, at) = text[at:end], _repeat(text, end)
        if least:
            _must(cost, needed, atom if most is None else "")
        if most is None:
            cost.trailing.append(atom)
        else:
            cost.ways *= most - least + 1
        if cost.ways > MOST_WAYS:
            raise _Refused
    cost.whole = needed[0] if len(needed) == 1 and not cost.risky else ""
    return cost, at


def _must(cost: _Cost, needed: list[str], what: str) -> None:
    """Something that may fail follows."""
    cost.risky += cost.trailing
    cost.trailing = []
    needed.append(what)


def _take_group(text: str, group: re.Match[str], cost: _Cost, needed: list[str]) -> int:
    inner, end = _alternatives(text, group.end())
    if end == len(text):
        raise _Refused
    least, most, at = _repeat(text, end + 1)
    look = group[1] not in ("", "?:", "?i:")
    if most != 1 or (look and (least != 1 or any(part.risky or part.trailing for part in inner))):
        raise _Refused  # repeated groups may be ambiguous
    if least:
        _must(cost, needed, "")
    for part in inner:
        cost.risky += part.risky
        cost.trailing += part.trailing
    cost.ways *= sum(part.ways for part in inner) + 1 - least
    if cost.ways > MOST_WAYS:
        raise _Refused
    return at


def _atom(text: str, at: int) -> int:
    """Where one character's pattern ends."""
    if text[at] == "\\":
        if not (escape := _ESCAPE.match(text, at)):
            raise _Refused  # back references, calls, and what else is not known
        return escape.end()
    if text[at] == "[":
        return _class(text, at)
    if text[at] in "*+?(":
        raise _Refused
    return at + 1


def _class(text: str, at: int) -> int:
    depth, start = 0, at
    while at < len(text):
        if text[at] == "\\":
            if not (escape := _ESCAPE.match(text, at)) and text[at : at + 2] != "\\b":
                raise _Refused
            at = escape.end() if escape else at + 2
            continue
        if text[at] == "[":
            depth += 1
            start = at
        elif text[at] == "]":
            if text[start:at] in ("[", "[^"):
                raise _Refused  # here, it would be a letter
            depth -= 1
        at += 1
        if depth == 0:
            return at
    raise _Refused


def _repeat(text: str, at: int) -> tuple[int, int | None, int]:
    """How often, at least and at most (None: without bound), and where the quantifier ends."""
    found = _REPEAT.match(text, at)
    if not found or found[0] in ("{}", "{,}"):
        return 1, 1, at
    mark, end = found[0], found.end()
    if _REPEAT.match(text, end):
        raise _Refused  # a repeat of a repeat
    if mark[0] in "*+?":
        return int(mark[0] == "+"), 1 if mark[0] == "?" else None, end
    low = int(found[1] or 0)
    high = (int(found[3]) if found[3] else None) if found[2] else low
    if low > MOST_TIMES or (high is not None and not low <= high <= MOST_TIMES):
        raise _Refused
    return low, high, end
