"""The eager backend against transformers, the publisher of the architecture."""

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
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.decoder import decoder, embed_tokens
from edgevlm.models.eager import EagerOps, attend
from edgevlm.models.ops import Weights
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Attention, Decoder, Rope, RopeScaling
from edgevlm.models.states import States
from edgevlm.runtimes.eager import encode_view
from edgevlm.verify.reference import cosine


@pytest.fixture(scope="module")
def pair(builder: ModuleType, tiny_checkpoint: Path):
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    return spec, weights, builder.load_model(tiny_checkpoint)


def test_features_equal_transformers(pair) -> None:
    spec, weights, model = pair
    size = spec.vision.image_size
    tiles = np.random.default_rng(0).uniform(-1, 1, (3, 3, size, size)).astype(np.float32)
    ours = np.stack([encode_view(spec, weights, tile) for tile in tiles])
    with torch.no_grad():
        theirs = model.get_image_features(torch.from_numpy(tiles)[None]).pooler_output
    theirs = torch.cat(list(theirs)).numpy().reshape(ours.shape)
    assert cosine(ours, theirs) >= 0.999999
    assert np.abs(ours - theirs).max() < 1e-4


def play(weights: Weights, d: Decoder, held: States, embeds: np.ndarray, past: int, keep: int = 1) -> np.ndarray:
    """Logits (keep, V) of the last of the positions `embeds`, after `past` others."""
    inputs = decoder_inputs(d, Layout(past + len(embeds)), past, len(embeds))
    return decoder(EagerOps(weights, held, inputs, keep=keep), embeds, d)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(0, 40))
def test_logits_equal_transformers_however_the_prompt_is_cut(pair, ids: list[int], cut: int) -> None:
    spec, weights, model = pair
    array = np.array(ids, np.int64)
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(array)[None]).logits[0].numpy()
    held, past, ours = States(), 0, []
    for part in np.split(array, [min(cut, len(array))]):
        if len(part):
            embeds = embed_tokens(EagerOps(weights), part, spec.decoder)
            ours.append(play(weights, spec.decoder, held, embeds, past, keep=len(part)))
            past += len(part)
    assert np.abs(np.concatenate(ours) - theirs).max() < 2e-4


@pytest.mark.parametrize(
    ("theta", "head_dim", "scaling"),
    [
        (10000.0, 16, None),
        (100000.0, 64, None),
        (273768.0, 64, None),
        (500000.0, 128, RopeScaling(8.0, 1.0, 4.0, 8192)),
        (10000.0, 64, RopeScaling(32.0, 0.5, 7.0, 64)),
        (1000000.0, 128, RopeScaling(16.0, 1.0, 32.0, 16384, "yarn")),
        (10000.0, 64, RopeScaling(4.0, 1.0, 1.25, 8, "yarn")),
    ],
)
def test_rope_rows_equal_transformers(theta: float, head_dim: int, scaling: RopeScaling | None) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor, "mscale": 1.0, "mscale_all_dim": 1.0}
        slow, fast = ("beta_slow", "beta_fast") if scaling.kind == "yarn" else ("low_freq_factor", "high_freq_factor")
        rope |= {slow: scaling.low_freq_factor, fast: scaling.high_freq_factor}
        rope["original_max_position_embeddings"] = scaling.original_context
    config = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters=rope,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(8192)[None])
    ours = rope_rows(Rope(theta, head_dim, scaling), np.arange(8192)[None])
    half = head_dim // 2
    # sine and cosine of an angle near 8192 rad move by its float32 rounding, 2^-11
    assert np.abs(ours[0] - cos[0, :, :half].numpy()).max() < 5e-4
    assert np.abs(ours[1] - sin[0, :, :half].numpy()).max() < 5e-4


@pytest.mark.parametrize(("kind", "approximate"), [("gelu_tanh", "tanh"), ("gelu", "none")])
def test_gelu_equals_torch(pair, kind: str, approximate: str) -> None:
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    theirs = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
    assert np.abs(EagerOps(pair[1]).act(x, kind) - theirs).max() < 1e-6


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
    below 1e-12 with float64's. What is left is an activation that `act` rounds to float32 the other
    way, 2^-24 of it.
    """
    spec, weights = pair[0], Doubles(pair[1])
    ids = np.arange(12, dtype=np.int64)
    embeds = embed_tokens(EagerOps(weights), ids, spec.decoder)
    held = States()
    wanted = play(weights, spec.decoder, held, embeds, 0)
    held.cut(5)
    again = play(weights, spec.decoder, held, embeds[5:], 5)
    assert {x.shape[-2] for x in held.growing.values()} == {12} and np.abs(again - wanted).max() < 1e-6


@pytest.mark.parametrize(("rows", "total"), [(1, 5), (1100, 1100), (700, 1500)])
def test_attention_equals_torch_however_many_scores_there_are(rows: int, total: int) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((n, s, 16)).astype(np.float32) for n, s in ((4, rows), (2, total), (2, total)))
    allowed = np.tril(np.ones((rows, total), np.bool_), total - rows)
    ours = attend(q, k, v, Attention(heads=4, kv_heads=2, head_dim=16), allowed)
    tensors = [torch.from_numpy(x)[None] for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.from_numpy(allowed), enable_gqa=True
    )
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-5


def test_the_tanh_form_of_gelu_equals_torch_for_many_values() -> None:
    x = np.random.default_rng(4).standard_normal((3, 50_000)).astype(np.float32)
    theirs = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    assert np.abs(EagerOps({}).act(x, "gelu_tanh") - theirs).max() < 1e-6  # type: ignore[arg-type]
