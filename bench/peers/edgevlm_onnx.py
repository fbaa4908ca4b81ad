"""EdgeVLM's own bundles: `edgevlm export`, then the encoder and decoder of a runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from protocol import F32, serve

RUNTIME, TARGET = "onnxruntime", "onnx"


def prepare(checkpoint: Path, folder: Path, target: str = TARGET, preset: str = "balanced") -> None:
    command = [sys.executable, "-m", "edgevlm", "export", str(checkpoint), str(folder / "bundle"), "--target", target]
    subprocess.run([*command, "--preset", preset, "--no-gate", "--force"], check=True, stdout=sys.stderr)


def load(folder: Path, threads: int, runtime: str = RUNTIME) -> EdgeVLM:
    return EdgeVLM(folder / "bundle", threads, runtime)


class EdgeVLM:
    def __init__(self, bundle: Path, threads: int, runtime: str) -> None:
        from edgevlm.bundle.manifest import open_bundle
        from edgevlm.runtimes import open_runtime

        self.engine = open_runtime(open_bundle(bundle), runtime, threads=threads)

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        return self.engine.encoder.encode([tile])[0]

    def prefill(self, ids: list[int]) -> int:
        from edgevlm.inputs.layout import Layout

        decoder = self.engine.decoder
        decoder.rewind(0)
        return int(decoder.forward(decoder.embed(np.array(ids)), Layout(len(ids))).argmax())

    def decode(self, token: int, count: int) -> list[int]:
        answer = []
        for _ in range(count):
            token = int(self.engine.decoder.step(token).argmax())
            answer.append(token)
        return answer


if __name__ == "__main__":
    serve(prepare, load)
