"""Write what the Kotlin SDK makes of pictures, specs and answers: android_demo/vectors/inputs.json.

    python android_demo/tools/make_input_vectors.py          (re)writes it: seconds
    python android_demo/tools/make_input_vectors.py --check  exits with 1 if it would change

The golden vectors of tests/vectors and edgevlm/assets come from transformers and Pillow, and the SDK replays those.
These are more of the same: plans of random sizes by rules of every kind, and which specs are taken, as the Python
package does it, whose own tests hold it to outsiders; resizes, transparency and orientation by Pillow; boxes and points
of odd answers. Large values are there as the beginning of a sha256 of their little-endian bytes.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from drawn import ROOT, Numbers, main, sha, to_json
from PIL import Image

sys.path.insert(0, str(ROOT))

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs import grounding as boxes
from edgevlm.inputs.picture_limits import MAX_PIXELS
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.resample import FILTERS, resize_image
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.views import CropTo, PadTo, ResizeTo, Sheet, View
from edgevlm.io.records import from_dict
from edgevlm.verify.views import recorded_picture


def view_text(view: View) -> str:
    place = f"@{view.place[0]},{view.place[1]}" if view.place else ""
    return ">".join(map(_step_text, view.steps)) + place


def _step_text(step: Any) -> str:
    if isinstance(step, ResizeTo):
        return f"r{step.width}x{step.height}{step.resample}"
    if isinstance(step, PadTo):
        color = ",".join(map(str, step.color))
        return f"p{step.width}x{step.height}+{step.left}+{step.top}#{color}"
    if isinstance(step, CropTo):
        return f"c{step.width}x{step.height}+{step.left}+{step.top}"
    assert isinstance(step, Sheet)
    return f"s{step.columns}[{' '.join(map(view_text, step.parts))}]"


def _pixels(views: list[View]) -> int:
    """Of the largest picture that is made on the way."""
    steps = [step for view in views for step in view.steps if not isinstance(step, CropTo)]
    inner = [_pixels(list(step.parts)) for step in steps if isinstance(step, Sheet)]
    return max([step.width * step.height for step in steps] + inner, default=0)


def planned(spec: ImageSpec, width: int, height: int, budget: int | None) -> str:
    try:
        views = plan(width, height, spec, max_tiles=budget)
        if _pixels(views) > MAX_PIXELS:
            return "refused"
        tokens = spec.view_tokens(views, (width, height))
    except EdgeVLMError:
        return "refused"
    told = " ".join(f"{t.rows}x{t.cols}" for t in tokens)
    return f"{' '.join(map(view_text, views))} = {told}"


def plans() -> Iterator[dict[str, Any]]:
    """Of rules of every kind, 100 sizes each; a sha256 of 20 plans each, one to a line."""
    recorded = json.loads((ROOT / "edgevlm" / "assets" / "views.json").read_text("utf-8"))
    for number, rule in enumerate([*RULES, *(known["rule"] for known in recorded.values())]):
        numbers, texts = Numbers(number + 1), []
        spec = from_dict(ImageSpec, _image(rule), "rule")
        for _ in range(100):
            width, height = numbers.side(), numbers.side()
            budget = numbers.below(3) and 1 + numbers.below(20)
            texts.append(planned(spec, width, height, budget or None))
        found = [sha("\n".join(texts[start : start + 20]).encode()) for start in range(0, 100, 20)]
        yield {"rule": rule, "seed": number + 1, "refused": texts.count("refused"), "plans": found}


def _image(rule: dict[str, Any]) -> dict[str, Any]:
    numbers = {"rescale_factor": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3, "token_pixels": 8}
    return {"version": 2, "rule": rule, "resample": "bicubic", "background": [255] * 3, **numbers}


RULES: list[dict[str, Any]] = [
    {"kind": "stretch", "side": 384},
    {"kind": "crop", "shortest": 336, "side": 336},
    {"kind": "pad", "side": 336, "color": [122, 116, 104]},
    {"kind": "fit", "side": 384, "least": 14, "color": [127, 127, 127]},
    {"kind": "tiles_then_whole", "side": 512, "longest_edge": 2048, "max_edge": 4096, "short_edge_multiple": 2,
     "split": True},
    {"kind": "tiles_then_whole", "side": 100, "longest_edge": None, "max_edge": 900, "short_edge_multiple": 3,
     "split": True},
    {"kind": "whole_then_tiles", "side": 512, "longest_edge": 2048, "enlarge": True, "whole_resample": "bilinear"},
    {"kind": "ratio_tiles", "side": 448, "least": 1, "most": 40, "thumbnail": True},
    {"kind": "ratio_tiles", "side": 512, "least": 2, "most": 13, "thumbnail": False, "longest": 5, "numbered": True,
     "dense": {"most": 30, "scale": 0.9, "above": 0.3, "below": 2.5}},
    {"kind": "best_grid", "side": 384, "grids": [[r, c] for r in range(1, 7) for c in range(1, 7)]},
    {"kind": "covering_tiles", "side": 448, "most": 9},
    {"kind": "within", "unit": 28, "longest": 1540},
    {"kind": "native", "unit": 28, "least": 3136, "most": 12845056},
    {"kind": "native_grown", "unit": 28, "least": 147456, "most": 2822400},
    {"kind": "native_scaled", "unit": 28, "least": 12544, "most": 9633792},
    {"kind": "native_or_tiles", "patch": 16, "unit": 32, "least": 65536, "most": 262144, "large": 524288, "side": 512,
     "fewest": 2, "count": 10, "thumbnail": True},
    {"kind": "native_frames", "unit": 28, "least": 100352, "most": 602112, "cap": 19267584, "count": 17},
    {"kind": "native_frames", "unit": 32, "least": 4096, "most": 25165824, "together": True, "cap": 786432, "count": 9},
    {"kind": "whole_then_slices", "unit": 14, "side": 448, "most": 9},
    {"kind": "whole_then_slices", "unit": 32, "side": 100, "most": 36},
    {"kind": "filled", "unit": 48, "tokens": 280},
    {"kind": "overlapping_tiles", "side": 378, "margin": 56, "most": 12},
    {"kind": "padded_tiles", "side": 448, "patch": 14, "unit": 28, "most": 36, "color": [255, 255, 255],
     "whole_resample": "bicubic"},
]  # fmt: skip


def resizes() -> Iterator[dict[str, Any]]:
    """Of the computed picture; a sha256 of 10 results each."""
    for number, name in enumerate(FILTERS):
        numbers, found = Numbers(1000 + number), []
        for _ in range(6):
            results = []
            for _ in range(10):
                width, height, wide, high = (1 + numbers.below((9, 60, 300)[numbers.below(3)]) for _ in range(4))
                picture = Image.fromarray(recorded_picture(width, height))
                results.append(resize_image(picture, (wide, high), name).tobytes())
            found.append(sha(*results))
        yield {"resample": name, "seed": 1000 + number, "results": found}


def conversions() -> dict[str, Any]:
    """Every value of a channel over two backgrounds with every alpha, and a picture by EXIF's orientations."""
    values, alphas = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([values, values[:, ::-1], values, alphas], axis=2).astype(np.uint8)
    over = []
    for background in ((255, 255, 255), (3, 100, 250)):
        canvas = Image.new("RGBA", (256, 256), (*background, 255))
        made = Image.alpha_composite(canvas, Image.fromarray(rgba)).convert("RGB").tobytes()
        over.append({"background": background, "sha256": sha(made)})
    turned = [
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
    ]  # fmt: skip
    picture = Image.fromarray(recorded_picture(31, 17))
    return {"over": over, "oriented": [sha(picture.transpose(each).tobytes()) for each in turned]}


