"""The eager backend against transformers, the publisher of the architecture."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.models.eager import EagerOps, KVCache
from edgevlm.models.llama import decoder, embed_tokens, rope_tables
from edgevlm.models.ops import Weights
from edgevlm.models.spec import RopeScaling
from edgevlm.verify.reference import Reference, cosine


@pytest.fixture(scope="module")
def pair(builder: ModuleType, tiny_checkpoint: Path):
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    return spec, weights, builder.load_model(tiny_checkpoint)


def test_features_equal_transformers(pair) -> None:
    spec, weights, model = pair
    size = spec.vision.image_size
    tiles = np.random.default_rng(0).uniform(-1, 1, (3, 3, size, size)).astype(np.float32)
    ours = Reference(spec, weights).features(tiles)
    with torch.no_grad():
        theirs = model.get_image_features(torch.from_numpy(tiles)[None]).pooler_output
    theirs = torch.cat(list(theirs)).numpy().reshape(ours.shape)
    assert cosine(ours, theirs) >= 0.999999
    assert np.abs(ours - theirs).max() < 1e-4


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(0, 40))
def test_logits_equal_transformers_however_the_prompt_is_cut(pair, ids: list[int], cut: int) -> None:
    spec, weights, model = pair
    array = np.array(ids, np.int64)
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(array)[None]).logits[0].numpy()
    cache = KVCache(spec.decoder)
    parts = [part for part in np.split(array, [min(cut, len(array))]) if len(part)]
    ours = [
        decoder(EagerOps(weights, cache, keep=len(part)), embed_tokens(EagerOps(weights), part), spec.decoder)
        for part in parts
    ]
    assert np.abs(np.concatenate(ours) - theirs).max() < 2e-4


@pytest.mark.parametrize(
    ("theta", "head_dim", "scaling"),
    [
        (10000.0, 16, None),
        (100000.0, 64, None),
        (273768.0, 64, None),
        (500000.0, 128, RopeScaling(8.0, 1.0, 4.0, 8192)),
        (10000.0, 64, RopeScaling(32.0, 0.5, 7.0, 64)),
    ],
)
def test_rope_tables_equal_transformers(pair, theta: float, head_dim: int, scaling: RopeScaling | None) -> None:
    spec = replace(pair[0].decoder, rope_theta=theta, head_dim=head_dim, rope_scaling=scaling)
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": "llama3", **vars(scaling)}
        rope["original_max_position_embeddings"] = rope.pop("original_context")
    config = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters=rope,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(8192)[None])
    ours = rope_tables(spec, 8192)
    half = head_dim // 2
    # sine and cosine of an angle near 8192 rad move by its float32 rounding, 2^-11
    assert np.abs(ours[0] - cos[0, :, :half].numpy()).max() < 5e-4
    assert np.abs(ours[1] - sin[0, :, :half].numpy()).max() < 5e-4


@pytest.mark.parametrize(("kind", "approximate"), [("gelu_tanh", "tanh"), ("gelu", "none")])
def test_gelu_equals_torch(kind: str, approximate: str) -> None:
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    theirs = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
    assert np.abs(EagerOps({}).gelu(x, kind) - theirs).max() < 1e-6


class Doubles:
    """Weights in float64, for sums whose order costs nothing."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def read(self, name: str) -> np.ndarray:
        return self.weights.read(name).astype(np.float64)


def test_truncated_cache_forgets(pair) -> None:
    """In float64, so that the bound holds for any CPU's order of sums.

    A sum of n products is off by at most n u of their absolute sum, whatever the order (Higham, Accuracy and Stability
    of Numerical Algorithms, 3.1). The longest way to a logit sums some thousand: 6e-5 with float32's u of 2^-24, and
    below 1e-12 with float64's. What is left is an activation that `swiglu` rounds to float32 the other
    way, 2^-24 of it.
    """
    spec, weights = pair[0], Doubles(pair[1])
    ids = np.arange(12, dtype=np.int64)
    embeds = embed_tokens(EagerOps(weights), ids)
    cache = KVCache(spec.decoder)
    wanted = decoder(EagerOps(weights, cache), embeds, spec.decoder)
    cache.truncate(5)
    again = decoder(EagerOps(weights, cache), embeds[5:], spec.decoder)
    assert cache.length() == 12 and np.abs(again - wanted).max() < 1e-6
