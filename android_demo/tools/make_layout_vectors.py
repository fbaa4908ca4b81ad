"""Write what the Kotlin SDK is held to where no golden vector says it: android_demo/vectors/layout.json.

    python android_demo/tools/make_layout_vectors.py          (re)writes it: a minute or two
    python android_demo/tools/make_layout_vectors.py --check  exits with 1 if it would change

The golden vectors of tests/vectors and edgevlm/assets come from transformers and Pillow, and the SDK replays those, too.
These come from the Python package, whose own tests hold it to outsiders: plans of random sizes, resizes by Pillow, and of
the tiny models of many families, prompts' positions, masks, RoPE rows, towers' inputs and packed features; boxes and
points of odd answers. Large values are there as the beginning of a sha256 of their little-endian
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from edgevlm.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec  # noqa: E402
from edgevlm.errors import EdgeVLMError  # noqa: E402
from edgevlm.inputs import grounding as boxes  # noqa: E402
from edgevlm.inputs.layout import (  # noqa: E402
    Layout,
    Span,
    image_tokens,
    merge,
    next_part,
    positions,
    unchanged,
    visible,
)
from edgevlm.inputs.packing import Packing, Pooled  # noqa: E402
from edgevlm.inputs.picture_limits import MAX_PIXELS  # noqa: E402
from edgevlm.inputs.preprocess import normalize, plan, preprocess  # noqa: E402
from edgevlm.inputs.prompt import Prompter  # noqa: E402
from edgevlm.inputs.resample import FILTERS, resize_image  # noqa: E402
from edgevlm.inputs.spec import ImageSpec  # noqa: E402
from edgevlm.inputs.views import CropTo, PadTo, ResizeTo, Sheet, View  # noqa: E402
from edgevlm.io.records import from_dict  # noqa: E402
from edgevlm.models.rope import rope_rows  # noqa: E402
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Rope, RopeScaling  # noqa: E402
from edgevlm.runtimes.ort.states import position_feeds, vision_feeds  # noqa: E402
from edgevlm.verify.views import recorded_picture  # noqa: E402

DECODER = Decoder(10, 12, 4096, (Block((Attention(1, 1, 12),), Mlp(4)),), (0,))
OUT = ROOT / "android_demo" / "vectors" / "layout.json"
# Modules of tests/tiny, with what stands for it in the name: options of its `build`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llava15": {}, "internvl": {}, "qwen2_vl": {}, "qwen2_5_vl": {}, "qwen3_vl": {}, "nanovlm": {}, "deepseek_vl": {},
    "linked": {}, "lfm2_vl": {}, "lfm3_vl": {}, "gemma3": {}, "gemma4": {}, "paligemma": {}, "paddleocr_vl": {},
    "mistral3": {}, "ovis2": {}, "qwen3_5": {}, "minicpmv": {}, "minicpmv4_6": {}, "minicpmv4_6 4.7": {"version": "4_7"},
    "moondream": {}, "granite_docling": {}, "glm4v": {}, "dots_ocr": {}, "hunyuan_vl": {}, "phi4_multimodal": {},
    "granite4_vision": {},
}  # fmt: skip
PICTURES = [[], [(80, 48)], [(61, 143)], [(200, 131), (31, 90), (300, 40)]]
DIGITS = 20  # of a sha256 in hexadecimal


def sha(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:DIGITS]


class Numbers:
    """Whole numbers that a port can draw, too: x becomes (x * 1103515245 + 12345) mod 2^31."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, end: int) -> int:
        self.state = (self.state * 1103515245 + 12345) % 2**31
        return (self.state >> 8) % end

    def side(self) -> int:
        return 1 + self.below((60, 700, 5000, 40000)[self.below(4)])

    def features(self, count: int, width: int) -> Any:
        """float32 (count, width), near -1 to 1."""
        return np.array([self.below(2001) - 1000 for _ in range(count * width)], np.float32).reshape(count, width) / 1000


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
    {"kind": "tiles_then_whole", "side": 512, "longest_edge": 2048, "max_edge": 4096, "short_edge_multiple": 2, "split": True},
    {"kind": "tiles_then_whole", "side": 100, "longest_edge": None, "max_edge": 900, "short_edge_multiple": 3, "split": True},
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


