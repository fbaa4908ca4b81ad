"""Adapters from training to export: a composed model, an adapter as the model, and what the command says at its end."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import internvl, qwen2_5_vl
from training_data import write_data

from edgevlm.checkpoint.adapter import WEIGHTS
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.opening import open_model
from edgevlm.commands.train import next_step
from edgevlm.errors import EdgeVLMError
from edgevlm.export.source import read_adapter
from edgevlm.train.compose import ComposeOptions, compose
from edgevlm.train.models import open_source, save
from edgevlm.train.options import TrainOptions
from edgevlm.train.records import Records
from edgevlm.train.run import train
from edgevlm.verify.adapter import check_adapter


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("training") / "data", 4)


@pytest.fixture
def options(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> TrainOptions:
    out = tmp_path / "out"
    return TrainOptions(
        str(tiny_checkpoint), data / "data.jsonl", out, steps=2, batch=2, learning_rate=1e-2, max_tiles=1, cpu=True
    )


def run(options: TrainOptions) -> Path:
    torch.set_num_threads(1)
    out = train(options, lambda what, done, total: None, lambda text: None)
    assert out is not None
    return out


@pytest.fixture(scope="module")
def language_model(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language-model")
    tokenizer = builder._tiny_tokenizer(512)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(), tie_word_embeddings=True, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>").save_pretrained(folder)
    return folder


@pytest.mark.heavy
def test_an_adapter_of_a_composed_model_is_merged(
    tiny_checkpoint: Path, language_model: Path, options: TrainOptions, tmp_path: Path
) -> None:
    """LLaVA's layout, whose names in memory and on disk differ."""
    made = ComposeOptions(str(tiny_checkpoint), str(language_model), "mlp", tmp_path / "composed")
    compose(made, lambda text: None)
    out = run(replace(options, model=str(tmp_path / "composed"), lora=4))
    merged = read_adapter(open_model(str(out)))
    assert merged is not None
    row = check_adapter(merged)
    layers = 2 * 7 + 2  # of the decoder and of the projector
    assert row.passed and row.note == f"{layers} tensors by peft {peft.__version__}"


@pytest.mark.heavy
def test_training_goes_on_from_an_adapter(options: TrainOptions) -> None:
    """The base model with the adapter merged is what is trained; what stays frozen shows it."""
    adapter = run(replace(options, lora=4, train=("vision", "decoder")))
    again = replace(options, model=str(adapter), out=options.out.with_name("again"), train=("projector",))
    found, merged = open_checkpoint(str(run(again))), open_model(str(adapter))
    assert merged.adapter is not None and sorted(found.names()) == sorted(merged.names())
    for name in merged.names():
        equal = np.allclose(found.read(name), merged.read(name), atol=1e-6)
        assert equal is ("connector" not in name), name
    with pytest.raises(EdgeVLMError, match="is an adapter, and --lora would make one of a merged model"):
        run(replace(again, lora=2, out=options.out.with_name("third")))


@pytest.mark.heavy
def test_nothing_is_said_but_edgevlms_own_lines(options: TrainOptions, capfd: pytest.CaptureFixture[str]) -> None:
    """peft would look for the base model on the Hub, and warn that it did not find it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = run(replace(options, model="default", lora=2, steps=1))
    assert not [str(warning.message) for warning in caught if "peft" in warning.filename]
    captured = capfd.readouterr()
    assert "Warning" not in captured.err and not captured.out
    assert not [name for name in peft.utils.load_peft_weights(str(out)) if "embed_tokens" in name]


def test_an_adapter_that_peft_does_not_place(options: TrainOptions, tiny_checkpoint: Path) -> None:
    """peft takes names that its class does not have, merges nothing, and warns at most."""
    adapter = options.out.with_name("alone")
    config = peft.LoraConfig(target_modules=["q_proj"], base_model_name_or_path=str(tiny_checkpoint))
    config.save_pretrained(adapter)
    name = "base_model.model.model.model.text_model.layers.0.self_attn.q_proj.lora_"
    save_file({f"{name}A.weight": torch.ones(8, 64), f"{name}B.weight": torch.ones(64, 8)}, adapter / WEIGHTS)
    assert open_model(str(adapter)).adapter is not None
    with pytest.raises(EdgeVLMError, match=r"peft does not find all layers of .* such an adapter can be exported"):
        open_source(str(adapter)).load()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "edgevlm export out -o out-bundle"),
        ({"lora": 4}, "edgevlm export base --adapter out -o out-bundle"),
        ({"lora": 4, "processor": "a b"}, "edgevlm export base --adapter out -o out-bundle --processor 'a b'"),
        ({"stage": "align"}, "edgevlm train out --stage instruct --data d.jsonl -o out-instruct"),
    ],
)
def test_the_next_command(changes: dict[str, object], words: str) -> None:
    options = TrainOptions("base", Path("d.jsonl"), Path("out"))
    assert next_step(replace(options, **changes)) == words  # type: ignore[arg-type]


def test_models_that_are_not_trained(tmp_path: Path) -> None:
    qwen2_5_vl.build(tmp_path / "any")
    with pytest.raises(EdgeVLMError, match="any takes pictures of any size, which edgevlm trains on no model yet"):
        open_source(str(tmp_path / "any"))
    internvl.build(tmp_path / "own", layout="remote")
    with pytest.raises(EdgeVLMError, match="own has the layout of its authors' own code"):
        open_source(str(tmp_path / "own"))


def test_weights_saved_alone_are_trained_with_a_processor(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    source, whole = open_source(str(tmp_path), str(tiny_checkpoint)), open_source(str(tiny_checkpoint))
    record = Records(data / "data.jsonl")[0]
    np.testing.assert_array_equal(source.encoder().encode(record).ids, whole.encoder().encode(record).ids)
    save(source.load(), source, tmp_path / "saved", base="")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (tiny_checkpoint / "tokenizer.json").read_bytes()
