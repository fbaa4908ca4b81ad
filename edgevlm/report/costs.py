"""The report's sections on benchmarks and gates: times by stage, checks."""

from __future__ import annotations

from typing import Any

from edgevlm.bench.device_card import card_line
from edgevlm.bench.worker import STAGES
from edgevlm.io.console import seconds
from edgevlm.io.processor import processor_line
from edgevlm.report.charts import Bar, Series, stacked_bars
from edgevlm.report.gather import Findings
from edgevlm.report.markup import Html, h, join
from edgevlm.report.measure import is_evaluator
from edgevlm.report.parts import busy_warning, missing, series_legend, table

_RATIOS = ("encode", "prefill", "decode")


def times(found: Findings) -> Html:
    blocks = []
    for report in found.benches:
        real = [s for s in report["subjects"] if not is_evaluator(s["runtime"], str(s.get("engine", "")))]
        settings = report.get("settings") or {}
        tokens = settings.get("tokens")
        bars = []
        for subject in real:
            steps = (subject.get("answer_tokens") or 1) - 1
            parts = [subject["warm"][stage]["median"] * 1e3 * (steps if stage == "decode" else 1) for stage in STAGES]
            bars.append(Bar(subject["name"], parts, seconds(sum(parts) / 1e3)))
        rows = [
            [h("bdi", s["name"]), kind, *(_spread(s[kind][stage]) for stage in STAGES)]
            for s in real
            for kind in ("warm", "cold")
        ]
        caption = (
            f"{card_line(report.get('device') or {})}. One question about {settings.get('picture')}, an answer of "
            f"{tokens} tokens, threads: {settings.get('threads') or 'as many as the engine chooses'}. Bars: "
            f"warm medians of {settings.get('repeat')} questions. Table: median (least to greatest); decode is per "
            "token; cold is the first question of a fresh process."
        )
        warning = busy_warning(report)
        legend = series_legend([Series(stage, i, 1) for i, stage in enumerate(STAGES)])
        chart = h("figure", stacked_bars(bars, STAGES, "ms")) if bars else None
        parts_of = [h("p", caption, class_="caption"), warning, legend if bars else None, chart]
        blocks.append(join(*parts_of, table(("", "", *STAGES), rows), _ratios(report)))
    return join(*blocks) if blocks else missing("Not measured: give a file of `edgevlm bench` with --bench.")


def _ratios(report: dict[str, Any]) -> Html | None:
    if not report.get("vs"):
        return None
    first = report["subjects"][0]["name"]
    rows = [
        [h("bdi", str(vs.get("name"))), *(_ratio((vs.get("ratios") or {}).get(stage)) for stage in _RATIOS)]
        for vs in report["vs"]
    ]
    caption = f"How many times as long as {first} in the same turn, medians: above 1, {first} is faster."
    return join(h("p", caption, class_="caption"), table(("", *_RATIOS), rows))


def _ratio(value: object) -> str:
    return f"{value:.2f}x" if isinstance(value, int | float) else ""


def _spread(figure: dict[str, Any]) -> str:
    return f"{seconds(figure['median'])} ({seconds(figure['min'])} to {seconds(figure['max'])})"


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
        missed = sum(not row.get("passed") for row in checks)
        words = f"{missed} of {len(checks)} bounds missed" if missed else f"passed, {len(checks)} checks"
        verdict = h("span", f" {words}", class_="verdict bad" if missed else "verdict")
        rows = [_gate_row(row) for row in checks]
        head = ("check", "", "measured", "bound", "")
        bad = {i for i, row in enumerate(checks) if not row.get("passed")}
        made_on = processor_line(gate.get("processor"))
        summary = h("summary", h("bdi", member.name), verdict, f", on {made_on}" if made_on else "")
        blocks.append(h("details", summary, table(head, rows, bad), open=bool(missed)))
    return join(*blocks)


def _gate_row(row: dict[str, Any]) -> list[object]:
    measured, bound = (row.get(name) for name in ("measured", "bound"))
    figures = [f"{v:.6g}" if isinstance(v, int | float) else "" for v in (measured, bound)]
    result = "MISSED" if not row.get("passed") else "ok" if figures[1] else ""
    return [f"{row.get('target', '')}: {row.get('check', '')}", result, *figures, h("span", row.get("note", ""))]
