"""One walk is every decoder: held to transformers' own classes on random weights, and to itself in parts."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import masking_utils

from edgevlm.inputs.layout import Layout, Span, decoder_inputs, positions
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.decoder import decoder, memory
from edgevlm.models.eager import EagerOps
from edgevlm.models.record import decoder_tree
from edgevlm.models.rope import rope_rows
from edgevlm.models.spec import Attention, Block, Decoder, DeltaRule, Mlp, Norm, Rope, ShortConv, states
from edgevlm.models.states import States

VOCAB, WIDTH, HEADS, KV, HEAD, INNER, LENGTH = 50, 64, 4, 2, 16, 96, 20
LAYOUT = Layout(LENGTH, (Span(4, (2, 3)), Span(12, (1, 4))))
LLAMA = {
    "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
GEMMA = LLAMA | {
    "norm1_after": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm",
    "norm2_after": "post_feedforward_layernorm",
}  # fmt: skip
LFM = LLAMA | {
    "norm1": "operator_norm", "o": "self_attn.out_proj", "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm", "norm2": "ffn_norm",
    "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
}  # fmt: skip


class Arrays(dict[str, np.ndarray]):
    """Weights in memory."""

    def read(self, name: str) -> np.ndarray:
        return self[name]


@dataclass
class Case:
    """A decoder's spec, its weights, and what transformers makes of the embeddings (1, S, D): logits (S, V)."""

    spec: Decoder
    weights: Arrays
    expected: np.ndarray
    layout: Layout = LAYOUT
    memory: Any = None
    levels: Sequence[np.ndarray] = ()  # of further features, (LENGTH, WIDTH) each


def _embeddings() -> torch.Tensor:
    return torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))


