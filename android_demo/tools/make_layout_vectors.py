"""Write what the Kotlin SDK makes of prompts with pictures: android_demo/vectors/layout.json.

    python android_demo/tools/make_layout_vectors.py          (re)writes it: half a minute
    python android_demo/tools/make_layout_vectors.py --check  exits with 1 if it would change

As the Python package does it, whose own tests hold it to outsiders: of tiny models of many families, prompts'
positions, masks, RoPE rows, towers' inputs and packed features; RoPE rows of far positions; and where random prompts
are cut. Large values are there as the beginning of a sha256 of their little-endian bytes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from drawn import ROOT, Numbers, main, sha, to_json

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.inputs import layout as lay
from edgevlm.inputs.layout import Layout, Span
from edgevlm.inputs.packing import Pooled
from edgevlm.inputs.preprocess import normalize, plan, preprocess
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Stretch
from edgevlm.inputs.views import View
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Rope, RopeScaling
from edgevlm.models.towers import tables
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.runtimes.ort.states import position_feeds, vision_feeds
from edgevlm.verify.views import recorded_picture

PLAIN = ImageSpec(2, Stretch(8), "bicubic", (0, 0, 0), 1 / 255, (0.5,) * 3, (0.5,) * 3, 1)
DECODER = Decoder(10, 12, 4096, (Block((Attention(1, 1, 12),), Mlp(4)),), (0,))
# Modules of tests/tiny, with what stands for it in the name: options of its `build`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llava15": {}, "internvl": {}, "qwen2_vl": {}, "qwen2_5_vl": {}, "qwen3_vl": {}, "nanovlm": {}, "deepseek_vl": {},
    "linked": {}, "lfm2_vl": {}, "lfm3_vl": {}, "gemma3": {}, "gemma4": {}, "paligemma": {}, "paddleocr_vl": {},
    "mistral3": {}, "ovis2": {}, "qwen3_5": {}, "minicpmv": {}, "minicpmv4_6": {},
    "minicpmv4_6 4.7": {"version": "4_7"}, "moondream": {}, "granite_docling": {}, "glm4v": {}, "dots_ocr": {},
    "hunyuan_vl": {}, "phi4_multimodal": {}, "granite4_vision": {},
}  # fmt: skip
PICTURES = [[], [(80, 48)], [(61, 143)], [(200, 131), (31, 90), (300, 40)]]


def ropes() -> Iterator[dict[str, Any]]:
    """Rows of far positions."""
    for rope in (
        Rope(10000.0, 128), Rope(1e6, 128, sections=(16, 24, 24)),
        Rope(5e5, 64, sections=(12, 10, 10), interleaved=True), Rope(5e5, 128, RopeScaling(32.0, 1.0, 4.0, 8192)),
        Rope(1e6, 64, RopeScaling(4.0, 1.0, 32.0, 32768, "yarn"), gain=1.1),
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
    found = {
        "name": name,
        "preprocess": asdict(image),
        "vision": asdict(model.vision),
        "decoder": asdict(model.decoder),
    }
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
        inputs.append([past, new, _told(position_feeds(d, layout, past, new))])
    return {
        "pictures": sizes,
        "tokens": [[t.rows, t.cols] for own in tokens for t in own],
        "length": length,
        "spans": [[span.start, *span.grid, span.gap] for span in layout.spans],
        "behind": [span.behind for span in layout.spans],
        "canvas": np.flatnonzero(np.isin(ids, prompter.spec.canvas)).tolist(),
        "positions": sha(lay.positions(layout, d.axes, 0, length + 3, d.places)),
        "inputs": inputs,
        "packed": sha(*lay.image_tokens(layout, features)),
        "merged": sha(lay.merge(numbers.features(length, d.embed_width), layout, features)),
        "feeds": [feeds(model, spec, views, size) for views, size in zip(planned, sizes, strict=True)],
    }


def feeds(model: Any, spec: ImageSpec, views: list[View], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Of a picture's first and last view."""
    made = preprocess(recorded_picture(*size), spec)
    return [_told(vision_feeds(model, normalize(made[number], spec))) for number in sorted({0, len(views) - 1})]


def _told(given: dict[str, Any]) -> dict[str, Any]:
    return {key: sha(str(list(value.shape)).encode(), value) for key, value in given.items()}