def answers() -> Iterator[dict[str, Any]]:
    """Boxes and points of answers that are put together from pieces, sense and nonsense."""
    chance = random.Random(3)
    forms = [
        boxes.Grounding("json"), boxes.Grounding("json", 1000, y_first=True), boxes.Grounding("json", 100, middle=True),
        boxes.Grounding("tagged", 1000, open="<box>", close="</box>", label_open="<ref>", label_close="</ref>"),
        boxes.Grounding("tagged", 0, open="<|b|>", close="<|/b|>"),
        boxes.Grounding("tokens", 1024, y_first=True, open="<loc", close=">"),
        boxes.Grounding("tokens", 64, middle=True, open="<loc_", close=">"),
    ]  # fmt: skip
    views = [
        [View((ResizeTo(300, 200),))],
        [View((PadTo(400, 400, 40, 0, (0, 0, 0)), ResizeTo(96, 96)))],
        [View((ResizeTo(104, 160), CropTo(4, 32, 96, 96)))],
        [View((ResizeTo(300, 200), PadTo(400, 400, 50, 100, (0, 0, 0)), CropTo(0, 0, 200, 200)), (1, 1))],
    ]
    pieces = {
        "json": [
            '{"bbox_2d": [10, 20, 110.5, 90], "label": "cat"}',
            "```json\n[",
            "]\n```",
            ", ",
            '{"point": [5, 7]}',
            "{",
            "}",
            '"',
            '{"box_2d": [1, 2, 3], "label": 4}',
            '{"bbox": [500, 1e2, 40, 3.5e1], "category": " a\\u00e9 \U0001f600 "}',
            "\\",
            "\n",
            '{"point_2d": [-1, 50], "bbox_2d": [0, 0, 99999999, 5], "label": "both"}',
            '{"label": "x", "bbox_2d": [0,0,50,true]}',
            '{"bbox_2d": [0,0,30,30], "bbox_2d": [1,1,2,2]}',
            '{"a": {"bbox": [1,1,60,60]}}',
            '{"label": "} {", "bbox": [9,9,70,80]}',
            '{"label": "\\"q\\\\", "point": [0.5, 0.25]}',
            '{"bbox": [NaN,1,2,3]}',
            '{"label": null, "bbox": [2,2,44,55]}',
        ],
        "tagged": [
            "<ref>dog</ref>",
            "<box>[[100, 200, 300, 400]]</box>",
            "<box>(1,2),(300,400)</box>",
            "<box>[5, 6]</box>",
            "<box>",
            "</box>",
            "<ref>",
            "</ref>",
            " and ",
            ", ",
            "\n",
            "<box>[1,2,3]</box>",
            "<box>[12.5., 3, 4, 5]</box>",
            "<box>[[1,2,30,40],[5,6,70,80.25]]</box>",
            "<|b|>1 2 30 40<|/b|>",
            "<|b|>[10,20]x[30,40]<|/b|>",
            "<|b|>-5 -6 70 80<|/b|>",
            "<|b|>1 2 12345678 60<|/b|>",
            "<|b|>",
            "<|/b|>",
            "<box>[\u0661\u0662, 3, 400, 500]</box>",
            "<box>[3-5, 7, 900]</box>",
            "<box>1\u00a02\u30003\u20284</box>",
            "<ref> \U0001f600 cat </ref>",
        ],
        "tokens": [
            "<loc0100><loc0200><loc0300><loc0400>",
            " cat",
            " ; ",
            "<loc0001>",
            "<loc_5><loc_6><loc_60><loc_63>",
            "<loc_7>",
            "<loc_",
            ">",
            "\n",
            " <end> dog; bird",
            "<loc_12345678>",
            "<loc_1",
            "<eos>",
            "<b c>",
            "<\u00e9>\u00a0snail",
            "<loc0999><loc1023>",
            "<loc9999><loc_\u0663>",
            "<" + "a" * 41 + "> long",
            "<" + "\U0001f600" * 40 + "> wide",
        ],
    }
    for number in range(140):
        form, cut = forms[number % len(forms)], number % len(views)
        text = "".join(chance.choice(pieces[form.form]) for _ in range(chance.randint(1, 9)))
        found, points = boxes.find(text, form, boxes.frame_of((320, 400), views[cut]))
        told = [[b.label, b.x0, b.y0, b.x1, b.y1] for b in found], [[p.label, p.x, p.y] for p in points]
        yield {"form": number % len(forms), "views": cut, "text": text, "boxes": told[0], "points": told[1]}
    yield {"forms": [asdict(form) for form in forms]}


