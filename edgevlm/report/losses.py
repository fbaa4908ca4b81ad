"""The report's sections on size, score and accuracy: overview, skills, layers."""

from __future__ import annotations

from typing import Any

from edgevlm.bench.worker import STAGES
from edgevlm.io.console import seconds, size
from edgevlm.report.charts import Estimate, Point, Series, estimate_rows, layer_lines, scatter
from edgevlm.report.gather import Findings, Member, is_number
from edgevlm.report.markup import Html, h, join
from edgevlm.report.measure import is_evaluator
from edgevlm.report.parts import busy_warning, look, missing, series_legend, table


def overview(found: Findings) -> Html:
    timed = _timed(found)
    scores = {(m.name, e["runtime"]): e for e in found.evals if (m := found.member_of(e["bundle"]))}
    rows, spots = [], []
    for member in found.members:
        engines = dict.fromkeys([*member.runtimes, *(r for n, r in [*timed, *scores] if n == member.name)])
        for runtime in engines:
            subject, score = timed.get((member.name, runtime)), scores.get((member.name, runtime))
            spots.append((member, runtime, subject, score))
            rows.append(_overview_row(member, runtime, subject, score))
    charts = []

    few = len({member.name for member, *_ in spots}) <= 6

    def point(member: Member, runtime: str, x: float, y: float, x_title: str, *interval: float) -> Point:
        title = f"{member.name} on {runtime}: {x:.4g} {x_title}, {y:.4g}"
        return Point(x, y, look(found, member, runtime), member.name if few else "", title, *interval)

    for x_title, of in (("MB on disk", lambda m, r, s: m.size(r) / 1e6), ("ms to the first token", _first_token_ms)):
        points = [
            point(m, r, x, e["score"], x_title, *_interval(e)) for m, r, s, e in spots if e and (x := of(m, r, s)) > 0
        ]
        if len(points) > 1:
            charts.append(h("figure", scatter(points, x_title, "score", percent=True)))
    points = [
        point(m, r, m.size(r) / 1e6, 1 / step, "MB on disk")
        for m, r, s, _ in spots
        if s and (step := s["warm"]["decode"]["median"]) > 0
    ]
    if len(points) > 1:
        charts.append(h("figure", scatter(points, "MB on disk", "tokens per second")))
    head = ("bundle", "engine", "on disk", "score", "to first token", "a token", "tokens/s", "image tokens", "memory")
    suites = sorted({f"{e['suite']} ({e.get('questions', '?')} questions)" for e in scores.values()})
    caption = (
        f"Score: share of the questions of {' and '.join(suites)} with its 95 % interval. "
        if suites
        else "No score was measured or given. "
    ) + (
        "On disk: the files that this engine reads. First token: preprocess, encode and prefill of one question "
        "about one picture, warm, medians. Speeds are of the device named under 'Time by stage'; those of the CoreML "
        "evaluator are left out, because it checks answers and is no engine of a device."
    )
    warning = next((words for report in found.benches if (words := busy_warning(report))), None)
    return join(h("p", caption, class_="caption"), warning, h("div", *charts, class_="charts"), table(head, rows))


def _timed(found: Findings) -> dict[tuple[str, str], dict[str, Any]]:
    """The first benchmark of each bundle and engine."""
    timed: dict[tuple[str, str], dict[str, Any]] = {}
    for report in found.benches:
        for subject in report["subjects"]:
            member = found.member_of(str(subject["bundle"]))
            if member and not is_evaluator(subject["runtime"], str(subject.get("engine", ""))):
                timed.setdefault((member.name, subject["runtime"]), subject)
    return timed


def _first_token(subject: dict[str, Any]) -> float:
    return float(sum(subject["warm"][stage]["median"] for stage in STAGES[:3]))


def _first_token_ms(member: Member, runtime: str, subject: dict[str, Any] | None) -> float:
    """0 where it was not measured."""
    return 1e3 * _first_token(subject) if subject else 0.0


def _interval(score: dict[str, Any]) -> tuple[float, ...]:
    """The 95 % interval of the whole score, where the file has it."""
    low, high = score.get("low"), score.get("high")
    return (low, high) if is_number(low) and is_number(high) else ()


