"""Parts that the sections of a report share: how bundles look, legends, notes, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from edgevlm.report.charts import COLOURS, Series, shape
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.markup import Html, h, join

SHAPES = ("onnxruntime", "llama.cpp", "coreml", "eager")  # in the order of the charts' shapes
_LETTER, _SMALL, _PADDING = 0.46, 0.4, 1.5  # rem: a letter of a table, one of a caption, the sides of a cell


def look(found: Findings, member: Member, runtime: str) -> Series:
    """A bundle has its colour everywhere, an engine its shape."""
    kind = SHAPES.index(runtime) if runtime in SHAPES else len(SHAPES)
    return Series(short(found, f"{member.name} on {runtime}", runtime), found.members.index(member), kind)


def short(found: Findings, name: str, runtime: str) -> str:
    """The name without its engine, where all of the page is of one engine."""
    return name.removesuffix(f" on {runtime}") if len(found.engines) < 2 else name


def swatch(series: Series) -> Html:
    """A mark as it looks in the charts."""
    mark = shape(series.shape, 8.0, 8.0, 5.5, class_=f"mark c{series.colour % COLOURS}")
    return h("svg", mark, viewBox="0 0 16 16", class_="swatch", aria_hidden="true")


def legend(series: Sequence[Series], *more: Html) -> Html:
    """What each mark stands for, and what else the chart shows."""
    items = [h("li", swatch(each), h("bdi", each.name)) for each in series]
    return h("ul", *items, *(h("li", each) for each in more), class_="legend")


def sample(kind: str) -> Html:
    """A line of a chart for a legend: "reference", which stands, or "whisker", which lies."""
    ends = (8, 8, 1, 15) if kind == "reference" else (1, 15, 8, 8)
    line = h("line", class_=kind, **dict(zip(("x1", "x2", "y1", "y2"), ends, strict=True)))
    return h("svg", line, viewBox="0 0 16 16", class_="swatch", aria_hidden="true")


def count(value: object) -> str:
    """A number of questions as it stands in a file, which may hold anything."""
    return f"{value:,}" if isinstance(value, int) else "?"


def missing(words: str) -> Html:
    return h("p", words, class_="missing")


def busy_warning(report: dict[str, Any]) -> Html | None:
    """A warning, where the machine was busy with other work when the benchmark began."""
    device = report["device"]
    load, cores = device.get("load"), device.get("usable_cores")
    if not is_number(load) or load <= (cores if is_number(cores) else 1) / 4:
        return None
    words = f"The machine was busy before the first run (load {load}): do not quote these times."
    return h("p", words, class_="missing")


def table(
    label: str,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    bad: set[int] | None = None,
    plots: Sequence[int] = (),
) -> Html:
    """Scrolls sideways within itself where it is wider than its place, and says so.

    label: what it is, for a screen reader. bad: rows to stress. plots: columns that hold drawings, which take the room
    that is left. Cells that start with a digit align right.
    """
    kinds = [
        "plots" if i in plots else "n" if rows and all(_is_figure(row[i]) for row in rows) else None
        for i in range(len(head))
    ]
    top = h("tr", *(h("th", name, scope="col", class_=kind) for name, kind in zip(head, kinds, strict=True)))
    lines = []
    for i, row in enumerate(rows):
        cells = [h("th", row[0], scope="row")]
        cells += [h("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        lines.append(h("tr", *cells, class_="missed" if bad and i in bad else None))
    widths = [
        11.5 if i in plots else max(map(_width, column)) for i, column in enumerate(zip(head, *rows, strict=True))
    ]
    words = [word for row in rows for word in _plain(row[0]).split()]  # which the first column breaks lines between
    least = min(widths[0], max([7.5, *map(_width, words)])) + sum(widths[1:])
    hint = h("p", "More columns to the right: scroll this table sideways.", class_="hint", aria_hidden="true")
    grid = h("table", h("thead", top), h("tbody", *lines), class_="filled" if plots else None)
    scroll = h("div", grid, class_="scroll", tabindex="0", role="region", aria_label=label)
    return h("div", hint, scroll, class_="table", style=f"--least:{least:.0f}rem")


def _is_figure(cell: object) -> bool:
    words = _plain(cell).lstrip("+\u2212\u2248~ ")
    return not words or words[:1].isdigit()


def _plain(cell: object) -> str:
    """The text of a cell."""
    return html.unescape(re.sub(r"<[^>]*>", " ", str(cell))).strip()


def _width(cell: object) -> float:
    """About how wide a cell is, in rem: its longest piece of text."""
    pieces = re.findall(r"(<[^>]*>)?([^<]+)", str(cell))
    widths = [len(html.unescape(words)) * (_SMALL if "caption" in tag else _LETTER) for tag, words in pieces]
    return min(max(widths, default=0.0), 14.0 if 'class="note"' in str(cell) else 99.0) + _PADDING


def spaced(*children: object) -> Html:
    """Children side by side, with a space between them."""
    kept = [child for child in children if child is not None]
    return join(*(part for child in kept for part in (child, " ")))
