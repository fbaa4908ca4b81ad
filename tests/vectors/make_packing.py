"""Write the golden vectors of how features are packed, by transformers' own code.

    python tests/vectors/make_packing.py          (re)writes edgevlm/assets/packing.json
    python tests/vectors/make_packing.py --check  exits with 1 if it would change

cases: by LlavaNextModel, LlavaOnevisionModel and, with the whole picture last, Phi4MultimodalImageEmbedding. framed:
views of any size, by HunYuanVLVisionPatchMerger without weights. Features are numbers: view by view, row by row, from
0; the newline is -1, a separator -2, and what begins and ends a framed picture -2 and -3. Nothing here imports edgevlm.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLVisionConfig
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLVisionPatchMerger
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalImageEmbedding

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import phi4_multimodal

SHIPPED = Path(__file__).parents[2] / "edgevlm" / "assets" / "packing.json"
SIDE, VIEW = 4, 32  # features and pixels per side of a view
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (4, 4)]
FRAMED = [(2, 2), (2, 5), (6, 3), (3, 8)]  # rows and columns of features
SIZES = [(1, 1), (1, 97), (97, 1), (50, 3), (61, 43), (43, 61), (96, 48), (101, 103), (127, 211), (640, 480)]


def case(width: int, height: int, most: int | None) -> dict[str, Any]:
    """The tokens of a picture, most of whose features transformers scales down to those of `most` views."""
    pinpoints = [[rows * VIEW, cols * VIEW] for rows, cols in GRIDS]
    best = select_best_resolution((height, width), pinpoints)
    rows, cols = best[0] // VIEW, best[1] // VIEW
    vision = SimpleNamespace(image_size=VIEW, patch_size=VIEW // SIDE)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    count = 1 + rows * cols
    features = [torch.arange(count * SIDE**2, dtype=torch.float32).reshape(count, SIDE**2, 1)]
    sizes, newline = torch.tensor([[height, width]]), torch.tensor([-1.0])
    if most is None:
        made, _ = LlavaNextModel.pack_image_features(model, features, sizes, "full", newline)
    else:
        made, _ = LlavaOnevisionModel.pack_image_features(model, features, sizes, newline, f"anyres_max_{most}")
    tokens = [round(value, 4) for value in made[0][:, 0].tolist()]
    return {"picture": [width, height], "most": most, "tiles": [rows, cols], "tokens": tokens}


@torch.no_grad()
def framed(rows: int, cols: int) -> dict[str, Any]:
    """The tokens of a view whose map has so many features."""
    sizes = {"hidden_size": 1, "text_hidden_size": 4, "spatial_merge_size": 1, "num_attention_heads": 1}
    merger = HunYuanVLVisionPatchMerger(HunYuanVLVisionConfig(**sizes))
    for name in ("before_rms", "proj_conv", "proj_act", "proj_out", "mlp", "after_rms"):
        setattr(merger, name, torch.nn.Identity())
    merger.image_newline = torch.nn.Parameter(torch.tensor([-1.0]))
    merger.image_begin, merger.image_end = (torch.nn.Parameter(torch.tensor([value])) for value in (-2.0, -3.0))
    numbers = torch.arange(rows * cols, dtype=torch.float32).reshape(1, -1, 1)
    return {"side": [rows, cols], "tokens": merger(numbers, (rows, cols))[0, :, 0].tolist()}


class _Same(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def whole_last(width: int, height: int) -> dict[str, Any]:
    """The tokens of a picture whose whole comes last, tiles without their padding. sides: features of each view."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    picture, mask = phi4_multimodal.image_processor()().dynamic_preprocess(image, VIEW, VIEW // 8, 8, max_num=6)
    rows, cols = (edge // VIEW for edge in picture.shape[-2:])
    tiles = mask.reshape(rows, 8, cols, 8).transpose(1, 2).reshape(-1, 8, 8)
    masks = torch.cat([torch.ones(1, 8, 8), tiles])
    count = rows * cols
    # Far from zero, where the activation between the projector's maps changes nothing.
    numbers = torch.arange((count + 1) * SIDE**2, dtype=torch.float32).reshape(-1, SIDE**2, 1) + 100
    views = torch.cat([numbers[-1:], numbers[:-1]])
    newline, separator = 10000.0, 20000.0
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(image_token_id=1)), crop_size=VIEW, image_dim_out=1,
        img_processor=SimpleNamespace(embeddings=SimpleNamespace(patch_embedding=SimpleNamespace(weight=_one(0)))),
        get_img_features=lambda *_, **__: views, drop=_Same(), img_projection_up=_Same(), img_projection_down=_Same(),
        sub_img_feature_extensor=_one(newline).reshape(1, 1, 1, 1),
        global_img_feature_extensor=_one(separator).reshape(1, 1, 1),
    )  # fmt: skip
    shown = masks[1:, 0::2, 0::2]
    sides = [[int(m[:, 0].sum()), int(m[0].sum())] for m in shown]
    high, wide = sum(r for r, _ in sides[::cols]), sum(c for _, c in sides[:cols])
    ids = torch.ones(1, high * (wide + 1) + 1 + SIDE * (SIDE + 1), dtype=torch.long)
    sizes = torch.tensor([list(picture.shape[-2:])])
    blank = torch.zeros(1, ids.shape[1], 1)
    made = Phi4MultimodalImageEmbedding.forward(model, ids, blank, torch.zeros(1, count + 1, 1), sizes, masks[None])
    values = made.reshape(-1).tolist()
    tokens = [-1.0 if v == newline else -2.0 if v == separator else v - 100 for v in values]
    return {"picture": [width, height], "tiles": [rows, cols], "sides": [*sides, [SIDE, SIDE]], "tokens": tokens}


def _one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def text() -> str:
    cases = [case(*size, most) for most in (None, 2, 9) for size in SIZES]
    cases += [whole_last(*size) for size in SIZES if max(size) < 10 * min(size)]
    lines = ",\n  ".join(json.dumps(entry) for entry in cases)
    more = ",\n  ".join(json.dumps(framed(*side)) for side in FRAMED)
    return f'{{\n "side": {SIDE},\n "cases": [\n  {lines}\n ],\n "framed": [\n  {more}\n ]\n}}\n'


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
