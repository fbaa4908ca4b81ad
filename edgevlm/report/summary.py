"""The top of a report: the summary in words, the picture of all bundles on all engines, and a card for each bundle."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.report.charts import COLOURS
from edgevlm.report.compare import Compared, Row, compare, question_sets
from edgevlm.report.gather import Findings, Member
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import busy_warning, count, look, missing, spaced, swatch
from edgevlm.report.picture import picture, recipe
from edgevlm.report.words import costs, gains, lead, loses, untold


def summary(found: Findings) -> Html:
    c = compare(found)
    words = h("p", " ".join(lead(c)), class_="lead")
    cards = [_card(found, c, row) for row in (c.base, *c.others())]
    return join(words, *_warnings(found, c), picture(found, c), h("div", *cards, class_="cards"))


def _warnings(found: Findings, c: Compared) -> list[Html | None]:
    """What forbids to compare what the picture puts side by side."""
    benches = [row.bench for row in c.rows if row.bench]
    warnings = [next((words for bench in benches if (words := busy_warning(bench))), None)]
    if len({id(bench) for bench in benches}) > 1:
        warnings.append(missing("Times are of several benchmarks: only bundles of one benchmark are compared."))
    same, known = question_sets(row.score for row in c.rows if row.score)
    if not same:
        named = [(look(found, row.member, row.runtime).name, row.score) for row in c.rows if row.score]
        counts = ", ".join(f"{name} {count(score.get('questions'))}" for name, score in named)
        what = "were not asked the same questions" if known else "may not have been asked the same questions"
        warnings.append(missing(f"These runs {what} ({counts}): scores are compared over those that two runs share."))
    return warnings


def _card(found: Findings, c: Compared, row: Row) -> Html:
    manifest = row.member.bundle.manifest
    seen = look(found, row.member, row.runtime)
    head = h("h3", swatch(seen), h("bdi", row.member.name))
    engine = f", on {row.runtime}" if len(found.engines) > 1 else ""
    about = h("p", f"{manifest.model.name}, {recipe(row.member)}{engine}", class_="caption")
    blocks = [("Costs", [f"{', '.join(costs(row))}."])]
    if row is c.base:
        blocks.append(("Baseline", ["The bundle with most bits: the others are compared with it."]))
    else:
        blocks += [("Loses", loses(c, row)), ("Gains", gains(c, row))]
        if words := untold(c, row):
            blocks.append(("Open", [words]))
    terms = join(*(part for name, lines in blocks for part in (h("dt", name), *_lines(lines))))
    return h(
        "article", spaced(head, gate_badge(row.member)), about, h("dl", terms), class_=f"card c{seen.colour % COLOURS}"
    )


def _lines(lines: Sequence[str]) -> list[Html]:
    return [h("dd", line) for line in lines]


def gate_badge(member: Member) -> Html:
    rows = (member.gate or {}).get("rows")
    checks = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else None
    if checks is None:
        return h("span", "gate not run", class_="badge")
    missed = sum(not row.get("passed") for row in checks)
    if missed:
        return h("span", f"{missed} of {len(checks)} bounds missed", class_="badge bad")
    return h("span", f"gate passed, {len(checks)} checks", class_="badge good")
