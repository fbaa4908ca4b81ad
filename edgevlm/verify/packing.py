"""The gate on how features are packed: what transformers' models made of numbered features, replayed.

Recorded by tests/vectors/make_packing.py, which knows nothing of edgevlm: assets/packing.json.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import replace
from typing import Any

import numpy as np

from edgevlm.inputs.packing import Packing
from edgevlm.inputs.views import CropTo, View
from edgevlm.types import F32
from edgevlm.verify.report import Row

NEWLINE, BEGIN, END = -1.0, -2.0, -3.0  # in the recordings; features are numbered from 0
SEPARATOR = -2.0
_NEAR = 1e-3  # of one feature's number: float32 rounding of numbers up to 10,000 in two orders


def check_packing(packing: Packing) -> Row:
    """The recorded pictures by the bundle's own way of packing, with numbers for features."""
    assets = importlib.resources.files("edgevlm") / "assets"
    recorded = json.loads((assets / "packing.json").read_text(encoding="utf-8"))
    numbered = replace(packing, newline=(NEWLINE,), separator=(SEPARATOR,) if packing.whole_last else ())
    if packing.framed:
        return _framed(replace(numbered, begin=(BEGIN,), end=(END,)), recorded["framed"])
    cases = [case for case in recorded["cases"] if ("sides" in case) == packing.whole_last]
    cases = [case for case in cases if packing.whole_last or (case["most"] is None) == (packing.most is None)]
    wrong = [f"{case['picture']}: {said}" for case in cases if (said := _fault(numbered, recorded["side"], case))]
    return _row(wrong, len(cases))


def _row(wrong: list[str], cases: int) -> Row:
    note = wrong[0] if wrong else f"{cases} pictures"
    check = "sizes whose features are packed in another way than transformers'"
    return Row("inputs", check, len(wrong), 0, not wrong, note, "numbers", f"packing of {wrong[0]}" if wrong else "")


def _framed(packing: Packing, cases: list[dict[str, Any]]) -> Row:
    wrong = []
    for case in cases:
        (rows, cols), theirs = case["side"], np.array(case["tokens"], np.float32)
        packed = packing.plan((cols, rows), [View((CropTo(0, 0, 1, 1),))], [(rows, cols)])
        ours = packed.run([np.arange(rows * cols, dtype=np.float32)[:, None]])[:, 0]
        if packed.tokens != len(theirs) or len(ours) != len(theirs):
            wrong.append(f"{case['side']}: {len(ours)} tokens, planned {packed.tokens}, instead of {len(theirs)}")
        elif not np.array_equal(ours, theirs):
            wrong.append(f"{case['side']}: other rows, or in another order")
    return _row(wrong, len(cases))


def _fault(packing: Packing, side: int, case: dict[str, Any]) -> str:
    """What is wrong with a recorded picture; nothing where it is right."""
    rows, cols = case["tiles"]
    crop = CropTo(0, 0, 1, 1)
    tiles, whole = [View((crop,), (r + 1, c + 1)) for r in range(rows) for c in range(cols)], View((crop,))
    views = [*tiles, whole] if packing.whole_last else [whole, *tiles]
    sides = [(rows, cols) for rows, cols in case.get("sides") or [(side, side)] * len(views)]
    packed = replace(packing, most=case.get("most")).plan(tuple(case["picture"]), views, sides)
    numbers = np.arange(len(views) * side**2, dtype=np.float32).reshape(len(views), side, side, 1)
    shown = [view[:rows, :cols].reshape(-1, 1) for view, (rows, cols) in zip(numbers, sides, strict=True)]
    ours = packed.run(shown)[:, 0]
    theirs = np.array(case["tokens"], np.float32)
    ends, wanted = np.isclose(ours, NEWLINE), np.isclose(theirs, NEWLINE)
    if not ends.any() and wanted.any():
        return "newline missing"
    if packed.tokens != len(theirs) or len(ours) != len(theirs):
        return f"{len(ours)} tokens, planned {packed.tokens}, instead of {len(theirs)}"
    if not np.array_equal(ends, wanted):
        return "newlines in other places"
    if np.abs(ours - theirs).max() <= _NEAR:
        return ""
    return "rows in another order" if _rows(ours[side**2 :]) == _rows(theirs[side**2 :]) else "other features"


def _rows(numbers: F32) -> list[list[float]]:
    """The rows of a map, which newlines end, in an order of their own."""
    ends = np.flatnonzero(np.isclose(numbers, NEWLINE)) + 1
    return sorted(row.round(2).tolist() for row in np.split(numbers, ends))
