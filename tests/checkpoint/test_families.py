"""The SmolVLM family against transformers: every tensor, every config default, the position buckets."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Idefics3Config, SmolVLMConfig
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3ForConditionalGeneration,
    Idefics3VisionEmbeddings,
)
from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMForConditionalGeneration,
    SmolVLMVisionEmbeddings,
)

from edgevlm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.checkpoint.families.towers import bucketed_positions
from edgevlm.errors import EdgeVLMError
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Shuffle
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope, RopeScaling
from edgevlm.models.towers.vit import Vit

CONFIGS = {"smolvlm": SmolVLMConfig, "idefics3": Idefics3Config}
MODELS = {"smolvlm": SmolVLMForConditionalGeneration, "idefics3": Idefics3ForConditionalGeneration}

# As published on the Hub, without the fields that play no part.
SMOLVLM_256M = {
    "model_type": "idefics3",
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000,
        "vocab_size": 49280,
    },
    "vision_config": {"model_type": "idefics3", "hidden_size": 768, "image_size": 512, "patch_size": 16,
                      "num_attention_heads": 12},
}  # fmt: skip
SMOLVLM2_2B = {
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 3,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "rope_theta": 130000,
        "vocab_size": 49280,
    },
    "vision_config": {"model_type": "smolvlm_vision", "hidden_size": 1152, "image_size": 384, "patch_size":
    14,
                      "intermediate_size": 4304, "num_hidden_layers": 27},
}  # fmt: skip

IDEFICS3_8B = {
    "model_type": "idefics3",
    "image_token_id": 128257,
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0,
        "vocab_size": 128260,
    },
    "vision_config": {"model_type": "idefics3", "hidden_size": 1152, "image_size": 364, "intermediate_size": 4304,
                      "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14},
}  # fmt: skip


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


class Shapes:
    """Stands for a checkpoint with the tensors of transformers' model for `config`, without their values."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.name = "shapes"
        self.folder = Path("shapes")
        self.hf_config = hf_config(config)
        with torch.device("meta"):
            model = MODELS[config["model_type"]](self.hf_config)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if self.hf_config.tie_word_embeddings:
            del self._shapes["lm_head.weight"]

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]


def hf_config(config: dict[str, Any]) -> Any:
    values = {key: value for key, value in copy.deepcopy(config).items() if key != "model_type"}
    return CONFIGS[config["model_type"]](**values)


def read_shapes(config: dict[str, Any]) -> tuple[ModelSpec, Any]:
    shapes = Shapes(config)
    spec, _ = read_model(cast(Checkpoint, shapes))
    return spec, shapes.hf_config