def ropes() -> Iterator[dict[str, Any]]:
    """Rows of far positions."""
    for rope in (
        Rope(10000.0, 128), Rope(1e6, 128, sections=(16, 24, 24)), Rope(5e5, 64, sections=(12, 10, 10), interleaved=True),
        Rope(5e5, 128, RopeScaling(32.0, 1.0, 4.0, 8192)), Rope(1e6, 64, RopeScaling(4.0, 1.0, 32.0, 32768, "yarn"), gain=1.1),
        Rope(10000.0, 96, divisors=tuple(1 + i / 7 for i in range(48)), factor=8.0), Rope(1e6, 256, turning=32),
    ):  # fmt: skip
        at = np.arange(0, 16384) * np.array([[1], [3], [7]][: rope.axes])
        yield {"rope": asdict(rope), "rows": [sha(part) for part in rope_rows(rope, at)]}


def family(name: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    import_module(f"tiny.{name.split()[0]}").build(folder, **options)
    model, _ = read_model(open_checkpoint(str(folder)))
    image, prompt = read_image_spec(folder, model), read_prompt_spec(folder, model)
    width = model.decoder.feature_width
    if image.packing is not None:  # an export takes these rows from the weights
        numbers = Numbers(5)
        rows = {"newline": model.newline, "begin": model.framed, "end": model.framed, "separator": model.separator}
        made = {key: tuple(numbers.features(1, width)[0].tolist()) for key, has in rows.items() if has}
        image = replace(image, packing=replace(image.packing, **made))
    prompter = Prompter(prompt, folder / "tokenizer.json")
    cases = [case(model, image, prompter, sizes) for sizes in PICTURES if not (sizes[1:] and prompt.chat.pictures == 1)]
    found = {"name": name, "preprocess": asdict(image), "vision": asdict(model.vision), "decoder": asdict(model.decoder)}
    return {**found, "width": width, "canvas": prompt.canvas, "cases": cases, "frames": frames(model, image)}


def case(model: Any, image: ImageSpec, prompter: Prompter, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    d, spec = model.decoder, image.among(len(sizes))
    planned = [plan(*size, spec) for size in sizes]
    tokens = [spec.view_tokens(views, size) for views, size in zip(planned, sizes, strict=True)]
    content = [{"type": "image"} for _ in sizes] + [{"type": "text", "text": "What is this?"}]
    ids, layout = prompter.encode([{"role": "user", "content": content}], tokens)
    length, width = layout.length, model.decoder.feature_width
    numbers = Numbers(9)
    features = [numbers.features(count, width) for span in layout.spans for count in span.features]
    inputs = []
    for past, new in ((0, length), (length // 2, length - length // 2), (length, 2), (length + 3000, 5)):
        found = position_feeds(d, layout, past, new)
        inputs.append([past, new, {key: [value.shape, sha(value)] for key, value in found.items()}])
    return {
        "pictures": sizes,
        "tokens": [[t.rows, t.cols] for own in tokens for t in own],
        "length": length,
        "spans": [[span.start, *span.grid, span.gap] for span in layout.spans],
        "behind": [span.behind for span in layout.spans],
        "canvas": np.flatnonzero(np.isin(ids, prompter.spec.canvas)).tolist(),
        "positions": sha(positions(layout, d.axes, 0, length + 3, d.places)),
        "inputs": inputs,
        "packed": sha(*image_tokens(layout, features)),
        "merged": sha(merge(numbers.features(length, d.embed_width), layout, features)),
        "feeds": [feeds(model, spec, views, size) for views, size in zip(planned, sizes, strict=True)],
    }


def feeds(model: Any, spec: ImageSpec, views: list[View], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Of a picture's first and last view."""
    made = preprocess(recorded_picture(*size), spec)
    return [_told(vision_feeds(model, normalize(made[number], spec))) for number in sorted({0, len(views) - 1})]


def _told(given: dict[str, Any]) -> dict[str, Any]:
    return {key: [value.shape, sha(value)] for key, value in given.items()}


def frames(model: Any, image: ImageSpec) -> dict[str, Any] | None:
    """The inputs of a view of several frames: the computed picture and itself, rows from below."""
    count = getattr(model.vision, "frames", 1)
    if count == 1:
        return None
    picture = recorded_picture(64, 64)
    view = np.concatenate([picture[:: 1 - 2 * (i % 2)] for i in range(count)], axis=2)
    return _told(vision_feeds(model, normalize(view, image)))


def packings() -> dict[str, Any]:
    """What has no recording: a video's pooled frames, and a run of several frames in time."""
    numbers = Numbers(77)
    newline = numbers.features(1, 3)[0]
    pooled = Pooled((5, 4), 3, newline)
    rows = pooled.run([numbers.features(20, 3) for _ in range(3)])
    layout = Layout(60, (Span(4, (2, 3), frames=5, step=1.3), Span(40, (1, 7))))
    return {"pooled": sha(rows), "frames": positions(layout, 3).tolist(), "packing": asdict(Packing(2, (1.0, 0.5)))}


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
            '{"bbox_2d": [10, 20, 110.5, 90], "label": "cat"}', "```json\n[", "]\n```", ", ", '{"point": [5, 7]}', "{", "}", '"',
            '{"box_2d": [1, 2, 3], "label": 4}', '{"bbox": [500, 1e2, 40, 3.5e1], "category": " a\\u00e9 \U0001f600 "}', "\\", "\n",
            '{"point_2d": [-1, 50], "bbox_2d": [0, 0, 99999999, 5], "label": "both"}', '{"label": "x", "bbox_2d": [0,0,50,true]}',
            '{"bbox_2d": [0,0,30,30], "bbox_2d": [1,1,2,2]}', '{"a": {"bbox": [1,1,60,60]}}', '{"label": "} {", "bbox": [9,9,70,80]}',
            '{"label": "\\"q\\\\", "point": [0.5, 0.25]}', '{"bbox": [NaN,1,2,3]}', '{"label": null, "bbox": [2,2,44,55]}',
        ],
        "tagged": [
            "<ref>dog</ref>", "<box>[[100, 200, 300, 400]]</box>", "<box>(1,2),(300,400)</box>", "<box>[5, 6]</box>", "<box>", "</box>",
            "<ref>", "</ref>", " and ", ", ", "\n", "<box>[1,2,3]</box>", "<box>[12.5., 3, 4, 5]</box>", "<box>[[1,2,30,40],[5,6,70,80.25]]</box>",
            "<|b|>1 2 30 40<|/b|>", "<|b|>[10,20]x[30,40]<|/b|>", "<|b|>-5 -6 70 80<|/b|>", "<|b|>12345678 1 2 3<|/b|>", "<|b|>", "<|/b|>",
            "<box>[\u0661\u0662, 3, 400, 500]</box>", "<box>[3-5, 7, 900]</box>", "<box>1\u00a02\u30003\u20284</box>", "<ref> \U0001f600 cat </ref>",
        ],
        "tokens": [
            "<loc0100><loc0200><loc0300><loc0400>", " cat", " ; ", "<loc0001>", "<loc_5><loc_6><loc_60><loc_63>", "<loc_7>", "<loc_", ">", "\n",
            " <end> dog; bird", "<loc_12345678>", "<loc_1", "<eos>", "<b c>", "<\u00e9>\u00a0snail", "<loc0999><loc1023>", "<loc9999><loc_\u0663>",
            "<" + "a" * 41 + "> long", "<" + "\U0001f600" * 40 + "> wide",
        ],
    }  # fmt: skip
    for number in range(210):
        form, cut = forms[number % len(forms)], number % len(views)
        text = "".join(chance.choice(pieces[form.form]) for _ in range(chance.randint(1, 9)))
        found, points = boxes.find(text, form, boxes.frame_of((320, 400), views[cut]))
        told = [[b.label, b.x0, b.y0, b.x1, b.y1] for b in found], [[p.label, p.x, p.y] for p in points]
        yield {"form": number % len(forms), "views": cut, "text": text, "boxes": told[0], "points": told[1]}
    yield {"forms": [asdict(form) for form in forms]}


VALUES: list[Any] = [
    0, 1, -1, 2, 300, 255, 256, 1024, 16384, 16385, 2**31 - 1, 2**31, 10**17, 10**19, 0.5, 1.5, 1e300, True, None, "x", "",
    "bicubic", "seconds", "stretch", "x" * 1025, [], {}, [1], [1, 2], [[1, 2]], [1, 2, 3], [0.5, 0.5, 0.5],
]  # fmt: skip
SPEC: dict[str, Any] = {
    **_image(RULES[0]), "tokens": None, "several": {"kind": "stretch", "side": 200},
    "packing": {"most": 9, "newline": [0.5], "framed": False, "begin": [], "end": [], "whole_last": False, "separator": []},
    "video": {
        "fps": 2.0, "most": 64, "rule": RULES[16], "resample": "bicubic", "open": "<", "close": ">", "stamp": "{time}",
        "join": "", "tile": "", "tile_close": "", "row_join": "", "intro": "", "outro": "", "least": 4, "spread": "starts",
        "skip": 1, "longest": 10.0, "slower": [[5.0, 1.0]], "group": 2, "apart": False, "pace": 1.5, "pooled": True,
        "token": "<v>", "like_text": True,
    },
}  # fmt: skip


def specs() -> Iterator[dict[str, Any]]:
    """Which specs are accepted in which one field is another value, is missing (the last but one) or another's name."""
    yield {"spec": SPEC, "fields": {"/".join(path): _taken(SPEC, path) for path in _paths(SPEC)}}
    for rule in RULES:
        spec = _image(rule)
        yield {"spec": spec, "fields": {"/".join(path): _taken(spec, path) for path in _paths(spec) if path[0] == "rule"}}


def _paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inner in value.items():
        yield (*before, key)
        if isinstance(inner, dict):
            yield from _paths(inner, (*before, key))


def _taken(spec: dict[str, Any], path: tuple[str, ...]) -> str:
    """A digit for each of VALUES: 1 where it is accepted."""
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
    return "".join(str(int(_accepted(copy))) for copy, _ in changed)


def _accepted(spec: dict[str, Any]) -> bool:
    try:
        from_dict(ImageSpec, spec, "preprocess.json")
    except EdgeVLMError:
        return False
    return True


def prompts() -> Iterator[dict[str, Any]]:
    """Where calls end that read prompts with pictures, and how much of one prompt is another's beginning."""
    numbers = Numbers(321)
    for number in range(120):
        mask = ("causal", "image", "prompt", "prefix")[number % 4]
        axes, places = ((1, "grid"), (3, "grid"), (3, "canvas"), (3, "line"))[numbers.below(4)]
        ropes = {"main": Rope(1e4, 12, sections=(2, 2, 2) if axes == 3 else ())}
        d = replace(DECODER, mask=mask, ropes=ropes, places=places)
        old = _random_layout(numbers, places)
        spans = [replace(span, grid=span.grid[::-1]) if numbers.below(4) == 0 else span for span in old.spans]
        least = max((span.start + span.tokens + span.behind for span in spans), default=1)
        new = Layout(max(least, old.length - numbers.below(3)), tuple(spans[: numbers.below(4) + 1]))
        length = 1 + numbers.below(min(old.length, new.length))
        kept = unchanged(d, old, new, length)
        ends, start, most = [], 0, 1 + numbers.below(9)
        while start < old.length:
            ends.append(start := next_part(old, mask, start, old.length, most))
        window = numbers.below(7) or None
        seen = visible(old, mask, old.length // 3, old.length - old.length // 3, window)
        layouts = [
            [each.length, [[s.start, *s.grid, s.place, s.behind] for s in each.spans]] for each in (old, new)
        ]
        yield {"mask": mask, "axes": axes, "places": places, "layouts": layouts, "length": length, "kept": kept,
               "most": most, "ends": ends, "window": window, "seen": sha(seen)}  # fmt: skip


def _random_layout(numbers: Numbers, places: str) -> Layout:
    at, spans = 1 + numbers.below(4), list[Span]()
    for _ in range(numbers.below(4)):
        grid = (1 + numbers.below(4), 1 + numbers.below(4))
        behind = numbers.below(3) if places == "canvas" else 0
        spans.append(Span(at, grid, behind=behind))
        at = spans[-1].start + spans[-1].tokens + behind + 1 + numbers.below(5)
    return Layout(at + numbers.below(5), tuple(spans))


def text() -> str:
    with tempfile.TemporaryDirectory() as folder:
        families = [family(name, options, Path(folder) / name) for name, options in FAMILIES.items()]
    *answered, forms = answers()
    parts: dict[str, Any] = {
        "plans": list(plans()), "specs": list(specs()), "prompts": list(prompts()), "resizes": list(resizes()), "ropes": list(ropes()), "answers": answered,
        "families": families,
    }  # fmt: skip
    whole = {"values": VALUES, "conversions": conversions(), "packings": packings(), **forms}
    lines = [f'"{name}": {_line(value)}' for name, value in whole.items()]
    lines += [f'"{name}": [\n{",".join(chr(10) + _line(each) for each in value)[1:]}\n]' for name, value in parts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the file would change")
    check = parser.parse_args().check
    made = text()
    if check:
        return int(not OUT.is_file() or OUT.read_text("utf-8") != made)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
