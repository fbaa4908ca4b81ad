"""Charts as inline SVG that fill the width they are given: lengths are per cent of it, text keeps its size.

A bar, a stack and a row of scores stand in a table's cell, whose text has their figures; only the lines by layer stand
alone. Colour is never alone: series have shapes or names too, and every mark has its figures as a title.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.report.markup import Html, h, join

COLOURS = 8  # classes c0 to c7 of the page's style
LINE = 13.0  # pixels from one score to the next
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Series:
    """How one bundle or run looks in every chart."""

    name: str
    colour: int
    shape: int


@dataclass(frozen=True)
class Estimate:
    """A score with its interval, all 0 to 1."""

    value: float
    low: float
    high: float


def shape(kind: int, x: float, y: float, size: float = 4.5, **attributes: object) -> Html:
    """A circle, square, triangle, diamond or turned triangle around a point."""
    s = size
    if kind % 5 == 0:
        return h("circle", cx=x, cy=y, r=s, **attributes)
    outlines = {
        1: ((-s, -s), (s, -s), (s, s), (-s, s)),
        2: ((0, -1.2 * s), (1.15 * s, s), (-1.15 * s, s)),
        3: ((0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)),
        4: ((0, 1.2 * s), (1.15 * s, -s), (-1.15 * s, -s)),
    }
    corners = " L".join(f"{x + dx:.2f} {y + dy:.2f}" for dx, dy in outlines[kind % 5])
    return h("path", d=f"M{corners} Z", **attributes)


def bar(
    value: float,
    longest: float,
    look: Series,
    title: str,
    reference: float | None = None,
    interval: tuple[float, float] | None = None,
) -> Html:
    """A bar of `value` in a track that stands for `longest`; a thin line where `reference` is, `interval` below it."""
    body = [
        h("rect", class_="track", width="100%", height=10, y=3, rx=2),
        titled(h("rect", class_=f"part {_class(look)}", width=_share(value, longest), height=10, y=3, rx=2), title),
    ]
    if reference is not None:
        x = _share(reference, longest)
        body.append(h("line", class_="reference", x1=x, x2=x, y1=0, y2=16))
    if interval is not None:
        low, high = (_share(end, longest) for end in interval)
        body.append(h("line", class_=f"whisker {_class(look)}", x1=low, x2=high, y1=19, y2=19))
    return _cell(22, *body)


def stack(parts: Sequence[float], longest: float, titles: Sequence[str]) -> Html:
    """Parts side by side in a width that stands for `longest`, in the colours of `part_series`."""
    body, start = [], 0.0
    for i, (value, title) in enumerate(zip(parts, titles, strict=True)):
        box = {"x": _share(start, longest), "width": _share(value, longest), "y": 2, "height": 14}
        body.append(titled(h("rect", class_=f"part {_class(part_series(i))}", **box), title))
        start += value
    return _cell(18, *body)


def part_series(i: int, name: str = "") -> Series:
    """Parts have the last colours first, so that they look like bundles only where there are many."""
    return Series(name, COLOURS - 1 - i, 1)


def scores(found: Sequence[tuple[Series, Estimate | None]], what: str) -> Html:
    """A line per series on the scale from 0 to 100 %: a mark with its interval; None leaves its line empty."""
    height = LINE * len(found) + 6
    body = []
    for tick in _QUARTERS:
        x = _share(tick, 1)
        body.append(h("line", class_="grid", x1=x, x2=x, y1=0, y2=height))
    for i, (look, e) in enumerate(found):
        if e is None:
            continue
        y = 3 + LINE * (i + 0.5)
        ends = {"x1": _share(e.low, 1), "x2": _share(e.high, 1), "y1": y, "y2": y}
        title = f"{look.name}, {what}: {e.value:.1%} ({e.low:.1%} to {e.high:.1%})"
        marked = join(h("line", class_=f"whisker {_class(look)}", **ends), _mark(look, _share(e.value, 1), y, 4.0))
        body.append(titled(marked, title))
    return _cell(height, *body)


def score_axis() -> Html:
    """The scale of `scores`, for the head of its column."""
    labels = (
        h("text", f"{tick:.0%}", x=_share(tick, 1), y=11, text_anchor=anchor, class_="tick")
        for tick, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return _cell(14, *labels)


def layer_lines(names: Sequence[str], series: Sequence[tuple[Series, Sequence[float | None]]], label: str) -> Html:
    """A line per series over named places in order, on a logarithmic y axis; parts of a model stand apart.

    A place is named "part.rest": "vision.layers.0.norm1", "decoder.norm". label: what a screen reader says.
    """
    top, bottom, height = 10.0, 250.0, 274.0
    low, high = _log_range([v for _, line in series for v in line if v])

    def across(i: float) -> str:
        return _share(i, len(names))

    def up(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return bottom - min(share, 1.0) * (bottom - top)

    ticks, body = [], []
    for tick in _log_ticks(low, high):
        ticks.append(h("text", f"{tick:g}", x="100%", y=up(tick) + 4, text_anchor="end", class_="tick"))
        body.append(h("line", class_="grid", x1=0, x2="100%", y1=up(tick), y2=up(tick)))
    parts = [name.partition(".")[0] for name in names]
    starts = [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        if start:
            body.append(h("line", class_="border", x1=across(start), x2=across(start), y1=top, y2=bottom))
        if (end - start) / len(names) > 0.025 * len(parts[start]):  # it fits on a phone
            middle = across((start + end) / 2)
            body.append(h("text", parts[start], x=middle, y=bottom + 18, text_anchor="middle", class_="tick"))
    for look, line in series:
        known = [(i + 0.5, up(v)) for i, v in enumerate(line) if v is not None]
        path = " L".join(f"{x:.2f} {y:.2f}" for x, y in known)
        stretched = {"viewBox": f"0 0 {len(names)} {height:g}", "preserveAspectRatio": "none", "height": height}
        drawn = h("path", class_=f"line {_class(look)}", d=f"M{path}") if known else None
        body.append(h("svg", drawn, width="100%", **stretched))
        for i, value in enumerate(line):
            if value is not None:
                mark = _mark(look, across(i + 0.5), up(value), 2.6)
                body.append(titled(mark, f"{look.name}, {names[i]}: {value:.3g}"))
    scale = h("svg", *ticks, class_="scale", height=height, aria_hidden="true")
    plot = h("svg", *body, class_="plot", height=height, role="img", aria_label=label)
    return h("div", scale, plot, class_="chart")


def titled(mark: Html, title: str) -> Html:
    """The mark with a tooltip."""
    return h("g", h("title", title), mark)


def _class(look: Series) -> str:
    return f"c{look.colour % COLOURS}"


def _share(part: float, whole: float) -> str:
    share = part / whole if 0 < whole < math.inf else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _mark(look: Series, x: str, y: float, size: float) -> Html:
    """A mark at x per cent: an outline has no per cent, so it lies in a frame that has."""
    return h("svg", shape(look.shape, 0.0, 0.0, size, class_=f"mark {_class(look)}"), x=x, y=y, overflow="visible")


def _cell(height: float, *body: Html) -> Html:
    """A drawing in a table's cell, as wide as that; the figures stand beside it as text."""
    return h("svg", *body, class_="plot", height=height, aria_hidden="true")


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds positive values with room around them, at least a factor of four."""
    good = [v for v in values if v > 0] or [1.0]
    low, high = min(good), max(good)
    room = max(1.25, 2 * math.sqrt(low / high) if high / low < 4 else 1.25)
    return low / room, high * room


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ...; only powers of ten where those are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [float(f"{tick:.3g}") for tick in ticks if low <= tick <= high]
