"""Counted work against what torch counts when transformers' own models run, and against files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import lfm2_vl, llava15, qwen2_5_vl, qwen3_vl

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_checkpoint
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import ShortConv
from edgevlm.models.work import Work, encoding, reading


def counted(run: Any) -> int:
    """Operations of products, attention and convolutions, without those that make RoPE's angles: ours are a table."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    angles = {name: sum(of.values()) for name, of in counter.get_flop_counts().items() if name.endswith("rotary_emb")}
    return counter.get_total_flops() - sum(angles.values())


def eager(model: Any) -> Any:
    """Its products one by one, as torch counts them."""
    model.set_attn_implementation("eager")
    return model.eval()


def spec_of(folder: Path) -> ModelSpec:
    return read_checkpoint(open_checkpoint(folder))[0]


def text_of(model: Any) -> Any:
    return model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model


def check_reading(model: Any, spec: ModelSpec, new: int, past: int) -> None:
    from transformers import DynamicCache

    text, width = text_of(model), spec.decoder.hidden_size
    cache = DynamicCache(config=text.config)
    with torch.no_grad():
        if past:
            text(inputs_embeds=torch.zeros(1, past, width), past_key_values=cache)

    def run() -> None:
        states = text(inputs_embeds=torch.zeros(1, new, width), past_key_values=cache).last_hidden_state
        model.lm_head(states[:, -1:])

    assert counted(run) == reading(spec, new, past).operations + cut_off(spec)


def cut_off(spec: ModelSpec) -> int:
    """A causal convolution in transformers is padded on both sides, and what the second gives is cut off."""
    kernels = [m.kernel for layer in range(spec.decoder.num_layers) for m in spec.decoder.block(layer).mixers
               if isinstance(m, ShortConv)]  # fmt: skip
    return sum(2 * spec.decoder.hidden_size * kernel * (kernel - 1) for kernel in kernels)


def test_smolvlm(builder: ModuleType, tiny_checkpoint: Path) -> None:
    model, spec = eager(builder.load_model(tiny_checkpoint)), spec_of(tiny_checkpoint)
    pixels = torch.zeros(1, 1, 3, 64, 64)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    assert counted(lambda: model.model.get_image_features(pixels, mask)) == encoding(spec, 64, 64).operations
    for new, past in ((7, 0), (1, 12), (5, 3)):
        check_reading(model, spec, new, past)


@pytest.mark.parametrize("family", [llava15, qwen2_5_vl, qwen3_vl, lfm2_vl])
def test_prompts_of_other_decoders(family: ModuleType, tmp_path: Path) -> None:
    model = eager(family.build(tmp_path / "model"))
    spec = spec_of(tmp_path / "model")
    check_reading(model, spec, 9, 0)
    if not spec.decoder.replaces:
        check_reading(model, spec, 1, 6)


def test_windows(tmp_path: Path) -> None:
    """A view that is whole windows: others are padded here, and cut in transformers."""
    model = eager(qwen2_5_vl.build(tmp_path / "model"))
    spec = spec_of(tmp_path / "model")
    height, width, p = 64, 96, spec.vision.patch_size
    patches = torch.zeros(height * width // p**2, 3 * 2 * p**2)
    grid = torch.tensor([[1, height // p, width // p]])
    ours = encoding(spec, height, width)
    # Both frames of a still picture's patches are equal: here one kernel stands for their sum.
    second = ours.floats if spec.vision.frames == 1 else 0
    assert counted(lambda: model.model.get_image_features(patches, grid)) == ours.operations + second


def test_a_token_reads_every_weight_and_what_was_kept(tiny_checkpoint: Path) -> None:
    spec = spec_of(tiny_checkpoint)
    d = spec.decoder
    (attention,) = d.blocks[0].mixers
    token = reading(spec, 1, 99)
    assert token.kept == d.num_layers * 2 * 100 * attention.kv_heads * attention.head_dim
    assert sum(token.products.values()) == 2 * sum(token.read[name] for name in token.products)
    assert d.tie_embeddings and token.read["decoder.embed.weight"] == d.vocab_size * d.hidden_size
    # A prompt reads them once, and multiplies all but the head for each of its positions.
    prompt = reading(spec, 100)
    assert prompt.read == token.read
    head = token.products["decoder.embed.weight"]
    assert sum(prompt.products.values()) - head == 100 * (sum(token.products.values()) - head)


def test_attention_sees_what_was_kept(tiny_checkpoint: Path) -> None:
    """The prompt in one piece or in two: what a mask hides of the first piece is not computed."""
    spec = spec_of(tiny_checkpoint)
    whole, first, second = reading(spec, 10), reading(spec, 6), reading(spec, 4, 6)
    per_pair = whole.attention // 100
    assert first.attention == 36 * per_pair and second.attention == 40 * per_pair
    assert isinstance(whole, Work) and whole.values > first.values > second.values
    assert np.prod(spec.vision.grid(64, 64)) == 64
