"""Charts as inline SVG: drawn 360 wide, so that their text can be read on a phone; colours come from the page.

Colour never stands alone: series have shapes or names too, and every mark has its figures as a title.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.report.markup import Html, h, join

WIDTH = 360.0
COLOURS = 8  # classes c0 to c7 of the page's style


@dataclass(frozen=True)
class Series:
    """How one bundle or run looks in every chart."""

    name: str
    colour: int
    shape: int


@dataclass(frozen=True)
class Point:
    """A mark of a scatter plot. label: at the mark, "" for none; title: shown when it is pointed at.

    low, high: the interval of y, where it has one.
    """

    x: float
    y: float
    series: Series
    label: str
    title: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bar:
    """A stacked bar with its name above it and a label at its end."""

    name: str
    parts: Sequence[float]
    label: str


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


def scatter(points: Sequence[Point], x_title: str, y_title: str, *, percent: bool = False) -> Html:
    """Points over a logarithmic x axis; y is linear, in per cent of 1 with `percent`."""
    left, right, top, bottom = 46.0, WIDTH - 14, 14.0, 206.0
    x_low, x_high = _log_range([p.x for p in points])
    heights = [y for p in points for y in (p.low, p.y, p.high) if y is not None]
    y_low, y_high, y_ticks = _linear_range(heights)

    def across(x: float) -> float:
        return left + math.log(x / x_low) / math.log(x_high / x_low) * (right - left)

    def up(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    body = [_y_axis(y_ticks, y_low, y_high, left, right, top, bottom, percent)]
    for tick in _log_ticks(x_low, x_high):
        x = across(tick)
        body.append(h("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
        body.append(_label(x, bottom + 14, f"{tick:g}", "middle"))
    taken: list[tuple[float, float, float]] = []
    for p in sorted(points, key=lambda p: (-p.y, p.x)):
        x, y = across(p.x), up(p.y)
        if p.low is not None and p.high is not None:
            colour = f"whisker c{p.series.colour % COLOURS}"
            body.append(h("line", class_=colour, x1=x, x2=x, y1=up(p.low), y2=up(p.high)))
        body.append(titled(_mark(p.series, x, y, 4.5), p.title))
        if p.label:
            body.append(_beside(p.label, x, y, right, taken, top, bottom))
    body.append(_label((left + right) / 2, bottom + 30, x_title, "middle", "axis"))
    body.append(_label(2, 9, y_title, "start", "axis"))
    return _svg(bottom + 36, f"{y_title} against {x_title}", *body)


def stacked_bars(bars: Sequence[Bar], names: Sequence[str], unit: str) -> Html:
    """Horizontal bars, one part per name; parts of colour `i` are class c`i`."""
    row, top, right = 36.0, 4.0, WIDTH - 62
    longest = max((sum(bar.parts) for bar in bars), default=0) or 1.0
    body = []
    for i, bar in enumerate(bars):
        y = top + i * row
        body.append(_label(0, y + 11, bar.name, "start"))
        x = 0.0
        for part, (value, name) in enumerate(zip(bar.parts, names, strict=True)):
            width = value / longest * right
            title = f"{bar.name}, {name}: {value:.4g} {unit}"
            box = h("rect", x=x, y=y + 16, width=max(width, 0.0), height=13, class_=f"part c{part % COLOURS}")
            body.append(titled(box, title))
            x += width
        body.append(_label(x + 5, y + 27, bar.label, "start"))
    return _svg(top + len(bars) * row + 4, f"{', '.join(names)} in {unit}", *body)


def estimate_rows(rows: Sequence[str], series: Sequence[tuple[Series, dict[str, Estimate]]]) -> Html:
    """Scores 0 to 1 with their intervals: a band per row, in it a line per series."""
    left, right, line = 92.0, WIDTH - 18, 11.0
    band, top = len(series) * line + 10, 18.0
    bottom = top + len(rows) * band

    def place(score: float) -> float:
        return left + min(max(score, 0.0), 1.0) * (right - left)

    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        body.append(h("line", class_="grid", x1=place(tick), x2=place(tick), y1=top, y2=bottom))
        body.append(_label(place(tick), top - 5, f"{tick:.0%}", "middle"))
    for i, row in enumerate(rows):
        y = top + i * band
        if i % 2 == 0:
            body.append(h("rect", class_="band", x=0, y=y, width=WIDTH, height=band))
        body.append(_label(4, y + band / 2 + 4, row, "start"))
        for j, (look, found) in enumerate(series):
            if row not in found:
                continue
            e, at = found[row], y + 5 + line * (j + 0.5)
            title = f"{look.name}, {row}: {e.value:.1%} ({e.low:.1%} to {e.high:.1%})"
            colour = f"whisker c{look.colour % COLOURS}"
            whisker = h("line", class_=colour, x1=place(e.low), x2=place(e.high), y1=at, y2=at)
            body.append(join(whisker, titled(_mark(look, place(e.value), at, 3.6), title)))
    return _svg(bottom + 6, "Score by skill", *body)


def layer_lines(names: Sequence[str], series: Sequence[tuple[Series, Sequence[float | None]]]) -> Html:
    """A line per series over named places in order, on a logarithmic y axis; parts of a model stand apart.

    A place is named "part.rest": "vision.layers.0.norm1", "decoder.norm".
    """
    left, right, top, bottom = 46.0, WIDTH - 8, 16.0, 206.0
    values = [v for _, line in series for v in line if v]
    low, high = _log_range(values)

    def place(i: int, value: float) -> tuple[float, float]:
        x = left + (i + 0.5) / len(names) * (right - left)
        share = math.log(max(value, low) / low) / math.log(high / low)
        return x, bottom - min(share, 1.0) * (bottom - top)

    body = []
    for tick in _log_ticks(low, high):
        _, y = place(0, tick)
        body.append(h("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        body.append(_label(left - 5, y + 4, f"{tick:g}", "end"))
    parts = [name.partition(".")[0] for name in names]
    starts = [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        x = left + start / len(names) * (right - left)
        if start:
            body.append(h("line", class_="border", x1=x, x2=x, y1=top, y2=bottom))
        middle = left + (start + end) / 2 / len(names) * (right - left)
        if (end - start) / len(names) > 0.12:
            body.append(_label(middle, bottom + 15, parts[start], "middle"))
    for look, line in series:
        corners = [place(i, v) for i, v in enumerate(line) if v is not None]
        path = " L".join(f"{x:.2f} {y:.2f}" for x, y in corners)
        body.append(h("path", class_=f"line c{look.colour % COLOURS}", d=f"M{path}"))
        for i, value in enumerate(line):
            if value is not None:
                mark = _mark(look, *place(i, value), 2.2)
                body.append(titled(mark, f"{look.name}, {names[i]}: {value:.3g}"))
    body.append(_label(2, 9, "relative difference", "start", "axis"))
    return _svg(bottom + 22, "Divergence by layer", *body)


def _mark(look: Series, x: float, y: float, size: float) -> Html:
    return shape(look.shape, x, y, size, class_=f"mark c{look.colour % COLOURS}")


def titled(mark: Html, title: str) -> Html:
    """The mark with a tooltip."""
    return h("g", h("title", title), mark)


def _svg(height: float, label: str, *body: Html) -> Html:
    view = f"0 0 {WIDTH:g} {height:g}"
    return h("svg", *body, viewBox=view, role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg")


def _label(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Html:
    return h("text", words, x=x, y=y, text_anchor=anchor, class_=kind)


def _y_axis(
    ticks: Sequence[float], low: float, high: float, left: float, right: float, top: float, bottom: float, percent: bool
) -> Html:
    body = []
    for tick in ticks:
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        body.append(h("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        body.append(_label(left - 5, y + 4, f"{100 * tick:g}%" if percent else f"{tick:g}", "end"))
    return join(*body)


def _beside(
    words: str, x: float, y: float, right: float, taken: list[tuple[float, float, float]], top: float, bottom: float
) -> Html:
    """A label next to its mark, moved down until it covers no earlier one. taken: (left, right, y) of earlier ones."""
    width = 5.6 * len(words)
    start = x + 8 if x + 8 + width <= right + 12 else x - 8 - width
    at = y + 4
    while at < bottom and any(start < b and a < start + width and abs(at - other) < 11 for a, b, other in taken):
        at += 11
    taken.append((start, start + width, at))
    return _label(start, max(at, top + 4), words, "start", "name")


def _linear_range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """A range with room around the values, and round ticks in it."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) * 0.2 or 1.0
    low, high = low - 0.15 * spread, high + 0.15 * spread
    if min(values) >= 0:
        low = max(low, 0.0)
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next((factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6), 10)
    first = math.ceil(low / step)
    return low, high, [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


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
