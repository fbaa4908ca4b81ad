"""onnxruntime-genai: its model builder's int4 of the text model. Its pictures need other graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from protocol import F32, serve
from text_model import write_text_model


def prepare(checkpoint: Path, folder: Path) -> None:
    text = write_text_model(checkpoint, folder / "text")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(text), "-o", str(folder / "genai")]
    subprocess.run([*command, "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")], check=True, stdout=sys.stderr)


def load(folder: Path, threads: int) -> GenAi:
    return GenAi(folder / "genai", threads)


class GenAi:
    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(folder))
        config.overlay(
            '{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}' % threads  # noqa: UP031
        )
        self.genai, self.model = onnxruntime_genai, onnxruntime_genai.Model(config)

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        raise NotImplementedError("the model builder of onnxruntime-genai is given the text model alone")

    def prefill(self, ids: list[int]) -> int:
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=2048)
        self.generator = self.genai.Generator(self.model, params)
        self.generator.append_tokens(np.array(ids, np.int32))
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])

    def decode(self, token: int, count: int) -> list[int]:
        answer = []
        for _ in range(count):
            self.generator.generate_next_token()
            answer.append(int(self.generator.get_next_tokens()[0]))
        return answer


if __name__ == "__main__":
    serve(prepare, load)