def assert_same(spec: ModelSpec, config: Any) -> None:
    text, vision = config.text_config, config.vision_config
    rope, scaling = text.rope_parameters, None
    if rope["rope_type"] != "default":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = RopeScaling(*(rope[name] for name in names))
    norm, bias = Norm("rms", text.rms_norm_eps), text.attention_bias
    attention = Attention(
        text.num_attention_heads, text.num_key_value_heads, text.head_dim, bias=bias, out_bias=bias, rope="main"
    )
    assert spec.decoder == Decoder(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        context_length=text.max_position_embeddings,
        blocks=(Block((attention,), Mlp(text.intermediate_size, bias=text.mlp_bias), norm),),
        layers=(0,) * text.num_hidden_layers,
        norm=norm,
        ropes={"main": Rope(rope["rope_theta"], text.head_dim, scaling)},
        tie_embeddings=config.tie_word_embeddings,
    )
    assert vision.num_channels == 3
    heads, act = vision.num_attention_heads, {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}[vision.hidden_act]
    attention = Attention(heads, heads, vision.hidden_size // heads, bias=True, out_bias=True)
    mlp = Mlp(vision.intermediate_size, act, gated=False, bias=True)
    assert spec.vision == Vit(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.hidden_size,
        num_layers=vision.num_hidden_layers,
        block=Block((attention,), mlp, Norm("layer", vision.layer_norm_eps)),
        masked_tiles=True,
    )
    assert spec.projector == (
        Shuffle(config.scale_factor, vision.hidden_size),
        Linear("linear", text.hidden_size, bias=False),
    )
    assert spec.image_token_id == config.image_token_id


VARIANTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    "idefics3": {"family": "idefics3", "seed": 1},
    "saved by transformers 5": {"published": False},
    "bfloat16": {"dtype": "bfloat16", "sharded": True},
    "float16, own head": {"dtype": "float16", "tie": False},
    "own head, 5": {"tie": False, "published": False, "family": "idefics3"},
    "wide heads and biases": {"head_dim": 32, "attention_bias": True},
    "odd grid": {"image_size": 200, "scale_factor": 5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_the_one_transformers_loads(builder: ModuleType, tmp_path: Path, variant: str) -> None:
    folder = builder.build_tiny(tmp_path / "model", **VARIANTS[variant])
    model = builder.load_model(folder)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    spec, weights = read_model(open_checkpoint(str(folder)))
    assert_same(spec, model.config)
    used = set()
    for name in weights.names():
        found, (source,) = weights.read(name), weights.stored_names(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous and name in weights
        assert found.shape == weights.shape(name)
        expected = state[source]
        if name == "vision.position_embedding":
            assert isinstance(spec.vision, Vit)
            expected = expected[hf_positions(spec.vision.patches_per_side, SmolVLMVisionEmbeddings)]
        np.testing.assert_array_equal(found, expected)
        used.add(source)
    left = set(state) - used
    assert left == ({"lm_head.weight"} if spec.decoder.tie_embeddings else set())
    assert ("decoder.head.weight" in weights) is not spec.decoder.tie_embeddings


@pytest.mark.parametrize("config", [SMOLVLM_256M, SMOLVLM2_2B, IDEFICS3_8B], ids=["256M", "2.2B", "8B"])
def test_published_sizes(config: dict[str, Any]) -> None:
    spec, reference = read_shapes(config)
    assert_same(spec, reference)
    assert spec.image_tokens == {4: 64, 3: 81, 2: 169}[reference.scale_factor]


FULL: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": 7,
    "scale_factor": 3,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 80,
        "max_position_embeddings": 100,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-4,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "head_dim": None,
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": True,
        "vocab_size": 200,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_channels": 3,
        "image_size": 48,
        "patch_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    },
}


@pytest.mark.heavy
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_left_out_fields_take_transformers_defaults(data: st.DataObject) -> None:
    config = copy.deepcopy(FULL)
    config["model_type"] = data.draw(st.sampled_from(["smolvlm", "idefics3"]))
    for section in (config, config["text_config"], config["vision_config"]):
        for key in sorted(set(section) - {"model_type", "text_config", "vision_config", "num_hidden_layers"}):
            if data.draw(st.integers(0, 9)) == 0:
                del section[key]
    if data.draw(st.integers(0, 3)) == 0:
        rope = {"rope_type": "default"} | ({"rope_theta": 777.0} if data.draw(st.booleans()) else {})
        config["text_config"]["rope_parameters"] = rope
    for part in ("text_config", "vision_config"):
        if data.draw(st.integers(0, 19)) == 0:
            del config[part]
    try:
        reference = hf_config(config)
        vocab = reference.text_config.vocab_size
        side = reference.vision_config.image_size // reference.vision_config.patch_size
        fits = reference.image_token_id < vocab and side > 0 and side % reference.scale_factor == 0
    except Exception:
        fits = False
    assume(fits and reference.text_config.num_attention_heads % reference.text_config.num_key_value_heads == 0)
    spec, reference = read_shapes(config)
    assert_same(spec, reference)


def hf_positions(side: int, embeddings: Any) -> Any:
    """The table row that transformers' own module adds to each patch of a full image."""
    config = SmolVLMConfig(
        vision_config={"hidden_size": 1, "num_attention_heads": 1, "image_size": side, "patch_size": 1}
    )
    module = embeddings(config.vision_config)
    with torch.no_grad():
        module.patch_embedding.weight.zero_()
        module.patch_embedding.bias.zero_()
        module.position_embedding.weight.copy_(torch.arange(side * side, dtype=torch.float32)[:, None])
        mask = torch.ones(1, side, side, dtype=torch.bool)
        return module(torch.zeros(1, 3, side, side), mask)[0, :, 0].long().numpy()


@pytest.mark.parametrize("embeddings", [SmolVLMVisionEmbeddings, Idefics3VisionEmbeddings])
def test_positions_are_those_of_transformers(embeddings: Any) -> None:
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # the arithmetic that is reproduced
    for side in range(2, 65) if exact else (26, 27, 32):
        np.testing.assert_array_equal(bucketed_positions(side), hf_positions(side, embeddings), f"{side} per side")


def test_positions_of_published_sizes_are_in_order_and_some_others_are_not() -> None:
    for side in (8, 16, 24, 26, 27, 32):
        np.testing.assert_array_equal(bucketed_positions(side), np.arange(side * side))
    assert len(np.unique(bucketed_positions(25))) < 25 * 25


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def read_folder(folder: Path) -> tuple[ModelSpec, Any]:
    return read_model(open_checkpoint(str(folder)))


def edit(folder: Path, path: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    *sections, key = path.split("/")
    target = config
    for section in sections:
        target = target[section]
    target[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Set tensors (None: remove) whose names have "__" for "."."""
    stored = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


REFUSED = [
    ("model_type", "stranger", "'stranger', which edgevlm does not support: its vision tower 'smolvlm_vision' is "
                                "known; its decoder 'llama' is known; docs/checkpoints.md lists"),
    ("model_type", None, "None, which edgevlm does not support"),
    ("model_type", ["smolvlm"], "which edgevlm does not support"),
    ("text_config", [], "text_config = [], expected an object"),
    ("text_config/model_type", "gemma", "text_config.model_type = 'gemma', expected 'llama' or 'qwen2' or 'qwen3'"),
    ("text_config/model_type", "qwen2", "lacks the tensor 'model.text_model.layers.0.self_attn.q_proj.bias'"),
    ("text_config/model_type", "qwen3", "lacks the tensor 'model.text_model.layers.0.self_attn.q_norm.weight'"),
    ("text_config/hidden_act", "relu", "hidden_act = 'relu', expected 'silu'"),
    ("text_config/rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "low_freq_factor = nothing, expected a"),
    ("text_config/rope_scaling", {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                                  "original_max_position_embeddings": 64}, "low_freq_factor = 4, expected less than"),
    ("text_config/rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling.type = 'linear', expected 'default'"),
    ("text_config/rope_parameters", {"rope_type": "ntk"}, "rope_type = 'ntk', expected 'default'"),
    ("text_config/rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "attention_factor = nothing, expected 1, or"),
    ("text_config/rope_parameters", {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1, "beta_slow": 32.0},
                                    "beta_slow = 32.0, expected less than beta_fast"),
    ("text_config/partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5, expected 1"),
    ("text_config/hidden_size", 65.5, "a whole number from 1"),
    ("text_config/num_hidden_layers", 0, "expected a whole number from 1 to 1000"),
    ("text_config/num_hidden_layers", 10**9, "expected a whole number from 1 to 1000"),
    ("text_config/num_hidden_layers", 4, "lacks the tensor 'model.text_model.layers.3."),
    ("text_config/num_hidden_layers", 2, "holds the tensor 'model.text_model.layers.2."),
    ("text_config/num_key_value_heads", 3, "no multiple of num_key_value_heads"),
    ("text_config/head_dim", 15, "RoPE needs an even one"),
    ("text_config/vocab_size", 513, "with the shape [512, 64] where its config.json asks for [513, 64]"),
    ("text_config/rms_norm_eps", float("nan"), "a positive number"),
    ("text_config/rms_norm_eps", "1e-5", "a positive number"),
    ("text_config/attention_bias", True, "lacks the tensor"),
    ("text_config/attention_bias", 1, "true or false"),
    ("vision_config/hidden_act", "mish", "hidden_act = 'mish'"),
    ("vision_config/hidden_act", {}, "hidden_act = {}"),
    ("vision_config/num_channels", 4, "num_channels = 4, expected 3"),
    ("vision_config/image_size", [64, 32], "two equal ones"),
    ("vision_config/image_size", 10**8, "vision.image_size is 100000000, expected 1 to 8192"),
    ("vision_config/image_size", 4, "smaller than patch_size"),
    ("vision_config/num_attention_heads", 5, "no multiple of num_attention_heads"),
    ("scale_factor", 3, "8 patches per side are no multiple of scale_factor"),
    ("image_token_id", 512, "image_token_id 512 is outside the vocabulary"),
    ("image_token_id", -1, "a whole number from 0"),
    ("tie_word_embeddings", "yes", "true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), REFUSED)
def test_unsupported_config_is_refused_in_one_sentence(folder: Path, path: str, value: Any, expected: str) -> None:
    edit(folder, path, value)
    assert expected in refused(lambda: read_folder(folder))


def test_remote_code_is_only_another_unknown_family(folder: Path) -> None:
    edit(folder, "auto_map", {"AutoModel": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    assert read_folder(folder)[0].family == "smolvlm"
    edit(folder, "model_type", "evil")
    assert "'evil', which edgevlm does not support" in refused(lambda: read_folder(folder))


def test_square_sizes_as_lists(folder: Path) -> None:
    edit(folder, "vision_config/image_size", [64, 64])
    assert read_folder(folder)[0].vision.image_size == 64


def test_wrong_tensors_are_named(folder: Path) -> None:
    change(folder, model__connector__extra=torch.zeros(2))
    assert "'model.connector.extra', which no smolvlm model has" in refused(lambda: read_folder(folder))
    change(folder, model__connector__extra=None, model__text_model__norm__weight=torch.zeros(65))
    assert "'model.text_model.norm.weight' with the shape [65]" in refused(lambda: read_folder(folder))
    change(folder, model__text_model__norm__weight=None)
    assert "lacks the tensor 'model.text_model.norm.weight'" in refused(lambda: read_folder(folder))


def test_buffers_of_old_versions_are_ignored(folder: Path) -> None:
    change(
        folder,
        model__text_model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
        model__vision_model__embeddings__position_ids=torch.arange(64),
    )
    read_folder(folder)


def test_names_without_the_model_prefix(builder: ModuleType, folder: Path) -> None:
    """As SmolVLMModel.save_pretrained writes them."""
    model = builder.load_model(folder)
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    _, weights = read_folder(folder)
    np.testing.assert_array_equal(weights.read("decoder.norm.weight"), model.model.text_model.norm.weight.detach())


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_stored_head_counts_as_in_transformers(builder: ModuleType, folder: Path, tied: bool, equal: bool) -> None:
    edit(folder, "tie_word_embeddings", tied)
    embed = load_file(folder / "model.safetensors")["model.text_model.embed_tokens.weight"]
    change(folder, lm_head__weight=embed.clone() if equal else 2 * embed)
    model = builder.load_model(folder)
    shared = model.lm_head.weight.data_ptr() == model.model.text_model.embed_tokens.weight.data_ptr()
    spec, weights = read_folder(folder)
    assert spec.decoder.tie_embeddings is shared
    if not shared:
        np.testing.assert_array_equal(weights.read("decoder.head.weight"), model.lm_head.weight.detach())


def test_no_head_at_all(folder: Path) -> None:
    edit(folder, "tie_word_embeddings", False)
    assert read_folder(folder)[0].decoder.tie_embeddings  # text_config still says so, and there is no head
    edit(folder, "text_config/tie_word_embeddings", False)
    assert "lacks the tensor 'lm_head.weight'" in refused(lambda: read_folder(folder))


@pytest.mark.heavy
def test_256m_holds_a_decoder_that_speaks(builder: ModuleType, checkpoint_256m: Path) -> None:
    model, processor = builder.load_model(checkpoint_256m), builder.load_processor(checkpoint_256m)
    ids = processor.tokenizer("The capital of France is", return_tensors="pt")
    answer = processor.tokenizer.decode(model.generate(**ids, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in answer
    spec, weights = read_folder(checkpoint_256m)
    assert_same(spec, model.config)
    state = model.state_dict()
    for name in weights.names():
        np.testing.assert_array_equal(weights.read(name), state[weights.stored_names(name)[0]])
