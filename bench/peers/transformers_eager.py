"""transformers on torch, float32 on the CPU, as `from_pretrained` gives it; `transformers_compiled` compiles it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from protocol import F32, OneByOne, rows, serve


def prepare(checkpoint: Path, folder: Path) -> None:
    (folder / "checkpoint").write_text(str(checkpoint.resolve()))


def load(folder: Path, threads: int, compiled: bool = False) -> Transformers:
    return Transformers(Path((folder / "checkpoint").read_text()), threads, compiled)


class Transformers(OneByOne):
    def __init__(self, checkpoint: Path, threads: int, compiled: bool) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.features: Any = self.model.model.get_image_features
        if compiled:
            self.features = torch.compile(self.features)
            self.model.forward = torch.compile(self.model.forward, dynamic=True)
        self.past: Any = None

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        torch = self.torch
        pixels = torch.from_numpy(tile).permute(2, 0, 1)[None, None].float() / 127.5 - 1
        mask = torch.ones(1, 1, *tile.shape[:2], dtype=torch.bool)
        found = self.features(pixel_values=pixels, pixel_attention_mask=mask)
        found = getattr(found, "pooler_output", found)
        tile = found[0]  # of a list or of a tensor
        return rows(tile.numpy(), tile.shape[-1])

    def restart(self) -> None:
        self.past = None

    def append(self, ids: list[int]) -> int:
        given = self.torch.tensor([ids])
        out = self.model(input_ids=given, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())


if __name__ == "__main__":
    serve(prepare, load)
