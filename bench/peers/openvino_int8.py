"""OpenVINO with NNCF: encoder in int8, calibrated; decoder and embedding with int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from openvino_runtime import load
from portable import ROOT, Portable, write_portable
from protocol import serve

PICTURES = ROOT / "edgevlm" / "assets"


def prepare(checkpoint: Path, folder: Path, bits: str = "INT8_SYM") -> None:
    import nncf
    import openvino

    write_portable(checkpoint, folder)
    graphs = Portable(folder)
    for name, file in graphs.files.items():
        model: Any = openvino.convert_model(file)
        if name == "vision_encoder":
            data = nncf.Dataset(_tiles(graphs))
            model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=16)
        else:
            mode = getattr(nncf.CompressWeightsMode, "INT8_SYM" if name == "embed_tokens" else bits)
            grouped = {} if mode == nncf.CompressWeightsMode.INT8_SYM else {"group_size": 64}
            model = nncf.compress_weights(model, mode=mode, **grouped)
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def _tiles(graphs: Portable) -> list[Any]:
    from PIL import Image

    pictures = (sorted(PICTURES.rglob("*.jpg")) + sorted(PICTURES.rglob("*.png")))[:16]
    size = graphs.side, graphs.side
    return [graphs.picture(np.asarray(Image.open(file).convert("RGB").resize(size))) for file in pictures]


if __name__ == "__main__":
    serve(prepare, load)
