"""OpenVINO's runtime on EdgeVLM's portable graphs in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from portable import Portable, write_portable
from protocol import F32, OneByOne, rows, serve


def prepare(checkpoint: Path, folder: Path) -> None:
    import openvino

    write_portable(checkpoint, folder)
    for name, file in Portable(folder).files.items():
        openvino.save_model(openvino.convert_model(file), folder / f"{name}.xml", compress_to_fp16=False)


def load(folder: Path, threads: int) -> OpenVino:
    return OpenVino(folder, threads)


class OpenVino(OneByOne):
    def __init__(self, folder: Path, threads: int) -> None:
        import openvino
        from openvino._offline_transformations import apply_make_stateful_transformation

        self.graphs, core = Portable(folder), openvino.Core()
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
        found = self.encoder(self.graphs.picture(tile))[0]
        return rows(found, found.shape[-1])

    def restart(self) -> None:
        self.decoder.reset_state()
        self.position = 0

    def append(self, ids: list[int]) -> int:
        given: dict[str, Any] = self.graphs.positions(self.position, len(ids))
        self.position += len(ids)
        given["inputs_embeds"] = self.embed({"input_ids": np.array([ids], np.int64)})[0]
        given["attention_mask"] = np.ones((1, self.position), np.int64)
        found = self.decoder.infer(given)
        return int(found["logits"][0, -1].argmax())


if __name__ == "__main__":
    serve(prepare, load)
