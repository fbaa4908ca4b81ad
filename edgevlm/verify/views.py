"""The gate on how a picture is cut: what each family's own image processor made of pictures of many sizes, replayed.

Recorded by tests/vectors/make_views.py, which knows nothing of edgevlm: assets/views.json.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import plan, preprocess
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.records import from_dict
from edgevlm.types import U8
from edgevlm.verify.report import Row


def check_views(spec: ImageSpec) -> Row:
    """Views of the recorded pictures by a rule of the same kind as the bundle's, byte for byte."""
    recorded = json.loads((importlib.resources.files("edgevlm") / "assets" / "views.json").read_text(encoding="utf-8"))
    check = "sizes whose views differ from the original processor's"
    known = recorded.get(spec.rule.kind)
    if known is None:
        return Row("inputs", check, 0, 0, True, f"none recorded for the rule {spec.rule.kind!r}", "numbers", "")
    rule = replace(spec, rule=from_dict(type(spec.rule), known["rule"], "views.json"), resample=known["resample"])
    wrong = [f"{case['width']} x {case['height']}: {said}" for case in known["cases"] if (said := _fault(rule, case))]
    note = wrong[0] if wrong else f"{len(known['cases'])} pictures, rule {spec.rule.kind!r}"
    return Row("inputs", check, len(wrong), 0, not wrong, note, "numbers", f"picture {wrong[0]}" if wrong else "")


def _fault(spec: ImageSpec, case: dict[str, Any]) -> str:
    """What is wrong with the views of a recorded case; nothing where they are right."""
    width, height = case["width"], case["height"]
    try:
        planned = plan(width, height, spec)
        views = preprocess(Image.fromarray(recorded_picture(width, height)), spec)
    except EdgeVLMError:
        return "refused"
    if len(views) != case["views"]:
        return f"{len(views)} views instead of {case['views']}"
    wanted = [tuple(size) for size in case.get("sizes") or [case["size"]] * len(views)]
    for sizes in ([view.size for view in planned], [(view.shape[1], view.shape[0]) for view in views]):
        if sizes != wanted:
            return f"views of {sorted(set(sizes))} pixels instead of {sorted(set(wanted))}"
    places = [view.place for view in planned if view.place]
    if len(views) > 1 and (tiles := case.get("tiles")):
        rows, cols = max(places, default=(0, 0))
        if [rows, cols] != tiles:
            return f"{rows} x {cols} tiles instead of {tiles[0]} x {tiles[1]}"
        if places != list(itertools.product(range(1, rows + 1), range(1, cols + 1))):
            return "tiles in another order than row by row"
    if (whole := case.get("whole")) is not None:  # its pixels are not recorded
        if planned[whole].place:
            return "the whole picture in another place"
        del views[whole]
    found = hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest()
    return "" if found == case["sha256"] else "other pixels"


def recorded_picture(width: int, height: int) -> U8:
    """(height, width, 3): the picture that tests/vectors/README.md defines."""
    y, x, c = np.meshgrid(*(np.arange(n, dtype=np.uint32) for n in (height, width, 3)), indexing="ij")
    smooth = (x * x * (1 + c) + y * y * (3 - c) + 64 * x + 32 * y) >> np.uint32(6)
    rough = ((x * np.uint32(73856093)) ^ (y * np.uint32(19349663)) ^ (c * np.uint32(83492791))) >> np.uint32(27)
    rgb: U8 = ((smooth + rough) & np.uint32(255)).astype(np.uint8)
    return rgb