def _model(model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The model with every parameter random, and its tensors."""
    gen = torch.Generator().manual_seed(1)
    gemma = "gemma" in type(model).__name__.lower()
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.ndim == 1 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=gen) * scale + (p.ndim == 1 and "norm" in name and not gemma))
    model.eval().float()
    tensors = {
        n.removeprefix("model.").removeprefix("decoder."): t.detach().numpy() for n, t in model.state_dict().items()
    }
    return model, tensors


def _layers(tensors: dict[str, np.ndarray], count: int, names: dict[str, str], plus: float = 0) -> Arrays:
    found = Arrays()
    for i in range(count):
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                if (key := f"layers.{i}.{theirs}.{part}") in tensors:
                    found[f"decoder.layers.{i}.{ours}.{part}"] = tensors[key] + np.float32(
                        plus if "norm" in ours else 0
                    )
    return found


def _top(found: Arrays, tensors: dict[str, np.ndarray], norm: str = "norm", plus: float = 0) -> Arrays:
    found["decoder.embed.weight"] = tensors["embed_tokens.weight"][:VOCAB]  # Llama 3.2 Vision has 8 rows more
    found["decoder.norm.weight"] = tensors[f"{norm}.weight"] + np.float32(plus)
    return found


def _spec(*blocks: Block, layers: tuple[int, ...], **options: Any) -> Decoder:
    return Decoder(VOCAB, WIDTH, 256, blocks, layers, tie_embeddings=True, **options)


def _rope(theta: float = 10000.0, **options: Any) -> dict[str, Rope]:
    return {"main": Rope(theta, HEAD, **options)}


def _attention(**options: Any) -> Attention:
    return Attention(HEADS, KV, HEAD, **{"rope": "main"} | options)


SIZES = dict(
    vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=HEADS, num_key_value_heads=KV,
    max_position_embeddings=256,
)  # fmt: skip


def _tied(hidden: torch.Tensor, weights: Arrays) -> np.ndarray:
    return hidden[0].detach().numpy() @ weights["decoder.embed.weight"].T


def qwen2_5_vl() -> Case:
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    model, tensors = _model(
        module.Qwen2_5_VLTextModel(module.Qwen2_5_VLTextConfig(**SIZES, num_hidden_layers=3, rope_parameters=rope))
    )
    weights = _top(_layers(tensors, 3, LLAMA), tensors)
    spec = _spec(Block((_attention(bias=True),), Mlp(INNER)), layers=(0,) * 3, ropes=_rope(1e6, sections=(2, 3, 3)))
    places = torch.tensor(positions(LAYOUT, 3))[:, None]
    return Case(
        spec, weights, _tied(model(inputs_embeds=_embeddings(), position_ids=places).last_hidden_state, weights)
    )


def qwen3_vl() -> Case:
    from transformers.models.qwen3_vl import modeling_qwen3_vl as module

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = module.Qwen3VLTextConfig(**SIZES, head_dim=HEAD, num_hidden_layers=3, rope_parameters=rope)
    model, tensors = _model(module.Qwen3VLTextModel(config))
    weights = _top(_layers(tensors, 3, LLAMA), tensors)
    block = Block((_attention(qk_norm=Norm()),), Mlp(INNER))
    spec = _spec(block, layers=(0,) * 3, deepstack=(0, 1), ropes=_rope(5e6, sections=(4, 2, 2), interleaved=True))
    image = torch.zeros(1, LENGTH, dtype=torch.bool)
    for span in LAYOUT.spans:
        image[0, span.start : span.start + span.tokens] = True
    levels = [torch.randn(int(image.sum()), WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    additions = [np.zeros((LENGTH, WIDTH), np.float32) for _ in levels]
    for addition, level in zip(additions, levels, strict=True):
        addition[image[0].numpy()] = level.numpy()
    out = model(
        inputs_embeds=_embeddings(), position_ids=torch.tensor(positions(LAYOUT, 3))[:, None], visual_pos_masks=image,
        deepstack_visual_embeds=levels,
    ).last_hidden_state  # fmt: skip
    return Case(spec, weights, _tied(out, weights), levels=additions)


def lfm2() -> Case:
    kinds = ["conv", "conv", "full_attention", "conv"]
    config = hf.Lfm2Config(
        **SIZES, num_hidden_layers=4, conv_L_cache=3, layer_types=kinds, block_auto_adjust_ff_dim=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, norm_eps=1e-5,
    )  # fmt: skip
    model, tensors = _model(hf.Lfm2ForCausalLM(config))
    weights = _top(_layers(tensors, 4, LFM), tensors, "embedding_norm")
    for i in (0, 1, 3):
        w, source = f"decoder.layers.{i}", f"layers.{i}.conv"
        for name, part in zip("bcx", np.split(tensors[f"{source}.in_proj.weight"], 3), strict=True):
            weights[f"{w}.{name}.weight"] = part
        weights[f"{w}.out.weight"] = tensors[f"{source}.out_proj.weight"]
        weights[f"{w}.conv.weight"] = tensors[f"{source}.conv.weight"][:, 0]
    norm = Norm(eps=1e-5)
    blocks = Block((ShortConv(3),), Mlp(INNER), norm), Block((_attention(qk_norm=norm),), Mlp(INNER), norm)
    spec = _spec(*blocks, layers=(0, 0, 1, 0), norm=norm, ropes=_rope(1e6))
    return Case(spec, weights, model(inputs_embeds=_embeddings()).logits[0].detach().numpy(), Layout(LENGTH))


def qwen3_5() -> Case:
    """Three heads of values for one of keys; the gate of full attention stands behind each head's query."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    rope = {
        "rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }  # fmt: skip
    rule = DeltaRule(2, 6, 8, 12, 4, Norm(eps=1e-5))
    config = module.Qwen3_5TextConfig(
        **SIZES, head_dim=HEAD, num_hidden_layers=4, rope_parameters=rope, linear_conv_kernel_dim=4, rms_norm_eps=1e-5,
        linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=6,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    )  # fmt: skip
    model, tensors = _model(module.Qwen3_5TextModel(config))
    weights = _top(_layers(tensors, 4, LLAMA, 1), tensors, plus=1)
    q = tensors["layers.1.self_attn.q_proj.weight"].reshape(HEADS, 2, HEAD, WIDTH)
    for name, part in (("q", q[:, 0]), ("o_gate", q[:, 1])):
        weights[f"decoder.layers.1.{name}.weight"] = part.reshape(HEADS * HEAD, WIDTH)
    for i in (0, 2, 3):
        w, source = f"decoder.layers.{i}", f"layers.{i}.linear_attn"
        maps = {"qkv": "in_proj_qkv", "z": "in_proj_z", "rate": "in_proj_b", "step": "in_proj_a", "out": "out_proj"}
        for ours, theirs in (maps | {"delta_norm": "norm"}).items():
            weights[f"{w}.{ours}.weight"] = tensors[f"{source}.{theirs}.weight"]
        weights[f"{w}.conv.weight"] = tensors[f"{source}.conv1d.weight"][:, 0]
        weights[f"{w}.step_bias"] = tensors[f"{source}.dt_bias"]
        weights[f"{w}.decay"] = -np.exp(tensors[f"{source}.A_log"])
    blocks = (
        Block((rule,), Mlp(INNER), Norm(eps=1e-5)),
        Block((_attention(qk_norm=Norm(eps=1e-5), gated="values"),), Mlp(INNER), Norm(eps=1e-5)),
    )
    ropes = {"main": Rope(1e5, 8, sections=(2, 1, 1), interleaved=True)}
    spec = _spec(*blocks, layers=(0, 1, 0, 0), norm=Norm(eps=1e-5), ropes=ropes)
    places = torch.tensor(positions(LAYOUT, 3))[:, None]
    out = model(inputs_embeds=_embeddings(), position_ids=places).last_hidden_state
    return Case(spec, weights, _tied(out, weights))


def gemma3() -> Case:
    from transformers.models.gemma3 import modeling_gemma3 as module

    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = module.Gemma3TextConfig(
        **SIZES, head_dim=HEAD, num_hidden_layers=3, sliding_window=6, layer_types=kinds, query_pre_attn_scalar=24,
        rms_norm_eps=1e-6, rope_parameters=ropes,
    )  # fmt: skip
    model, tensors = _model(module.Gemma3TextModel(config))
    weights = _top(_layers(tensors, 3, GEMMA, 1), tensors, plus=1)
    mlp, scale = Mlp(INNER, "gelu_tanh"), 24**-0.5
    local = _attention(rope="local", window=6, qk_norm=Norm(), scale=scale)
    blocks = (
        Block((local,), mlp, places="sandwich"),
        Block((_attention(qk_norm=Norm(), scale=scale),), mlp, places="sandwich"),
    )
    spec = _spec(*blocks, layers=(0, 0, 1), mask="image", ropes=_rope(1e6) | {"local": Rope(1e4, HEAD)})
    pictures = torch.zeros(1, LENGTH, dtype=torch.int64)
    for span in LAYOUT.spans:
        pictures[0, span.start : span.start + span.tokens] = 1
    config._attn_implementation = "eager"
    masks = module.create_masks_for_vision_model(
        config, _embeddings(), None, None, None, module.get_block_sequence_ids_for_mask(pictures)
    )
    return Case(
        spec, weights, _tied(model(inputs_embeds=_embeddings(), attention_mask=masks).last_hidden_state, weights)
    )


def gemma3n() -> Case:
    """Streams, maps beside mixers, gates of which some values count, rows of a second table, shared keys."""
    from transformers.models.gemma3n import modeling_gemma3n as module

    kinds = ["sliding_attention", "full_attention"] * 2
    thetas = {"sliding_attention": 1e4, "full_attention": 1e6}
    ropes = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    config = module.Gemma3nTextConfig(
        **SIZES, head_dim=HEAD, num_hidden_layers=4, sliding_window=6, layer_types=kinds, rope_parameters=ropes,
        hidden_size_per_layer_input=8, num_kv_shared_layers=2, laurel_rank=12, vocab_size_per_layer_input=VOCAB,
        activation_sparsity_pattern=[0.95, 0.5, 0.3, 0.0], altup_num_inputs=3, pad_token_id=0,
    )  # fmt: skip
    model, tensors = _model(module.Gemma3nTextModel(config))
    for name, tensor in tensors.items():
        if name.endswith("modality_router.weight"):
            tensor *= WIDTH  # which divides what it reads
    own = GEMMA | {
        "laurel_in": "laurel.linear_left", "laurel_out": "laurel.linear_right",
        "laurel_norm": "laurel.post_laurel_norm",
        "router": "altup.modality_router", "router_norm": "altup.router_norm", "predict": "altup.prediction_coefs",
        "correct": "altup.correction_coefs", "per_layer_gate": "per_layer_input_gate",
        "per_layer_up": "per_layer_projection", "per_layer_norm": "post_per_layer_input_norm",
    }  # fmt: skip
    weights = _top(_layers(tensors, 4, own), tensors)
    for i in range(4):
        weights[f"decoder.layers.{i}.first_scale"] = tensors[f"layers.{i}.altup.correct_output_scale"]
    for n in range(1, 3):
        weights[f"decoder.spread_{n}.weight"] = tensors[f"altup_projections.{n - 1}.weight"]
        weights[f"decoder.join_{n}.weight"] = tensors[f"altup_unembed_projections.{n - 1}.weight"]
    for ours, theirs in (("embed", "embed_tokens_per_layer"), ("map", "per_layer_model_projection")):
        weights[f"decoder.per_layer_{ours}.weight"] = tensors[f"{theirs}.weight"]
    weights["decoder.per_layer_norm.weight"] = tensors["per_layer_projection_norm.weight"]
    window = _attention(rope="local", window=6, qk_norm=Norm(), scale=1.0, v_norm=Norm(weight=False))
    whole = replace(window, rope="main", window=None)
    blocks = []
    for attention, share in ((window, 0.95), (whole, 0.5), (window, 0.3), (whole, 0.0)):
        mlp = Mlp(INNER, "gelu_tanh", cutoff=NormalDist().inv_cdf(share) if share else None)
        read = attention if len(blocks) < 2 else replace(attention, reads="earlier", v_norm=None)
        blocks.append(Block((read,), mlp, places="sandwich", laurel=12))
    ropes_of = _rope(1e6) | {"local": Rope(1e4, HEAD)}
    spec = _spec(*blocks, layers=(0, 1, 2, 3), ropes=ropes_of, per_layer=8, per_layer_scale=8**0.5, streams=3)
    rows = torch.randn(1, LENGTH, 4, 8, generator=torch.Generator().manual_seed(4))
    config._attn_implementation = "eager"
    hidden = model(inputs_embeds=_embeddings(), per_layer_inputs=rows).last_hidden_state
    return Case(spec, weights, _tied(hidden, weights), Layout(LENGTH), levels=[rows[0].flatten(1).numpy()])


def paligemma2() -> Case:
    config = hf.Gemma2Config(
        **SIZES, head_dim=HEAD, num_hidden_layers=2, query_pre_attn_scalar=HEAD, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, sliding_window=6,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model, tensors = _model(hf.Gemma2ForCausalLM(config))
    weights = _top(_layers(tensors, 2, GEMMA, 1), tensors, plus=1)
    blocks = [
        Block((_attention(softcap=50.0, window=window),), Mlp(INNER, "gelu_tanh"), places="sandwich")
        for window in (6, None)
    ]
    spec = _spec(*blocks, layers=(0, 1), mask="prompt", logit_cap=30.0, embed_scale=8.0, ropes=_rope())
    layout = Layout(11, LAYOUT.spans[:1])
    prefix = torch.where(torch.arange(LENGTH) < 11, 0, -1)[None]
    arguments = config, _embeddings(), None, None
    masks = {
        "full_attention": masking_utils.create_causal_mask(*arguments, block_sequence_ids=prefix),
        "sliding_attention": masking_utils.create_sliding_window_causal_mask(*arguments, block_sequence_ids=prefix),
    }
    out = model(inputs_embeds=_embeddings(), attention_mask=masks).logits[0].detach().numpy()
    return Case(spec, weights, out, layout)


def mllama() -> Case:
    from transformers.models.mllama import modeling_mllama as module

    config = module.MllamaTextConfig(
        **SIZES, num_hidden_layers=3, cross_attention_layers=[1], pad_token_id=0, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    config._attn_implementation = "eager"
    model, tensors = _model(module.MllamaTextModel(config))
    cross = {ours: theirs.replace("self_attn", "cross_attn") for ours, theirs in LLAMA.items()}
    weights = _top(_layers(tensors, 3, LLAMA) | _layers(tensors, 3, cross), tensors)
    weights = Arrays(weights)
    weights["decoder.layers.1.gate1"] = tensors["layers.1.cross_attn_attn_gate"]
    weights["decoder.layers.1.gate2"] = tensors["layers.1.cross_attn_mlp_gate"]
    norm = Norm(eps=1e-5)
    blocks = (
        Block((_attention(),), Mlp(INNER), norm),
        Block((_attention(rope=None, reads="memory", qk_norm=norm),), Mlp(INNER), norm, gated=True),
    )
    spec = _spec(*blocks, layers=(0, 1, 0), norm=norm, ropes=_rope())
    picture = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(9))
    out = model(inputs_embeds=_embeddings(), cross_attention_states=picture).last_hidden_state
    return Case(spec, weights, _tied(out, weights), Layout(LENGTH), picture[0].numpy())


def bart() -> Case:
    from transformers.models.bart import modeling_bart as module

    config = module.BartConfig(
        vocab_size=VOCAB, d_model=WIDTH, decoder_ffn_dim=INNER, decoder_layers=2, decoder_attention_heads=HEADS,
        encoder_layers=1, encoder_attention_heads=HEADS, encoder_ffn_dim=INNER, activation_function="gelu",
        max_position_embeddings=64, scale_embedding=False, dropout=0.0,
    )  # fmt: skip
    model, tensors = _model(module.BartDecoder(config))
    own = {
        "norm1": "self_attn_layer_norm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
        "o": "self_attn.out_proj", "norm2": "final_layer_norm", "fc1": "fc1", "fc2": "fc2",
        "mixer1.norm1": "encoder_attn_layer_norm", "mixer1.q": "encoder_attn.q_proj", "mixer1.k": "encoder_attn.k_proj",
        "mixer1.v": "encoder_attn.v_proj", "mixer1.o": "encoder_attn.out_proj",
    }  # fmt: skip
    weights = _layers(tensors, 2, own)
    weights["decoder.embed.weight"] = tensors["embed_tokens.weight"]
    weights["decoder.positions.weight"] = tensors["embed_positions.weight"][2:]
    for part in ("weight", "bias"):
        weights[f"decoder.embed_norm.{part}"] = tensors[f"layernorm_embedding.{part}"]
    layer = Norm("layer", 1e-5)
    self_attention = Attention(HEADS, HEADS, HEAD, bias=True, out_bias=True)
    block = Block(
        (self_attention, replace(self_attention, reads="memory")),
        Mlp(INNER, "gelu", gated=False, bias=True),
        layer,
        "post",
    )
    spec = _spec(block, layers=(0, 0), norm=None, embed_norm=layer, learned_positions=64)
    picture = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(9))
    out = model(inputs_embeds=_embeddings(), encoder_hidden_states=picture).last_hidden_state
    return Case(spec, weights, _tied(out, weights), Layout(LENGTH), picture[0].numpy())


def opt() -> Case:
    from transformers.models.opt import modeling_opt as module

    config = module.OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        max_position_embeddings=64, word_embed_proj_dim=WIDTH, dropout=0.0,
    )  # fmt: skip
    model, tensors = _model(module.OPTModel(config))
    own = {
        "norm1": "self_attn_layer_norm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
        "o": "self_attn.out_proj", "norm2": "final_layer_norm", "fc1": "fc1", "fc2": "fc2",
    }  # fmt: skip
    weights = _layers(tensors, 2, own)
    weights["decoder.embed.weight"] = tensors["embed_tokens.weight"]
    weights["decoder.positions.weight"] = tensors["embed_positions.weight"][2:]
    for part in ("weight", "bias"):
        weights[f"decoder.norm.{part}"] = tensors[f"final_layer_norm.{part}"]
    layer = Norm("layer", 1e-5)
    attention = Attention(HEADS, HEADS, HEAD, bias=True, out_bias=True)
    block = Block((attention,), Mlp(INNER, "relu", gated=False, bias=True), layer)
    spec = _spec(block, layers=(0, 0), norm=layer, learned_positions=64)
    return Case(spec, weights, _tied(model(inputs_embeds=_embeddings()).last_hidden_state, weights), Layout(LENGTH))


