"""Parts that the sections of a report share: colours and shapes of bundles, legends, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgevlm.report.charts import COLOURS, Series, shape
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.markup import Html, h

SHAPES = ("onnxruntime", "llama.cpp", "coreml", "eager")  # in the order of the charts' shapes


def look(found: Findings, member: Member, runtime: str) -> Series:
    """A bundle has its colour everywhere, an engine its shape."""
    kind = SHAPES.index(runtime) if runtime in SHAPES else len(SHAPES)
    return Series(f"{member.name} on {runtime}", found.members.index(member), kind)


def swatch(series: Series) -> Html:
    """A mark as it looks in the charts."""
    mark = shape(series.shape, 8.0, 8.0, 5.5, class_=f"mark c{series.colour % COLOURS}")
    return h("svg", mark, viewBox="0 0 16 16", aria_hidden="true")


def series_legend(series: Sequence[Series]) -> Html:
    items = [h("li", swatch(each), h("bdi", each.name)) for each in series]
    return h("ul", *items, class_="legend")


def missing(words: str) -> Html:
    return h("p", words, class_="missing caption")


def busy_warning(report: dict[str, Any]) -> Html | None:
    """A warning, where the machine was busy with other work when the benchmark began."""
    device = report["device"]
    load, cores = device.get("load"), device.get("usable_cores")
    if not is_number(load) or load <= (cores if is_number(cores) else 1) / 4:
        return None
    words = f"The machine was busy before the first run (load {load}): do not quote these times."
    return h("p", words, class_="missing")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], bad: set[int] | None = None) -> Html:
    """Scrolls sideways by itself where it is wider than the screen; cells that start with a digit align right."""
    lines = []
    for i, row in enumerate(rows):
        cells = [h("td", cell, class_="n" if _is_figure(cell) else None) for cell in row]
        lines.append(h("tr", *cells, class_="missed" if bad and i in bad else None))
    top = h("thead", h("tr", *(h("th", name, scope="col") for name in head)))
    return h("div", h("table", top, h("tbody", *lines)), class_="scroll", tabindex="0")


def _is_figure(cell: object) -> bool:
    words = str(cell)
    return not isinstance(cell, Html) and bool(words) and words.lstrip("+-")[:1].isdigit()
