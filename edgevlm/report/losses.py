"""The report's sections on accuracy: scores by skill, divergence by layer."""

from __future__ import annotations

from typing import Any

from edgevlm.evaluation.statistics import Difference
from edgevlm.report.charts import Estimate, Series, layer_lines, score_axis, scores
from edgevlm.report.compare import compare_runs, question_sets
from edgevlm.report.gather import Findings
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import count, legend, look, missing, sample, short, table
from edgevlm.report.words import difference_words, signed


def skills(found: Findings) -> Html:
    if not found.evals:
        return missing("No score: run `edgevlm eval BUNDLE --json FILE` and give the file with --eval.")
    suites = dict.fromkeys(report["suite"] for report in found.evals)
    blocks = []
    for suite in suites:
        title = h("h3", f"Suite {suite}") if len(suites) > 1 else None
        blocks.append(join(title, _suite(found, suite)))
    return join(*blocks)


def _suite(found: Findings, suite: str) -> Html:
    runs = compare_runs(found, suite)
    named = [(_look(found, report, i), report) for i, report in enumerate(runs.reports)]
    others = range(1, len(named))
    base = runs.reports[0]
    rows = [_row("all", [(s, _whole(r)) for s, r in named], [runs.whole.get(i) for i in others], base)]
    for skill in dict.fromkeys(skill for report in runs.reports for skill in report["skills"]):
        seen = [(s, _estimate(r["skills"].get(skill))) for s, r in named]
        rows.append(_row(skill, seen, [runs.skills.get((i, skill)) for i in others], base))
    head = ("skill", score_axis(), named[0][0].name, *(f"{s.name}, points" for s, _ in named[1:]))
    caption = (
        f"Mean scores on {suite} with 95% intervals (Wilson). Points are differences to {named[0][0].name} over the "
        "questions that both were asked; \u2248 stands where chance may have made the difference (exact sign test at "
        "5%, adjusted by Holm for the skills and runs of this table)."
    )
    same, known = question_sets(runs.reports)
    counts = ", ".join(f"{s.name} {count(r.get('questions'))}" for s, r in named)
    warning = None
    if not known and len(named) > 1:
        warning = missing(
            "A file of an earlier edgevlm does not say which questions were asked: its run is not compared."
        )
    elif not same:
        warning = missing(f"These runs were not asked the same questions ({counts}): marks show each run's own.")
    key = legend([s for s, _ in named], join(sample("whisker"), "95% interval"))
    return join(
        h("p", caption, class_="caption"), warning, key, table(f"Scores by skill, {suite}", head, rows, plots=[1])
    )


def _row(
    skill: str, seen: list[tuple[Series, Estimate | None]], differences: list[Difference | None], base: dict[str, Any]
) -> list[object]:
    asked = base.get("questions") if skill == "all" else base["skills"].get(skill, {}).get("n")
    first = seen[0][1]
    name = join(h("bdi", skill), h("span", f" n = {count(asked)}" if asked else "", class_="caption"))
    return [name, scores(seen, skill), f"{first.value:.1%}" if first else "", *map(_points, differences)]


def _points(found: Difference | None) -> object:
    if found is None:
        return ""
    words = signed(found.mean) if found.told else "\u2248"
    return h("span", words, title=difference_words(found), class_=None if found.told else "caption")


def _estimate(skill: dict[str, Any] | None) -> Estimate | None:
    return Estimate(skill["score"], skill["low"], skill["high"]) if skill else None


def _whole(report: dict[str, Any]) -> Estimate:
    value = report["score"]
    return Estimate(value, report.get("low", value), report.get("high", value))


def _look(found: Findings, report: dict[str, Any], i: int) -> Series:
    member = found.member_of(report["bundle"])
    if member:
        return look(found, member, report["runtime"])
    name = short(found, f"{report['bundle']} on {report['runtime']}", report["runtime"])
    return Series(name, 7 - i % 8, 4)


def layers(found: Findings) -> Html:
    lines = [(member, known) for member in found.members if (known := member.layers())]
    if not any(any(known.values()) for _, known in lines):
        return missing("Not recorded: export with the gate, which compares every layer with the original's.")
    names = list(dict.fromkeys(name for _, known in lines for name in known))
    series, rows = [], []
    for member, known in lines:
        figures = [(value, name) for name, value in known.items() if value is not None]
        if not any(value for value, _ in figures):  # nothing was rounded: it has no place on a logarithmic scale
            rows.append([h("bdi", member.name), "no layer", "0", "0"])
            continue
        place = found.members.index(member)
        series.append((Series(member.name, place, place), [known.get(name) for name in names]))
        worst, last = max(figures), figures[-1]
        rows.append([h("bdi", member.name), worst[1], f"{worst[0]:.3g}", f"{last[0]:.3g}"])
    caption = (
        "How far each layer's result is from the original's: root mean square of the difference over that of the "
        "original, on one tile and one prompt, each model on its own earlier results. Computed in float32 by the "
        "reference on the weights that ship, when the bundle was exported: what rounding the weights costs on "
        "any engine."
    )
    label = "Relative difference by layer: " + "; ".join(
        f"{row[0]}: largest {row[2]} at {row[1]}, last {row[3]}" for row in rows
    )
    drawn = h(
        "figure",
        legend([each for each, _ in series]),
        h("p", "relative difference, by layer from the first to the last", class_="caption axis"),
        layer_lines(names, series, label.replace("<bdi>", "").replace("</bdi>", "")),
    )
    summary = table("Divergence by layer", ("bundle", "largest at", "largest", "last"), rows)
    return join(h("p", caption, class_="caption"), h("div", drawn, summary, class_="pair"))
