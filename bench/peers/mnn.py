"""MNN: its converter on EdgeVLM's portable encoder, with 8-bit weights; text needs its own exporter from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from portable import Portable, write_portable
from protocol import F32, rows, serve


def prepare(checkpoint: Path, folder: Path) -> None:
    write_portable(checkpoint, folder)
    convert = [str(Path(sys.executable).parent / "mnnconvert"), "-f", "ONNX", "--bizCode", "edgevlm"]
    convert += ["--modelFile", str(Portable(folder).files["vision_encoder"]), "--MNNModel", str(folder / "encoder.mnn")]
    # The converter installs packages with the first pip that it finds: its own environment's.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    subprocess.run([*convert, "--weightQuantBits", "8"], check=True, stdout=sys.stderr, env=os.environ | {"PATH": path})
    if not (folder / "encoder.mnn").exists():
        raise RuntimeError("mnnconvert refuses the operator Attention, and ends as if it had written a file")


def load(folder: Path, threads: int) -> Mnn:
    return Mnn(folder, threads)


class Mnn:
    def __init__(self, folder: Path, threads: int) -> None:
        import MNN.nn

        self.graphs, file = Portable(folder), str(folder / "encoder.mnn")
        runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "low"},))
        self.inputs = list(self.graphs.picture(np.zeros((self.graphs.side,) * 2 + (3,), np.uint8)))
        self.encoder = MNN.nn.load_module_from_file(file, self.inputs, ["image_features"], runtime_manager=runtime)

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        import MNN.expr

        given = []
        for values in self.graphs.picture(tile).values():
            real = values.dtype == np.float32
            values = np.ascontiguousarray(values, np.float32 if real else np.int32)
            kind = MNN.expr.float if real else MNN.expr.int
            given.append(MNN.expr.const(values, values.shape, MNN.expr.NCHW, kind))
        found = self.encoder.forward(given)[0].read()
        return rows(found, np.asarray(found).shape[-1])

    def prefill(self, ids: list[int]) -> int:
        raise NotImplementedError("MNN's exporter of language models is not part of its package")

    def decode(self, token: int, count: int) -> list[int]:
        raise NotImplementedError("MNN's exporter of language models is not part of its package")


if __name__ == "__main__":
    serve(prepare, load)
