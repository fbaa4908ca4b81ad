"""The top of a report: the summary in words, the picture of all bundles on all engines, and a card for each bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgevlm.io.console import seconds, size
from edgevlm.report.charts import Estimate, Series, bar, score_axis, scores
from edgevlm.report.compare import FIRST, LAST, Compared, Row, compare, question_sets
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import busy_warning, legend, look, missing, sample, spaced, swatch
from edgevlm.report.words import costs, gains, lead, loses, rate, untold


def summary(found: Findings) -> Html:
    c = compare(found)
    words = h("p", " ".join(lead(c)), class_="lead")
    cards = [_card(found, c, row) for row in (c.base, *c.others())]
    return join(words, *_warnings(c), _picture(found, c), h("div", *cards, class_="cards"))


def _warnings(c: Compared) -> list[Html | None]:
    """What forbids to compare what the picture puts side by side."""
    benches = [row.bench for row in c.rows if row.bench]
    found = [next((words for bench in benches if (words := busy_warning(bench))), None)]
    if len({id(bench) for bench in benches}) > 1:
        found.append(missing("Times are of several benchmarks: only bundles of one benchmark are compared."))
    same, known = question_sets(row.score for row in c.rows if row.score)
    if not same:
        counts = ", ".join(f"{row.name} {row.score.get('questions', '?')}" for row in c.rows if row.score)
        what = "were not asked the same questions" if known else "may not have been asked the same questions"
        found.append(missing(f"These runs {what} ({counts}): scores are compared over those that two runs share."))
    return found


def _picture(found: Findings, c: Compared) -> Html:
    """A row per bundle and engine, a column per quantity, each on one scale with the baseline's value across."""
    columns: list[tuple[str, Callable[[Row], float], Callable[[Row], str]]] = [
        ("On disk", lambda row: row.bytes, lambda row: size(row.bytes)),
        ("Memory", lambda row: row.memory, lambda row: size(round(row.memory))),
        ("First token", lambda row: row.seconds(FIRST), lambda row: seconds(row.seconds(FIRST))),
        (
            "Tokens a second",
            lambda row: 1 / step if (step := row.seconds(LAST)) else 0,
            lambda row: rate(row.seconds(LAST)),
        ),
    ]
    columns = [column for column in columns if any(column[1](row) for row in c.rows)]
    with_score = any(row.score for row in c.rows)
    heads = [h("th", name, scope="col", role="columnheader") for name, _, _ in columns]
    if with_score:
        heads.append(h("th", f"Score on {c.suite}", score_axis(), scope="col", role="columnheader"))
    top = h("tr", h("th", "Bundle", scope="col", role="columnheader"), *heads, role="row")
    lines = []
    for row in c.rows:
        seen = look(found, row.member, row.runtime)
        cells = [_cell(name, value, words, row, c, seen) for name, value, words in columns]
        if with_score:
            cells.append(_score_cell(c, row, seen))
        lines.append(h("tr", _name(row, seen), *cells, role="row", class_="base" if row is c.base else None))
    grid = h(
        "table", h("thead", top, role="rowgroup"), h("tbody", *lines, role="rowgroup"), role="table", class_="filled"
    )
    key = legend([], join(sample("reference"), f"{c.base.name}, the baseline"))
    if with_score:
        key = legend(
            [],
            join(sample("reference"), f"{c.base.name}, the baseline"),
            join(sample("whisker"), "95% interval of a score"),
        )
    caption = h("figcaption", key, h("p", _caption(c)))
    return h("figure", grid, caption, class_="picture card")


def _caption(c: Compared) -> str:
    words = "On disk: the files that this engine reads. "
    if any(row.timed for row in c.rows):
        words += (
            "Memory: at its peak. First token: preprocess, encode and prefill of one question about one picture; tokens a "
            "second: after it; warm medians, on the device named under Time by stage. "
        )
    if any(row.score for row in c.rows):
        words += f"Score: mean over the questions of {c.suite}."
    return words.strip()


def _name(row: Row, seen: Series) -> Html:
    what = h("span", f"{_recipe(row.member)} · {row.runtime}", class_="caption")
    return h("th", swatch(seen), h("bdi", row.member.name), what, scope="row", role="rowheader")


def _cell(
    name: str, value: Callable[[Row], float], words: Callable[[Row], str], row: Row, c: Compared, seen: Series
) -> Html:
    if not value(row):
        return h("td", h("span", "not measured", class_="caption"), data_label=name, role="cell")
    longest, best = max(map(value, c.rows)), value(c.base)
    drawing = bar(value(row), longest, seen, f"{row.name}: {words(row)}", best or None)
    return h("td", h("span", words(row), class_="figure"), drawing, data_label=name, role="cell")


def _score_cell(c: Compared, row: Row, seen: Series) -> Html:
    label = f"Score on {c.suite}"
    if row.score is None:
        return h("td", h("span", "not measured", class_="caption"), data_label=label, role="cell")
    value, low, high = (row.score.get(name) for name in ("score", "low", "high"))
    whole = is_number(low) and is_number(high)
    estimate = Estimate(value, low if whole else value, high if whole else value)
    interval = f"{low:.1%} to {high:.1%}, " if whole else ""
    small = h("span", f"{interval}n = {row.score.get('questions', '?')}", class_="caption")
    text = h("span", f"{value:.1%}", class_="figure")
    return h("td", spaced(text, small), scores([(seen, estimate)], "all"), data_label=label, role="cell")


def _card(found: Findings, c: Compared, row: Row) -> Html:
    manifest = row.member.bundle.manifest
    head = h("h3", swatch(look(found, row.member, row.runtime)), h("bdi", row.member.name))
    about = h("p", f"{manifest.model.name}, {_recipe(row.member)}, on {row.runtime}", class_="caption")
    blocks = [("Costs", [f"{', '.join(costs(row))}."])]
    if row is c.base:
        blocks.append(("Baseline", ["The bundle with most bits: the others are compared with it."]))
    else:
        blocks += [("Loses", loses(c, row)), ("Gains", gains(c, row))]
        if words := untold(c, row):
            blocks.append(("Open", [words]))
    terms = join(*(part for name, lines in blocks for part in (h("dt", name), *_lines(lines))))
    return h("article", spaced(head, gate_badge(row.member)), about, h("dl", terms), class_="card")


def _lines(lines: Sequence[str]) -> list[Html]:
    return [h("dd", line) for line in lines]


def _recipe(member: Member) -> str:
    recipe = member.bundle.manifest.recipe
    how = [str(value) for key in ("preset", "method") if (value := recipe.get(key)) not in (None, "rtn")]
    return " ".join([member.kind, *how])


def gate_badge(member: Member) -> Html:
    rows = (member.gate or {}).get("rows")
    checks = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else None
    if checks is None:
        return h("span", "gate not run", class_="badge")
    missed = sum(not row.get("passed") for row in checks)
    if missed:
        return h("span", f"{missed} of {len(checks)} bounds missed", class_="badge bad")
    return h("span", f"gate passed, {len(checks)} checks", class_="badge good")
