"""OpenVINO with NNCF: encoder in int8, calibrated; decoder and embedding with int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from openvino_runtime import ROOT, files, load, portable
from protocol import serve

PICTURES = ROOT / "edgevlm" / "assets"


def prepare(checkpoint: Path, folder: Path, bits: str = "INT8_SYM") -> None:
    import nncf
    import openvino

    portable(checkpoint, folder)
    for name, file in files(folder).items():
        model: Any = openvino.convert_model(file)
        if name == "vision_encoder":
            data = nncf.Dataset(_tiles(masked=len(model.inputs) > 1))
            model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=16)
        else:
            mode = getattr(nncf.CompressWeightsMode, "INT8_SYM" if name == "embed_tokens" else bits)
            grouped = {} if mode == nncf.CompressWeightsMode.INT8_SYM else {"group_size": 64}
            model = nncf.compress_weights(model, mode=mode, **grouped)
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def _tiles(masked: bool) -> list[Any]:
    from PIL import Image

    found = []
    for file in sorted(PICTURES.rglob("*.jpg")) + sorted(PICTURES.rglob("*.png")):
        picture = np.asarray(Image.open(file).convert("RGB").resize((512, 512)), np.float32)
        pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
        mask = np.ones((1, *pixels[:, 0].shape), bool)
        found.append(
            {"pixel_values": pixels[None], "pixel_attention_mask": mask} if masked else {"pixel_values": pixels}
        )
    return found[:16]


if __name__ == "__main__":
    serve(prepare, load)
