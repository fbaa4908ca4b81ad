"""HTML and SVG from Python calls; every value that is not markup already is escaped as text."""

from __future__ import annotations

import html
import re

# What no text node may hold, and lone halves of surrogate pairs, which undecodable file names turn into.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = ("meta", "img", "br", "line", "rect", "circle", "path")


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as it is to be read, never as markup."""
    return Html(html.escape(_CONTROLS.sub("\ufffd", str(value)), quote=True))


def h(tag: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped; None is left out.

    Attribute names lose a trailing underscore, and underscores become dashes: class_, stroke_width. None and False
    leave an attribute out, True writes it bare.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        words.append(name if value is True else f'{name}="{text(_number(value))}"')
    opening = f"<{' '.join(words)}>"
    if tag in _VOID and not children:
        return Html(opening[:-1] + "/>")
    return Html(f"{opening}{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Children side by side."""
    return Html("".join(c if isinstance(c, Html) else text(c) for c in children if c is not None))


def _number(value: object) -> object:
    """Coordinates with two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