CASES = (qwen2_5_vl, qwen3_vl, qwen3_5, lfm2, gemma3, gemma3n, paligemma2, mllama, bart, opt)


def _play(case: Case, held: States, start: int, stop: int) -> np.ndarray:
    inputs = decoder_inputs(case.spec, case.layout, start, stop - start)
    inputs["memory_mask"] = np.ones((1, 1), bool)
    ops = EagerOps(case.weights, held, inputs, keep=stop - start)
    embeds = np.concatenate([_embeddings()[0].numpy(), *case.levels], axis=1)
    out: np.ndarray = decoder(ops, embeds[start:stop], case.spec)
    return out


def _states(case: Case) -> States:
    held = States()
    if case.memory is not None:
        held.memory = memory(EagerOps(case.weights), case.memory, case.spec)
    return held


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_walk_is_the_decoder_of_transformers(make: Callable[[], Case]) -> None:
    with torch.no_grad():
        case = make()
    ours = _play(case, _states(case), 0, LENGTH)
    assert np.abs(ours - case.expected).max() < 2e-5 * np.abs(case.expected).max()


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_weight_tree_is_what_the_walk_reads(make: Callable[[], Case]) -> None:
    with torch.no_grad():
        case = make()
    tree = decoder_tree(case.spec)
    assert {name: info.shape for name, info in tree.items()} == {n: w.shape for n, w in case.weights.items()}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_prompt_in_parts_gives_what_it_gives_at_once(make: Callable[[], Case]) -> None:
    """A prefix that sees itself is read in one piece; everything else may be cut anywhere outside a picture."""
    with torch.no_grad():
        case = make()
    whole, held = _play(case, _states(case), 0, LENGTH), _states(case)
    parts = [_play(case, held, start, stop) for start, stop in ((0, 11), (11, 18), (18, 19), (19, 20))]
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-5 * np.abs(whole).max()
    assert {state.name for state in states(case.spec) if state.kind != "memory"} == {*held.growing, *held.replaced}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_of_transformers(family: str) -> None:
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    prefix = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    config = getattr(module, f"{prefix}Config")()
    model = getattr(module, f"{prefix}Model").__new__(getattr(module, f"{prefix}Model"))
    torch.nn.Module.__init__(model)
    model.config = config
    ids = [1, 2, 3, config.vision_start_token_id] + [config.image_token_id] * 6
    ids += [7, config.vision_start_token_id] + [config.image_token_id] * 4 + [8, 9, 10]
    tokens = torch.tensor([ids])
    found, delta = model.get_rope_index(
        input_ids=tokens, image_grid_thw=torch.tensor([[1, 4, 6], [1, 2, 8]]), attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == config.image_token_id).int(),
    )  # fmt: skip
    layout = Layout(len(ids), (Span(4, (2, 3)), Span(12, (1, 4))))
    assert (found[:, 0].numpy() == positions(layout, 3)).all()
    assert int(delta) == int(positions(layout, 3, len(ids), len(ids) + 1)[0, 0]) - len(ids)


def test_rope_rows_are_those_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = hf.LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, rope_theta=10000.0)
    places = torch.arange(300)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 300, 1), places)
    ours = rope_rows(Rope(10000.0, HEAD), places.numpy())
    np.testing.assert_allclose(ours[0], cos[0, :, : HEAD // 2], atol=1e-6)
    np.testing.assert_allclose(ours[1], sin[0, :, : HEAD // 2], atol=1e-6)
    assert rope_inputs("main") == ("cos", "sin")


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_proportional_rope_rows_are_those_of_transformers(share: float) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": share}
    config = hf.LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, head_dim=64, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["proportional"](config)
    angles = np.arange(300)[:, None] * theirs.numpy()
    ours = rope_rows(Rope(1e6, 64, turning=int(share * 32)), np.arange(300)[None])
    np.testing.assert_allclose(ours[0], np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(ours[1], np.sin(angles), atol=2e-5)
