"""Write the golden vectors of where patches and tokens stand, by transformers' own functions.

    python tests/vectors/make_places.py          (re)writes edgevlm/assets/places.json
    python tests/vectors/make_places.py --check  exits with 1 if it would change

tokens: positions (time, row, column) of prompts with pictures, by get_rope_index; canvas: the same of a model that puts
a picture's views on one canvas, where a span has its place and the number of tokens behind it that stand there.
patches: row and column of each, four to a token. tables: sin(0), sin(1), ... as SIDE x SIDE rows of one value,
resampled to each patch: with corners on corners, with centers in proportion, so by a triangle filter that smooths where
it shrinks, so by a bicubic, the nearest, and one by steps of a rounded fraction. halved: the same of towers that join
2 x 2 patches on the way, and then 2 x 2 of these. asked: the same of a tower that MiniCPM-V 2.6's published code
reads by queries, with the waves of each patch's column and row. number: positions ((index,) column, row, number of the
picture) of prompts whose pictures' rows end in a token more, between two others; a span's tokens are all of these.
Nothing here imports edgevlm.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionEmbeddings
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLModel
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6Merger
from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalVisionConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalVisionEmbeddings
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_nearest_position_ids,
    get_vision_position_ids,
    get_vision_window_index,
)

SHIPPED = Path(__file__).parents[2] / "edgevlm" / "assets" / "places.json"
MERGE, SIDE = 2, 5
GRIDS = [(2, 2), (2, 6), (6, 4), (4, 10), (10, 14), (22, 18)]
HALVED_GRIDS = [(4, 4), (4, 12), (8, 4), (12, 20)]
FRAMED = [(9, []), (25, [(3, 2, 5)]), (60, [(1, 3, 2), (14, 2, 6), (34, 4, 4)])]
PROMPTS = [(9, []), (20, [(3, 2, 5)]), (40, [(0, 3, 2), (10, 1, 6), (18, 4, 4)])]  # length; start, rows, columns


def tokens(length: int, spans: list[tuple[int, int, int]]) -> dict[str, Any]:
    kinds = torch.zeros(1, length, dtype=torch.int32)
    for start, rows, cols in spans:
        kinds[0, start : start + rows * cols] = 1
    grids = torch.tensor([[1, rows * MERGE, cols * MERGE] for _, rows, cols in spans]) if spans else None
    ids = torch.zeros(1, length, dtype=torch.long)
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE))
    model = SimpleNamespace(config=config, get_vision_position_ids=partial(Qwen2VLModel.get_vision_position_ids, None))
    places, _ = Qwen2VLModel.get_rope_index(
        model, ids, kinds, image_grid_thw=grids, attention_mask=torch.ones_like(ids)
    )
    return {"length": length, "spans": spans, "places": places[:, 0].tolist()}


def numbered(length: int, spans: list[tuple[int, int, int]], axes: int) -> dict[str, Any]:
    kinds = torch.zeros(1, length, dtype=torch.int32)
    for start, rows, cols in spans:
        kinds[0, start : start + rows * (cols + 1) + 2] = 1
    grids = torch.tensor([[1, rows * MERGE, cols * MERGE] for _, rows, cols in spans]) if spans else None
    ids = torch.zeros(1, length, dtype=torch.long)
    text = SimpleNamespace(rope_parameters={"mrope_section": [1] * axes})
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE), text_config=text)
    model = SimpleNamespace(
        config=config, get_vision_position_ids=partial(HunYuanVLModel.get_vision_position_ids, None)
    )
    places, _ = HunYuanVLModel.get_rope_index(model, ids, kinds, grids, torch.ones_like(ids))
    return {"length": length, "spans": spans, "places": places[:, 0].tolist()}


TEXT, PICTURE, OPEN, CLOSE, SLICE, SLICE_END, LINE = range(7)  # ids of tokens
# Of each picture: tokens of text before it, tokens of the whole, rows and columns of slices, tokens of each, and lines
# behind it.
CANVASES: list[list[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], int]]] = [
    [(3, (2, 3), (0, 0), (0, 0), 1)],
    [(0, (3, 2), (2, 2), (3, 4), 0), (2, (1, 5), (1, 3), (2, 1), 2)],
    [(5, (4, 2), (3, 1), (2, 4), 1), (0, (2, 2), (0, 0), (0, 0), 1), (1, (7, 1), (4, 2), (5, 3), 0)],
]


def canvas(pictures: list[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], int]]) -> dict[str, Any]:
    ids: list[int] = []
    spans: list[tuple[int, int, int, tuple[int, int] | None, int]] = []
    sizes: list[list[int]] = []

    def view(grid: tuple[int, int], place: tuple[int, int] | None, around: tuple[int, int]) -> None:
        ids.append(around[0])
        spans.append((len(ids), *grid, place, 0))
        sizes.append([4 * grid[0], 4 * grid[1]])
        ids.extend([PICTURE] * (grid[0] * grid[1]) + [around[1]])

    for text, whole, (rows, cols), each, lines in pictures:
        ids += [TEXT] * text
        view(whole, None, (OPEN, CLOSE))
        for row in range(rows):
            ids += [LINE] if row else []
            for col in range(cols):
                view(each, (row + 1, col + 1), (SLICE, SLICE_END))
        ids += [LINE] * lines
    ids += [TEXT] * 4
    for number, (start, high, wide, place, _) in enumerate(spans):
        end = start + high * wide
        behind = next(i for i in range(end, len(ids)) if ids[i] in (TEXT, PICTURE)) - end
        spans[number] = (start, high, wide, place, behind)
    names = {"slice_start": SLICE, "slice_end": SLICE_END, "image_start": OPEN, "image_end": CLOSE, "newline": LINE}
    model = SimpleNamespace(config=SimpleNamespace(downsample_mode="16x", **{f"{k}_id": v for k, v in names.items()}))
    for name in ("_group_visual_frames", "get_vision_position_ids"):
        setattr(model, name, partial(getattr(MiniCPMV4_7Model, name), model))
    model._frame_end_idx = MiniCPMV4_7Model._frame_end_idx
    given, kinds = torch.tensor([ids]), torch.tensor([[int(token == PICTURE) for token in ids]])
    places, _ = MiniCPMV4_7Model.get_rope_index(model, given, kinds, torch.tensor(sizes))
    return {"length": len(ids), "spans": spans, "places": places[:, 0].tolist()}


def halved(rows: int, cols: int) -> list[list[int]]:
    """Row and column of each patch, in the order in which they become the rows of one map of each token."""
    order, _ = get_vision_window_index(torch.tensor([[1, rows, cols]]), 1, window_size=MERGE, patch_size=1)
    numbers = order.reshape(1, rows * cols // MERGE**2, MERGE**2).float()
    merger = SimpleNamespace(merge_kernel_size=(MERGE, MERGE), merger_times=1, mlp=[lambda joined: joined])
    (found,) = MiniCPMV4_6Merger.forward(merger, numbers, torch.tensor([[rows // MERGE, cols // MERGE]]))
    return [[number // cols, number % cols] for number in found.reshape(-1).long().tolist()]


def nearest(table: torch.Tensor, grid: tuple[int, int], places: torch.Tensor) -> torch.Tensor:
    rows = get_vision_nearest_position_ids(torch.tensor([grid]), SIDE).reshape(grid)
    found: torch.Tensor = table.reshape(-1)[rows[places[:, 0], places[:, 1]]]
    return found


def asked(table: torch.Tensor, rows: int, cols: int) -> dict[str, torch.Tensor]:
    """As modeling_navit_siglip.py and resampler.py there, patches row by row."""
    bounds = torch.arange(1 / SIDE, 1.0, 1 / SIDE)
    lines = [torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), bounds, right=True) for count in (rows, cols)]
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    angles = [place.reshape(-1, 1) / 10000 ** (torch.arange(2).double() / 2) for place in (col, row)]
    waves = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
    return {"bucketed": table[lines[0]][:, lines[1]].reshape(-1), "waves": waves}


def rounded(values: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.double().round(decimals=6).tolist() for name, value in values.items()}


@torch.no_grad()
def cubic(table: torch.Tensor, grid: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    module = Glm4vVisionEmbeddings(Glm4vVisionConfig(image_size=SIDE, patch_size=1, hidden_size=1))
    module.position_embedding.weight.copy_(table.reshape(-1, 1))
    return module(torch.zeros(len(places), 1), [len(places)], grid, places[:, 0], places[:, 1])[:, 0]


@torch.no_grad()
def stepped(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    config = Phi4MultimodalVisionConfig(hidden_size=1, image_size=SIDE, patch_size=1)
    module = Phi4MultimodalVisionEmbeddings(config)
    module.position_embedding.weight.copy_(table.reshape(-1, 1))
    module.patch_embedding.bias.zero_()
    found: torch.Tensor = module(torch.zeros(1, 3, *grid), torch.ones(1, *grid, dtype=torch.bool))
    return found.reshape(grid)


def text() -> str:
    found: dict[str, list[dict[str, Any]]] = {"tokens": [tokens(*prompt) for prompt in PROMPTS]}
    found["canvas"] = [canvas(pictures) for pictures in CANVASES]
    found["number"] = [numbered(*prompt, axes) for prompt in FRAMED for axes in (3, 4)]
    found |= {"patches": [], "tables": [], "halved_patches": [], "halved_tables": []}
    table = torch.sin(torch.arange(SIDE**2, dtype=torch.float32)).reshape(SIDE, SIDE)
    for grid in GRIDS:
        thw = torch.tensor([[1, *grid]])
        places = get_vision_position_ids(thw, MERGE)
        found["patches"].append({"grid": grid, "places": places.tolist()})
        rows, shares = get_vision_interpolation_indices_and_weights(thw, SIDE, "bilinear", True, MERGE)
        small = torch.nn.functional.interpolate(table[None, None], grid, mode="bilinear", antialias=True)[0, 0]
        corners = (table.reshape(-1)[rows] * shares).sum(1)
        rows, shares = get_vision_interpolation_indices_and_weights(thw, SIDE, "bilinear", False, MERGE)
        values = {"corners": corners, "centers": (table.reshape(-1)[rows] * shares).sum(1)}
        values |= {"smooth": small[places[:, 0], places[:, 1]], "nearest": nearest(table, grid, places)}
        values["cubic"] = cubic(table, thw, places)
        values["stepped"] = stepped(table, grid)[places[:, 0], places[:, 1]]
        found["tables"].append({"grid": grid, **rounded(values)})
    found["asked"] = [{"grid": grid, **rounded(asked(table, *grid))} for grid in [*GRIDS, (1, 25), (49, 3)]]
    for grid in HALVED_GRIDS:
        at = halved(*grid)
        found["halved_patches"].append({"grid": grid, "places": at})
        found["halved_tables"].append({"grid": grid, **rounded({"nearest": nearest(table, grid, torch.tensor(at))})})
    parts = (
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(entry) for entry in entries) + "\n ]"
        for name, entries in found.items()
    )
    return f'{{\n "merge": {MERGE},\n "side": {SIDE},\n' + ",\n".join(parts) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file would change")
    check = parser.parse_args().check
    stale = not SHIPPED.exists() or SHIPPED.read_text("utf-8") != text()
    if stale and not check:
        SHIPPED.write_text(text(), "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