def _overview_row(
    member: Member, runtime: str, subject: dict[str, Any] | None, score: dict[str, Any] | None
) -> list[object]:
    row: list[object] = [h("bdi", member.name), runtime, size(member.size(runtime))]
    row.append(f"{score['score']:.1%}" if score else "")
    if not subject:
        return [*row, "", "", "", "", ""]
    step, memory = subject["warm"]["decode"]["median"], subject.get("peak_memory")
    row += [seconds(_first_token(subject)), seconds(step), f"{1 / step:.1f}" if step else ""]
    return [*row, subject.get("image_tokens", ""), size(memory) if memory else ""]


def skills(found: Findings) -> Html:
    if not found.evals:
        return missing("No score: run `edgevlm eval BUNDLE --json FILE` and give the file with --eval.")
    blocks = []
    for suite in dict.fromkeys(report["suite"] for report in found.evals):
        blocks.append(_suite(found, suite, [report for report in found.evals if report["suite"] == suite]))
    return join(*blocks)


def _suite(found: Findings, suite: str, reports: list[dict[str, Any]]) -> Html:
    named = [(_eval_look(found, report, i), report) for i, report in enumerate(reports)]
    names = list(dict.fromkeys(skill for report in reports for skill in report["skills"]))
    series = [
        (seen, {k: Estimate(v["score"], v["low"], v["high"]) for k, v in report["skills"].items()})
        for seen, report in named
    ]
    best = found.baseline().name
    base = next((r for r in reports if (m := found.member_of(r["bundle"])) and m.name == best), reports[0])
    rows = []
    for seen, report in named:
        row: list[object] = [h("bdi", seen.name), f"{report['score']:.1%}"]
        for skill in names:
            ours, theirs = report["skills"].get(skill), base["skills"].get(skill)
            if ours is None:
                row.append("")
            elif report is base or theirs is None:
                row.append(f"{ours['score']:.1%}")
            else:
                row.append(f"{100 * (ours['score'] - theirs['score']):+.1f}")
        rows.append(row)
    counts = ", ".join(f"{skill} {base['skills'][skill].get('n', '?')}" for skill in names if skill in base["skills"])
    caption = (
        f"Suite {suite}. Marks are shares of right answers, lines their 95 % intervals (Wilson): where two lines "
        f"overlap, the difference may be chance. In the table the bundle with most bits, {_name(found, base)}, has its "
        f"scores and the others the difference to it in points. Questions: {counts}."
    )
    picture = h("figure", estimate_rows(names, series)) if names else None
    return join(
        h("p", caption, class_="caption"),
        picture,
        series_legend([seen for seen, _ in named]),
        table(("bundle", "all", *names), rows),
    )


def _name(found: Findings, report: dict[str, Any]) -> str:
    member = found.member_of(report["bundle"])
    return f"{member.name if member else report['bundle']} on {report['runtime']}"


def _eval_look(found: Findings, report: dict[str, Any], i: int) -> Series:
    member = found.member_of(report["bundle"])
    return look(found, member, report["runtime"]) if member else Series(_name(found, report), 7 - i % 8, 4)


def layers(found: Findings) -> Html:
    lines = [(member, known) for member in found.members if (known := member.layers())]
    if not any(any(known.values()) for _, known in lines):
        return missing("Not recorded: export with the gate, which compares every layer with the original's.")
    names = list(dict.fromkeys(name for _, known in lines for name in known))
    series = [
        (Series(member.name, found.members.index(member), 0), [known.get(name) for name in names])
        for member, known in lines
    ]
    caption = (
        "How far each layer's result is from the original's: root mean square of the difference over that of the "
        "original, on one tile and one prompt, each model on its own earlier results. Computed in float32 by the "
        "reference on the weights that ship, when the bundle was exported: what rounding the weights costs on "
        "any engine."
    )
    rows = []
    for member, every in lines:
        figures = [(value, name) for name, value in every.items() if value is not None]
        if figures:
            worst, last = max(figures), figures[-1]
            rows.append([h("bdi", member.name), worst[1], f"{worst[0]:.3g}", f"{last[0]:.3g}"])
    legend = series_legend([each for each, _ in series])
    summary = table(("bundle", "largest at", "largest", "last"), rows)
    return join(h("p", caption, class_="caption"), h("figure", layer_lines(names, series)), legend, summary)
