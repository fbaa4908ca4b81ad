"""The report's sections on benchmarks and gates: times by stage, checks."""

from __future__ import annotations

from typing import Any

from edgevlm.bench.device_card import card_line
from edgevlm.bench.worker import STAGES
from edgevlm.io.console import seconds
from edgevlm.io.processor import processor_line
from edgevlm.report.charts import part_series, stack
from edgevlm.report.gather import Findings, is_number
from edgevlm.report.markup import Html, h, join
from edgevlm.report.measure import is_evaluator
from edgevlm.report.parts import busy_warning, legend, missing, short, spaced, table
from edgevlm.report.summary import gate_badge

_RATIOS = ("encode", "prefill", "decode")


def times(found: Findings) -> Html:
    """A block per benchmark; all bars of the page have one scale."""
    blocks = [(report, _real(report)) for report in found.benches]
    longest = max((sum(_parts(subject)) for _, real in blocks for subject in real), default=0.0)
    if longest <= 0:
        return missing("Not measured: give a file of `edgevlm bench` with --bench.")
    scale = "Bars: one question and its whole answer, warm medians, all on one scale."
    key = legend([part_series(i, stage) for i, stage in enumerate(STAGES)])
    return join(
        h("p", scale, class_="caption"), key, *(_block(found, report, real, longest) for report, real in blocks)
    )


def _real(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [s for s in report["subjects"] if not is_evaluator(s["runtime"], str(s.get("engine", "")))]


def _parts(subject: dict[str, Any]) -> list[float]:
    """Seconds of each stage of one question, all steps of decode."""
    tokens = subject.get("answer_tokens")
    steps = max(tokens - 1, 0) if is_number(tokens) else 0
    return [subject["warm"][stage]["median"] * (steps if stage == "decode" else 1) for stage in STAGES]


def _block(found: Findings, report: dict[str, Any], real: list[dict[str, Any]], longest: float) -> Html:
    settings = report.get("settings") or {}
    rows = []
    for subject in real:
        parts = _parts(subject)
        titles = [f"{subject['name']}, {stage}: {seconds(part)}" for stage, part in zip(STAGES, parts, strict=True)]
        figures = [_spread(subject["warm"][stage], subject["cold"][stage]) for stage in STAGES]
        count = subject.get("image_tokens")
        tokens = h("span", f"{count} image tokens", class_="caption") if count else None
        name = join(h("bdi", short(found, subject["name"], subject["runtime"])), tokens)
        rows.append([name, stack(parts, longest, titles), seconds(sum(parts)), *figures])
    caption = (
        f"{card_line(report.get('device') or {})}. One question about {settings.get('picture')}, an answer of "
        f"{settings.get('tokens')} tokens, threads: {settings.get('threads') or 'as many as the engine chooses'}. In "
        f"the table, decode is per token: the median of {settings.get('repeat')} warm questions, below it the least "
        "and the greatest, and the median of the first question of a fresh process (cold)."
    )
    head = ("bundle", "", "whole answer", *STAGES)
    grid = table("Time by stage", head, rows, plots=[1])
    return join(h("p", caption, class_="caption"), busy_warning(report), grid, _ratios(found, report))


def _ratios(found: Findings, report: dict[str, Any]) -> Html | None:
    compared = report.get("vs")
    compared = [vs for vs in compared if isinstance(vs, dict)] if isinstance(compared, list) else []
    if not compared or not report["subjects"]:
        return None
    runtimes = {subject["name"]: subject["runtime"] for subject in report["subjects"]}

    def named(name: object) -> str:
        return short(found, str(name), runtimes.get(str(name), ""))

    first = named(report["subjects"][0]["name"])
    rows = [[h("bdi", named(vs.get("name"))), *(_ratio(vs, stage) for stage in _RATIOS)] for vs in compared]
    caption = (
        f"How many times as long as {first} in the same turn, median (least to greatest): above 1, {first} is faster. "
        "Where the range holds 1, which of the two is faster changed from turn to turn."
    )
    return join(h("p", caption, class_="caption"), table("Ratios", ("", *_RATIOS), rows))


def _ratio(vs: dict[str, Any], stage: str) -> str:
    value, spread = (
        kind.get(stage) if isinstance(kind := vs.get(name), dict) else None for name in ("ratios", "spread")
    )
    if not is_number(value):
        return ""
    ends = [end for end in spread if is_number(end)] if isinstance(spread, list) else []
    return f"{value:.2f}x ({ends[0]:.2f} to {ends[1]:.2f})" if len(ends) == 2 else f"{value:.2f}x"


def _spread(warm: dict[str, Any], cold: dict[str, Any]) -> Html:
    return join(
        h("span", seconds(warm["median"]), class_="figure"),
        h("span", f"{_short(warm['min'], warm['max'])}", class_="caption line"),
        h("span", f"cold {seconds(cold['median'])}", class_="caption line"),
    )


def _short(low: float, high: float) -> str:
    """ "6.3 to 7.0 ms"; both units where they differ."""
    first, second = seconds(low), seconds(high)
    return f"{first.split()[0] if first.split()[1:] == second.split()[1:] else first} to {second}"


def gates(found: Findings) -> Html:
    blocks = [
        h("p", "Every check that the export, or the last `edgevlm verify`, wrote into the bundle.", class_="caption")
    ]
    for member in found.members:
        gate = member.gate
        if not gate or not isinstance(gate.get("rows"), list):
            blocks.append(missing(f"{member.name}: the gate was not run; try `edgevlm verify {member.name}`."))
            continue
        checks = [row for row in gate["rows"] if isinstance(row, dict)]
        bad = {i for i, row in enumerate(checks) if not row.get("passed")}
        made_on = processor_line(gate.get("processor"))
        where = h("span", f"on {made_on}", class_="caption") if made_on else None
        summary = h("summary", spaced(h("bdi", member.name), gate_badge(member), where))
        head = ("check", "", "measured", "bound", "note")
        rows = [_gate_row(row) for row in checks]
        blocks.append(
            h("details", summary, table(f"Gate of {member.name}", head, rows, bad=bad), open=bool(bad), class_="card")
        )
    return join(*blocks)


def _gate_row(row: dict[str, Any]) -> list[object]:
    measured, bound = (row.get(name) for name in ("measured", "bound"))
    figures = [f"{v:.6g}" if isinstance(v, int | float) else "" for v in (measured, bound)]
    result = "MISSED" if not row.get("passed") else "ok" if figures[1] else ""
    return [
        f"{row.get('target', '')}: {row.get('check', '')}",
        result,
        *figures,
        h("span", row.get("note", ""), class_="note"),
    ]
