"""The regular expressions of an adapter's rank_pattern and alpha_pattern, matched in bounded time.

peft's rule (peft.utils.other.get_pattern_key): a pattern fits a module if it matches its path whole, or what follows
one of its dots. An expression comes from a stranger's file, and Python's own matcher backtracks: `([a-z]+)+$x` would
run for years. Here every part of an expression maps the set of places where it may start to the set where it may end,
so the time is bounded by the lengths of pattern and path.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from edgevlm.io import limits

_NAME = re.compile(r"[\w.\-]+")
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d", op.CATEGORY_NOT_DIGIT: r"\D", op.CATEGORY_SPACE: r"\s", op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip
_MANY = (op.MAX_REPEAT, op.MIN_REPEAT)  # greedy or not makes no difference to whether there is a match
_Part = tuple[Any, Any]


class BadPattern(ValueError):
    """A pattern that is no regular expression, or has parts that no name of a module needs; the text says which."""


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether peft finds that `pattern` fits a module's path. Raises BadPattern."""
    rule = rf"(.*\.)?({pattern})$"
    if is_plain(pattern):
        matcher = re.compile(rule)
        return lambda path: matcher.match(path) is not None
    if len(pattern) > limits.PATTERN:
        raise BadPattern(f"has {len(pattern)} characters, more than {limits.PATTERN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of brackets that Python may read in another way one day
            parts = list(_parser.parse(rule))
    except (re.error, OverflowError, RecursionError):
        raise BadPattern("is no regular expression") from None
    _check(parts)

    def fits(path: str) -> bool:
        return len(path) <= limits.PATTERN and bool(_ends(parts, path, {0}))

    return fits


def is_plain(pattern: str) -> bool:
    """Whether it is a name: nothing in it repeats, so that Python's own matcher takes next to no time."""
    return bool(_NAME.fullmatch(pattern))


def _check(parts: Sequence[_Part]) -> None:
    for kind, value in parts:
        if kind is op.BRANCH:
            for branch in value[1]:
                _check(list(branch))
        elif kind is op.SUBPATTERN:
            _, add, remove, inner = value
            if add or remove:
                raise BadPattern("sets flags")
            _check(list(inner))
        elif kind in _MANY:
            _check(list(value[2]))
        elif kind is op.AT and value not in (op.AT_BEGINNING, op.AT_END):
            raise BadPattern("looks at the borders of words")
        elif kind not in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN, op.AT):
            raise BadPattern("refers back, looks around or forbids steps back")


def _ends(parts: Sequence[_Part], text: str, starts: set[int]) -> set[int]:
    """Where `parts`, one after another, may end if they start at one of `starts`."""
    for kind, value in parts:
        if not starts:
            break
        starts = _after(kind, value, text, starts)
    return starts


def _after(kind: Any, value: Any, text: str, starts: set[int]) -> set[int]:
    if kind is op.BRANCH:
        return set().union(*(_ends(list(branch), text, starts) for branch in value[1]))
    if kind is op.SUBPATTERN:
        return _ends(list(value[3]), text, starts)
    if kind in _MANY:
        return _repeated(value[0], value[1], list(value[2]), text, starts)
    if kind is op.AT:
        last = {len(text), len(text) - 1} if text.endswith("\n") else {len(text)}
        return starts & ({0} if value is op.AT_BEGINNING else last)
    return {at + 1 for at in starts if at < len(text) and _takes(kind, value, text[at])}


def _repeated(least: int, most: Any, parts: list[_Part], text: str, starts: set[int]) -> set[int]:
    """More rounds than the text has characters stay in place at least once, and change nothing."""
    for _ in range(min(least, len(text) + 1)):
        starts = _ends(parts, text, starts)
    found, new = set(starts), starts
    rounds = len(text) + 1 if most is op.MAXREPEAT else min(most - least, len(text) + 1)
    for _ in range(rounds):
        new = _ends(parts, text, new) - found
        if not new:
            break
        found |= new
    return found


def _takes(kind: Any, value: Any, character: str) -> bool:
    code = ord(character)
    if kind is op.ANY:
        return character != "\n"
    if kind is op.IN:
        inside = any(_in_class(what, which, code) for what, which in value if what is not op.NEGATE)
        return inside is not (value[0][0] is op.NEGATE)
    return bool(code == value) is (kind is op.LITERAL)


def _in_class(kind: Any, value: Any, code: int) -> bool:
    if kind is op.LITERAL:
        return bool(code == value)
    if kind is op.RANGE:
        return bool(value[0] <= code <= value[1])
    return re.fullmatch(_CATEGORIES[value], chr(code)) is not None
