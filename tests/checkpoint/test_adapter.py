"""LoRA merging against peft's merge_and_unload, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevlm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.checkpoint.opening import open_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.source import read_adapter
from edgevlm.verify.adapter import check_adapter

TEXT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERYTHING = [*TEXT, "out_proj", "fc1", "fc2", "proj"]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


def train(builder: ModuleType, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Save an adapter with random A, B and the rest, and return the weights that peft merges it to."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 12, "target_modules": EVERYTHING, **options}
    adapted = peft.get_peft_model(builder.load_model(model), peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(out)
    merged = adapted.merge_and_unload()
    return {name: tensor.detach().clone().numpy() for name, tensor in merged.state_dict().items()}


def assert_merged(model: Path, adapter: Path, expected: dict[str, Any]) -> Checkpoint:
    base, merged = open_checkpoint(str(model)), open_model(str(model), adapter=adapter)
    changed = 0
    for name in merged.names():
        found = merged.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == merged.shape(name)
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-6, err_msg=name)
        changed += name not in base.names() or not np.array_equal(found, base.read(name))
    assert changed >= 4
    read_model(merged)
    assert merged.content_hash() != base.content_hash()
    return merged


VARIANTS: dict[str, dict[str, Any]] = {
    "all linear layers": {},
    "text only": {"target_modules": TEXT, "r": 16},
    "vision only": {"target_modules": r".*vision_model.*\.(q_proj|fc1)", "r": 2},
    "rsLoRA": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"down_proj": 8, "text_model.layers.0.self_attn.q_proj": 2, r"layers\.1\..*_proj": 3},
        "alpha_pattern": {"k_proj": 5, "fc[12]": 7, "model.connector.modality_projection.proj": 9},
    },
    "DoRA": {"use_dora": True},
    "DoRA with rsLoRA": {"use_dora": True, "use_rslora": True, "target_modules": TEXT},
    "whole modules": {"modules_to_save": ["connector", "post_layernorm"], "target_modules": TEXT},
    "own start": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merges_as_peft_does(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path, variant: str) -> None:
    expected = train(builder, tiny_checkpoint, tmp_path, **VARIANTS[variant])
    assert_merged(tiny_checkpoint, tmp_path, expected)


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_biases_embedding_and_head_of_an_untied_model(builder: ModuleType, tmp_path: Path, family: str) -> None:
    model = builder.build_tiny(tmp_path / "model", family=family, tie=False, attention_bias=True, published=False)
    options = {"bias": "all", "target_modules": [*EVERYTHING, "embed_tokens", "lm_head"]}
    expected = train(builder, model, tmp_path / "adapter", **options)
    assert any("lora_embedding_A" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert_merged(model, tmp_path / "adapter", expected)


def test_own_head_for_a_tied_model(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": TEXT}
    expected = train(builder, tiny_checkpoint, tmp_path, **options)
    assert not np.array_equal(expected["lm_head.weight"], expected["model.text_model.embed_tokens.weight"])
    merged = assert_merged(tiny_checkpoint, tmp_path, expected)
    spec, weights = read_model(merged)
    assert not spec.decoder.tie_embeddings
    np.testing.assert_array_equal(weights.read("decoder.head.weight"), expected["lm_head.weight"])


def test_half_precision_is_merged_in_float32(builder: ModuleType, tmp_path: Path) -> None:
    model = builder.build_tiny(tmp_path / "model", dtype="bfloat16", sharded=True)
    expected = train(builder, model, tmp_path / "adapter")  # the builder loads in float32
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    assert_merged(model, path.parent, expected)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
    delta = 3 * (halves[f"{key}B.weight"].double() @ halves[f"{key}A.weight"].double()).numpy()
    base = open_checkpoint(str(model)).read(name)
    np.testing.assert_allclose(open_model(str(model), adapter=path.parent).read(name), base + delta, atol=1e-6)


def test_answers_are_those_of_the_adapted_model(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The merged tensors, loaded into transformers, give the logits of peft's unmerged model."""
    train(builder, tiny_checkpoint, tmp_path, use_dora=True)
    adapted = peft.PeftModel.from_pretrained(builder.load_model(tiny_checkpoint), tmp_path).eval()
    plain = builder.load_model(tiny_checkpoint)
    merged = open_model(str(tiny_checkpoint), adapter=tmp_path)
    plain.load_state_dict({name: torch.from_numpy(merged.read(name)) for name in merged.names()}, strict=False)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def trained(builder: ModuleType, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(builder, tiny_checkpoint, folder, target_modules=["q_proj"])
    return folder


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


CONFIG = [
    ({"peft_type": "IA3"}, "of the type 'IA3': edgevlm merges LORA"),
    ({"peft_type": None}, "of the type 'None'"),
    ({"fan_in_fan_out": True}, "uses fan_in_fan_out=True"),
    ({"lora_bias": True}, "uses lora_bias=True"),
    ({"init_lora_weights": "pissa"}, "uses init_lora_weights=pissa"),
    ({"init_lora_weights": "pissa_niter_4"}, "uses init_lora_weights=pissa_niter_4"),
    ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
    ({"trainable_token_indices": [3]}, "uses trainable_token_indices"),
    ({"alora_invocation_tokens": [3]}, "uses alora_invocation_tokens"),
    ({"use_dora": True}, "uses use_dora=True"),
    ({"r": 8}, "has the shape [4, 64] where adapter_config.json says rank 8"),
    ({"r": 4.5}, "r is 4.5, expected a whole number"),
    ({"use_dora": "yes"}, "use_rslora and use_dora should be true or false"),
    ({"an_option_of_tomorrow": 3}, "uses an_option_of_tomorrow=3, which edgevlm cannot merge exactly"),
    ({"r": 0}, "r and lora_alpha should be positive"),
    ({"lora_alpha": "16"}, "r and lora_alpha should be positive"),
    ({"rank_pattern": {"q_proj": 3}}, "has the shape [4, 64] where adapter_config.json says rank 3"),
    ({"rank_pattern": {"q_proj": 3.5}}, "rank_pattern should map module names to whole numbers"),
    ({"rank_pattern": [3]}, "rank_pattern should map"),
    ({"alpha_pattern": {"q_proj": 10**300}}, "alpha_pattern should map module names to positive numbers"),
    ({"alpha_pattern": {"q_proj": 10**400}}, "adapter_config.json' is not valid JSON (a number has over 308 digits)"),
    ({"alpha_pattern": {"(": 3}}, "alpha_pattern holds '(', which is no regular expression: name modules plainly"),
    ({"alpha_pattern": {r"(q)_proj\1": 3}}, "which refers back"),
    ({"alpha_pattern": {"a{1}" * 51: 3}}, "has 204 characters, more than 200"),
    ({"alpha_pattern": {f"layers.{i}.+": 3 for i in range(40)}}, "alpha_pattern holds 40 patterns, where at most"),
]


@pytest.mark.parametrize(("values", "expected"), CONFIG)
def test_unsupported_adapters_are_refused(
    adapter: Path, tiny_checkpoint: Path, values: dict[str, Any], expected: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert expected in refused(lambda: open_model(str(tiny_checkpoint), adapter=adapter))


ROOT = "base_model.model."
Q = f"{ROOT}model.text_model.layers.0.self_attn.q_proj"
TENSORS = [
    ({f"{Q}.lora_B.weight": None}, "lacks lora_B"),
    ({f"{Q}.lora_A.weight": torch.zeros(4, 65)}, "[4, 65], where [4, 64] fits tiny: give the model that it was"),
    ({f"{Q}.lora_magnitude_vector": torch.zeros(64)}, "uses use_dora=False"),
    ({f"{Q}.lora_B.bias": torch.zeros(64)}, "which is no weight of tiny (1 of its 6 changes"),
    ({f"{ROOT}model.audio.lora_A.weight": torch.zeros(4, 64)}, "model.audio.lora_A.weight', which is no weight of"),
    ({f"{ROOT}model.connector.other": torch.zeros(4)}, "which is no weight of tiny"),
    ({f"{ROOT}model.text_model.norm.weight": torch.zeros(4)}, "with the shape [4], where [64] fits tiny"),
    ({f"{ROOT}text_model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64),
      f"{ROOT}text_model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(64, 4)}, "a second time"),
    ({f"{ROOT}model.text_model.norm.lora_A.weight": torch.zeros(4, 64),
      f"{ROOT}model.text_model.norm.lora_B.weight": torch.zeros(64, 4)}, "LoRA on 'model.text_model.norm.weight' of"),
    ({f"{ROOT}model.text_model.embed_tokens.lora_embedding_A": torch.zeros(4, 512),
      f"{ROOT}model.text_model.embed_tokens.lora_embedding_B": torch.zeros(64, 4)},
     "puts LoRA on 'model.text_model.embed_tokens.weight', which tiny uses as embedding and as head"),
    ({f"{ROOT}lm_head.lora_A.weight": torch.zeros(4, 64), f"{ROOT}lm_head.lora_B.weight": torch.zeros(512, 4)},
     "puts LoRA on 'lm_head.weight', which tiny uses as embedding and as head"),
    ({f"{ROOT}lm_head.weight": torch.zeros(520, 64)}, "with a vocabulary of 520 tokens where tiny has 512"),
    ({f"{ROOT}model.text_model.embed_tokens.weight": torch.zeros(520, 64)}, "resize_token_embeddings(520)"),
    ({f"{ROOT}lm_head.weight": torch.zeros(520, 65)}, "[520, 65], where [512, 64] fits tiny: give the model"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "expected"), TENSORS)
def test_adapters_that_do_not_fit_are_refused(
    adapter: Path, tiny_checkpoint: Path, tensors: dict[str, Any], expected: str
) -> None:
    path = adapter / "adapter_model.safetensors"
    changed = load_file(path) | tensors
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    assert expected in refused(lambda: open_model(str(tiny_checkpoint), adapter=adapter))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_values_that_are_no_numbers_are_refused(adapter: Path, tiny_checkpoint: Path, value: float) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{Q}.lora_B.weight": torch.full((64, 4), value)}, path)
    merged = open_model(str(tiny_checkpoint), adapter=adapter)
    name = f"{Q.removeprefix(ROOT)}.weight"
    assert f"makes '{name}' hold values that are infinite or no numbers" in refused(lambda: merged.read(name))
    assert np.isfinite(merged.read(name.replace(".0.", ".1."))).all()


@pytest.mark.heavy
def test_files_of_the_inner_model(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The oldest layout lacks the outer module; adapters have it."""
    inner = Path(shutil.copytree(tiny_checkpoint, tmp_path / "inner"))
    path = inner / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    ours, wanted = (open_model(str(folder), adapter=adapter) for folder in (inner, tiny_checkpoint))
    for name in ours.names():
        np.testing.assert_array_equal(ours.read(name), wanted.read(f"model.{name}"))
    merged = read_adapter(ours)
    assert merged is not None and check_adapter(merged).passed


def test_an_adapter_of_another_model(adapter: Path, builder: ModuleType, tmp_path: Path) -> None:
    """The weight that is not there is named, and the model that the adapter was trained on."""
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("text_model", "decoder"): tensor for name, tensor in load_file(path).items()}, path)
    model = builder.build_tiny(tmp_path / "model")
    message = refused(lambda: open_model(str(model), adapter=adapter))
    assert "which is no weight of model (3 of its 5 changes are to such): give the model that it was" in message
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] in message


def test_missing_and_damaged_folders(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def read(where: Path | str) -> Callable[[], Any]:
        return lambda: open_model(str(tiny_checkpoint), adapter=where)

    assert "there is no folder" in refused(read(str(tmp_path / "none")))
    assert "is a model, not an adapter: it has no adapter_config.json" in refused(read(tiny_checkpoint))
    (tmp_path / "empty").mkdir()
    assert "is no adapter" in refused(read(tmp_path / "empty"))
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "adapter_model.safetensors is truncated" in refused(read(adapter))
    path.rename(adapter / "adapter_model.bin")
    assert "weights as pickle, adapter_model.bin, are not read" in refused(read(adapter))
    (adapter / "adapter_config.json").write_text("[")
    assert "adapter_config.json' is not valid JSON" in refused(read(adapter))