def frames(model: Any, image: ImageSpec) -> dict[str, Any] | None:
    """The inputs of a view of several frames: the computed picture and itself, rows from below."""
    count = getattr(model.vision, "frames", 1)
    if count == 1:
        return None
    picture = recorded_picture(64, 64)
    view = np.concatenate([picture[:: 1 - 2 * (i % 2)] for i in range(count)], axis=2)
    return _told(vision_feeds(model, normalize(view, image)))


def towers() -> Iterator[dict[str, Any]]:
    """Inputs of towers with heads and tables of many sizes, for views of many shapes, in patches of one pixel."""
    numbers = Numbers(55)
    for number, head in enumerate((64, 72, 80, 88, 96, 104, 112, 128) * 4):
        block = Block((Attention(1, 1, head, rope="patches"),), Mlp(4))
        table = {"table": (16, 27, 70, 32)[numbers.below(4)], "resample": tables.KINDS[number % len(tables.KINDS)]}
        if table["resample"] in tables.DENSE:
            table["table"] = (8, 9, 16, 27)[numbers.below(4)]
        window = (None, 4, 8)[numbers.below(3)]
        more = {
            "staggered": numbers.below(2) > 0,
            "convolving": (0,) * numbers.below(2),
            "filler": numbers.below(3) / 7,
        }
        made = QwenVit(1, 2, window, head, 1, (), block, (1e4, 1e6)[numbers.below(2)], **table, **more)
        width, height = (2 + 2 * numbers.below(30) for _ in range(2))
        pixels = normalize(recorded_picture(width, height), PLAIN)
        yield {"vision": asdict(made), "size": [width, height], "feeds": _told(made.feeds(pixels))}


def packings() -> dict[str, Any]:
    """What has no recording: a video's pooled frames, and a run of several frames in time."""
    numbers = Numbers(77)
    newline = numbers.features(1, 3)[0]
    pooled = Pooled((5, 4), 3, newline)
    rows = pooled.run([numbers.features(20, 3) for _ in range(3)])
    layout = Layout(60, (Span(4, (2, 3), frames=5, step=1.3), Span(40, (1, 7))))
    return {"pooled": sha(rows), "frames": lay.positions(layout, 3).tolist()}


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
        kept = lay.unchanged(d, old, new, length)
        ends, start, most = [], 0, 1 + numbers.below(9)
        while start < old.length:
            ends.append(start := lay.next_part(old, mask, start, old.length, most))
        window = numbers.below(7) or None
        seen = lay.visible(old, mask, old.length // 3, old.length - old.length // 3, window)
        layouts = [[each.length, [[s.start, *s.grid, s.place, s.behind] for s in each.spans]] for each in (old, new)]
        yield {"mask": mask, "axes": axes, "places": places, "layouts": layouts, "length": length, "kept": kept,
               "most": most, "ends": ends, "window": window, "seen": sha(seen)}  # fmt: skip


def canvases() -> str:
    """Positions of prompts with pictures of many shapes on canvases, most of them in slices."""
    numbers, found = Numbers(91), []
    for _ in range(150):
        at, spans = 1 + numbers.below(4), list[Span]()
        for _ in range(1 + numbers.below(2)):
            grid = (1 + numbers.below(40), 1 + numbers.below(40))
            rows, cols = 1 + numbers.below(4), 1 + numbers.below(4)
            slices = (
                [(row, col) for row in range(1, rows + 1) for col in range(1, cols + 1)] if numbers.below(4) else []
            )
            size = (1 + numbers.below(12), 1 + numbers.below(12))
            for place in [None, *slices]:
                spans.append(Span(at, size if place else grid, place=place, behind=2 + numbers.below(2)))
                at = spans[-1].start + spans[-1].tokens + spans[-1].behind + 1
        found.append(lay.positions(Layout(at + numbers.below(5), tuple(spans)), 3, places="canvas"))
    return sha(*found)


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
    values = {"packings": packings(), "canvases": canvases()}
    return to_json(values, {"ropes": ropes(), "towers": towers(), "prompts": prompts(), "families": families})


if __name__ == "__main__":
    sys.exit(main("layout.json", text, __doc__))