VALUES: list[Any] = [
    0, 1, -1, 2, 300, 255, 256, 1024, 16384, 16385, 2**31 - 1, 2**31, 10**17, 10**19, 0.5, 1.5, 1e300, True, None, "x",
    "", "bicubic", "seconds", "stretch", "x" * 1025, [], {}, [1], [1, 2], [[1, 2]], [1, 2, 3], [0.5, 0.5, 0.5],
]  # fmt: skip
SPEC: dict[str, Any] = {
    **_image(RULES[0]), "tokens": None, "several": {"kind": "stretch", "side": 200},
    "packing": {
        "most": 9, "newline": [0.5], "framed": False, "begin": [], "end": [], "whole_last": False, "separator": [],
    },
    "video": {
        "fps": 2.0, "most": 64, "rule": RULES[16], "resample": "bicubic", "open": "<", "close": ">", "stamp": "{time}",
        "join": "", "tile": "", "tile_close": "", "row_join": "", "intro": "", "outro": "", "least": 4,
        "spread": "starts", "skip": 1, "longest": 10.0, "slower": [[5.0, 1.0]], "group": 2, "apart": False,
        "pace": 1.5, "pooled": True, "token": "<v>", "like_text": True,
    },
}  # fmt: skip


SIZES = [(1, 1), (7, 3000), (640, 480), (60000, 1300)]


