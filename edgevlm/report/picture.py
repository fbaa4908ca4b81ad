"""The picture of a report's summary: a row per bundle and engine, a column per quantity, each column on one scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevlm.io.console import seconds, size
from edgevlm.report.charts import Series, bar
from edgevlm.report.compare import FIRST, LAST, Compared, Row
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import count, legend, look, sample, spaced, swatch
from edgevlm.report.words import rate


@dataclass(frozen=True)
class _Quantity:
    """value: None where it was not measured. whole: what a full bar stands for; None: the greatest value."""

    name: str
    value: Callable[[Row], float | None]
    words: Callable[[float], str]
    whole: float | None = None


def picture(found: Findings, c: Compared) -> Html:
    """A table with a bar in each cell, and the baseline's value across all bars of a column."""
    quantities = [
        _Quantity("On disk", lambda row: row.bytes, lambda value: size(round(value))),
        _Quantity("Memory", lambda row: row.memory or None, lambda value: size(round(value))),
        _Quantity("First token", lambda row: row.seconds(FIRST) or None, seconds),
        _Quantity("Tokens a second", lambda row: 1 / step if (step := row.seconds(LAST)) else None, rate),
        _Quantity(f"Score on {c.suite}", lambda row: row.score["score"] if row.score else None, "{:.1%}".format, 1.0),
    ]
    quantities = [each for each in quantities if any(each.value(row) is not None for row in c.rows)]
    head = [h("th", name, scope="col", role="columnheader") for name in ("Bundle", *(each.name for each in quantities))]
    lines = []
    for row in c.rows:
        seen = look(found, row.member, row.runtime)
        lines.append(h("tr", _name(found, row, seen), *(_cell(c, each, row, seen) for each in quantities), role="row"))
    grid = h(
        "table",
        h("thead", h("tr", *head, role="row"), role="rowgroup"),
        h("tbody", *lines, role="rowgroup"),
        role="table",
        class_="filled",
    )
    baseline = join(sample("reference"), f"{look(found, c.base.member, c.base.runtime).name}, the baseline")
    with_score = any(row.score for row in c.rows)
    intervals = [join(sample("whisker"), "95% interval of a score, n questions")] if with_score else []
    caption = h("figcaption", legend([], baseline, *intervals), h("p", _caption(c)))
    return h("figure", grid, caption, class_="picture card")


def recipe(member: Member) -> str:
    """ "int4 balanced gptq"."""
    said = member.bundle.manifest.recipe
    keys = () if member.kind in ("fp32", "fp16") else ("preset", "method")  # which say how weights are rounded
    how = [str(value) for key in keys if (value := said.get(key)) not in (None, "rtn")]
    return " ".join([member.kind, *how])


def _name(found: Findings, row: Row, seen: Series) -> Html:
    what = f"{recipe(row.member)}, {row.runtime}" if len(found.engines) > 1 else recipe(row.member)
    name = h("bdi", row.member.name)
    return h("th", swatch(seen), name, h("span", what, class_="caption"), scope="row", role="rowheader")


def _cell(c: Compared, what: _Quantity, row: Row, seen: Series) -> Html:
    value = what.value(row)
    if value is None:
        return h("td", h("span", "not measured", class_="caption"), data_label=what.name, role="cell")
    longest = what.whole or max(what.value(each) or 0.0 for each in c.rows)
    interval, small = None, None
    if what.whole and row.score:
        low, high = (row.score.get(name) for name in ("low", "high"))
        interval = (low, high) if is_number(low) and is_number(high) else None
        small = _interval(interval, row.score.get("questions"))
    words = what.words(value)
    drawing = bar(value, longest, seen, f"{row.name}: {words}", what.value(c.base), interval)
    return h("td", h("span", words, class_="figure"), drawing, small, data_label=what.name, role="cell")


def _interval(interval: tuple[float, float] | None, asked: object) -> Html:
    limits = h("span", f"{100 * interval[0]:.1f} to {interval[1]:.1%}") if interval else None
    return h("span", spaced(limits, h("span", f"n = {count(asked)}")), class_="caption")


def _caption(c: Compared) -> str:
    words = "On disk: the files that this engine reads. "
    if any(row.timed for row in c.rows):
        words += (
            "Memory: at its peak. First token: preprocess, encode and prefill of one question about one picture; "
            "tokens a second: after it; warm medians, on the device named under Time by stage. "
        )
    if any(row.score for row in c.rows):
        words += f"Score: mean over the questions of {c.suite}; a full bar is 100%."
    return words.strip()
