"""The usual way to CoreML: `trace_coreml.py CHECKPOINT OUT`. torch.jit.trace of transformers' encoder and of its
decoder on 64 positions without a cache, then coremltools' converter in fp16."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from transformers import AutoModelForImageTextToText

POSITIONS = 64


class Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """A tile without a mask: coremltools has no `bucketize`, by which masks become positions."""
        tower = self.model.vision_model
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = tower.encoder(inputs_embeds=patches + tower.embeddings.position_embedding.weight).last_hidden_state
        out: torch.Tensor = self.model.connector(tower.post_layernorm(hidden))
        return out


class Decoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        hidden = self.model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        out: torch.Tensor = self.model.lm_head(hidden)
        return out


@torch.no_grad()
def main(folder: Path, out: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    side, width = model.config.vision_config.image_size, model.config.text_config.hidden_size
    parts = (
        ("encoder", Encoder(model.model), torch.zeros(1, 3, side, side)),
        ("decoder", Decoder(model), torch.zeros(1, POSITIONS, width)),
    )
    for name, part, example in parts:
        traced = torch.jit.trace(part, example)
        inputs = [ct.TensorType(name="x", shape=example.shape, dtype=np.float32)]
        made = ct.convert(traced, inputs=inputs, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
        made.save(str(out / f"{name}.mlpackage"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