def specs() -> Iterator[dict[str, Any]]:
    """Which specs are accepted in which one field is another value, is missing (the last but one) or another's name,
    and a sha256 of what those plan for pictures of SIZES."""
    yield {"spec": SPEC, "fields": {"/".join(path): _taken(SPEC, path) for path in _paths(SPEC)}}
    for rule in RULES:
        spec = _image(rule)
        found = {"/".join(path): _taken(spec, path) for path in _paths(spec) if path[0] == "rule"}
        yield {"spec": spec, "fields": found}


def _paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inner in value.items():
        yield (*before, key)
        if isinstance(inner, dict):
            yield from _paths(inner, (*before, key))


def _taken(spec: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    """A digit for each of VALUES, 1 where it is accepted; and of the plans."""
    changed = []
    for value in [*VALUES, None, None]:
        copy = json.loads(json.dumps(spec))
        inner = copy
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        changed.append((copy, inner))
    del changed[-2][1][path[-1]]
    changed[-1][1][path[-1] + "_"] = changed[-1][1].pop(path[-1])
    read = [_read(copy) for copy, _ in changed]
    texts = [planned(spec, *size, None) for spec in read if spec is not None for size in SIZES]
    return ["".join(str(int(spec is not None)) for spec in read), sha("\n".join(texts).encode())]


def _read(spec: dict[str, Any]) -> ImageSpec | None:
    try:
        return from_dict(ImageSpec, spec, "preprocess.json")
    except EdgeVLMError:
        return None


def logarithms() -> str:
    """Of the shapes of all grids of up to 257 tiles, and of some pictures."""
    shapes = [cols / rows for cols in range(1, 258) for rows in range(1, 257 // cols + 1)]
    return sha(np.array([math.log(shape) for shape in [*shapes, 3.0, 1e-5, 65535.0, 4 / 3, 0.999]]))


def text() -> str:
    *answered, forms = answers()
    values = {"values": VALUES, "sizes": SIZES, "logarithms": logarithms(), "conversions": conversions(), **forms}
    return to_json(values, {"plans": plans(), "specs": specs(), "resizes": resizes(), "answers": answered})


if __name__ == "__main__":
    sys.exit(main("inputs.json", text, __doc__))
