"""OpenVINO's runtime on EdgeVLM's portable graphs in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from protocol import F32, OneByOne, rows, serve

ROOT = Path(__file__).parents[2]


def portable(checkpoint: Path, folder: Path) -> None:
    """The float32 bundle, made by EdgeVLM in its own environment (EDGEVLM_PYTHON)."""
    command = [os.environ["EDGEVLM_PYTHON"], "-m", "edgevlm", "export", str(checkpoint), str(folder / "fp32")]
    subprocess.run([*command, "--quantize", "fp32", "--no-gate", "--force"], check=True, stdout=sys.stderr, cwd=ROOT)


def files(folder: Path) -> dict[str, Path]:
    manifest = json.loads((folder / "fp32" / "manifest.json").read_text())
    graphs = manifest["targets"]["onnx"]["graphs"]
    return {name: folder / "fp32" / graph["portable"] for name, graph in graphs.items()}


def prepare(checkpoint: Path, folder: Path) -> None:
    import openvino

    portable(checkpoint, folder)
    for name, file in files(folder).items():
        openvino.save_model(openvino.convert_model(file), folder / f"{name}.xml", compress_to_fp16=False)


def load(folder: Path, threads: int) -> OpenVino:
    return OpenVino(folder, threads)


class OpenVino(OneByOne):
    def __init__(self, folder: Path, threads: int) -> None:
        import openvino
        from openvino._offline_transformations import apply_make_stateful_transformation

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.encoder = core.compile_model(core.read_model(folder / "vision_encoder.xml"), "CPU", settings)
        self.embed = core.compile_model(core.read_model(folder / "embed_tokens.xml"), "CPU", settings)
        decoder = core.read_model(folder / "decoder.xml")
        states = {
            port.any_name: port.any_name.replace("past_key_values", "present")
            for port in decoder.inputs
            if port.any_name.startswith("past_key_values")
        }
        # A batch of one, so that a state's shape before the first prompt is known to be empty.
        shapes = {port.any_name: port.partial_shape for port in decoder.inputs}
        for shape in shapes.values():
            shape[0] = 1
        decoder.reshape(shapes)
        apply_make_stateful_transformation(decoder, states)
        self.decoder = core.compile_model(decoder, "CPU", settings).create_infer_request()
        self.position = 0

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        pixels = (tile.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1).astype(np.float32)
        given: dict[str, Any] = {"pixel_values": pixels}
        if len(self.encoder.inputs) > 1:
            given = {"pixel_values": pixels[None], "pixel_attention_mask": np.ones((1, *pixels[:, 0].shape), bool)}
        found = self.encoder(given)[0]
        return rows(found, found.shape[-1])

    def restart(self) -> None:
        self.decoder.reset_state()
        self.position = 0

    def append(self, ids: list[int]) -> int:
        self.position += len(ids)
        embeds = self.embed({"input_ids": np.array([ids], np.int64)})[0]
        mask = np.ones((1, self.position), np.int64)
        found = self.decoder.infer({"inputs_embeds": embeds, "attention_mask": mask})
        return int(found["logits"][0, -1].argmax())


if __name__ == "__main__":
    serve(prepare, load)
