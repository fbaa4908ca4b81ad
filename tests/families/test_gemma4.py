"""Gemma 4: per-layer embeddings, layers that share keys and values, heads of two sizes, a tower with bounded maps."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma4

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_features, check_tokens

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_.archs import text_arch
from edgevlm.inputs.prompt import Prompter
from edgevlm.models.spec import Attention
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """Patches (pictures, patches, values) with their columns and rows, -1 behind the last; the model makes 2 x - 1."""
    found, p = [], gemma4.PATCH
    for patches, places in zip(inputs["pixel_values"], inputs["image_position_ids"], strict=True):
        real = places[:, 0] >= 0
        cols, rows = places.max(0) + 1
        cells = patches[real].reshape(rows, cols, p, p, 3)
        pixels = cells.transpose(4, 0, 2, 1, 3).reshape(3, rows * p, cols * p)
        found.append(np.float32(2) * (pixels - np.float32(0.5)))
    return found


def _variant(name: str, **options: Any) -> Variant:
    return Variant(name, partial(gemma4.build, **options), gemma4.load_processor, views, sizes=(*SIZES, *LONG))


LONG = [(1, 200), (200, 1), (1000, 3), (4100, 60)]
VARIANTS = {name: _variant(name, layout=name) for name in ("hub", "saved", "memory")}


class TestGemma4(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]


# Files in bfloat16, for which llama.cpp does not round the scale of tokens; bounds that hold nothing back; layers that
# read others than llama.cpp's; no layers that share, and one table.
OTHERS = {
    "bfloat16": _variant("bfloat16", dtype="bfloat16"),
    "unbounded": _variant("unbounded", bounds=False),
    "shared": _variant("shared", num_kv_shared_layers=2, use_double_wide_mlp=False, final_logit_softcapping=None),
    "single": _variant("single", hidden_size_per_layer_input=0, num_kv_shared_layers=0, unread=False),
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(OTHERS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.heavy
def test_other_options(other: Checkpoint) -> None:
    refused = {"shared": "keys and values of other layers than llama.cpp", "single": "other layers than this arch"}
    check_features(other, "several")
    for target, count in (("onnx", 64), ("coreml", 32), ("gguf", 64)):
        if target == "gguf" and other.variant.name == "bfloat16":
            continue
        if target == "gguf" and other.variant.name in refused:
            with pytest.raises(EdgeVLMError, match=refused[other.variant.name]):
                text_arch(other.spec.decoder)
            continue
        check_tokens(other, "several", target, count)


def test_pictures_take_the_row_of_the_padding_token(tmp_path: Path) -> None:
    """As sounds and videos do, in the second table alone."""
    model = gemma4.build(tmp_path)
    spec, weights = read_model(open_checkpoint(str(tmp_path)))
    table, theirs = weights.read("decoder.per_layer_embed.weight"), model.model.language_model.embed_tokens_per_layer
    rows = [getattr(model.config, f"{name}_token_id") for name in ("image", "video", "audio")]
    expected = theirs.weight.detach().numpy().copy()
    assert not np.array_equal(table[rows], expected[rows])
    expected[rows] = expected[0]
    np.testing.assert_array_equal(table, expected)
    assert spec.image_token_id == rows[0]


def test_videos_need_settings_of_their_own(tmp_path: Path) -> None:
    gemma4.build(tmp_path, layout="saved")  # transformers finds none here either
    assert read_image_spec(tmp_path, read_model(open_checkpoint(str(tmp_path)))[0]).video is None


def test_layers_find_whose_keys_they_read(tmp_path: Path) -> None:
    gemma4.build(tmp_path)
    decoder = read_model(open_checkpoint(str(tmp_path)))[0].decoder
    mixers = [decoder.block(layer).mixers[0] for layer in range(decoder.num_layers)]
    assert [m.reads for m in mixers if isinstance(m, Attention)] == ["self"] * 3 + ["earlier"] * 3
    assert [m.head_dim for m in mixers if isinstance(m, Attention)] == [32, 32, 64] * 2
    assert [decoder.block(layer).mlp.size for layer in range(6)] == [160] * 3 + [320] * 3


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("system", [False, True])
def test_the_switch_of_thinking_is_in_the_system_message(tmp_path: Path, thinking: bool | None, system: bool) -> None:
    gemma4.build(tmp_path)
    spec, _ = read_model(open_checkpoint(str(tmp_path)))
    prompter = Prompter(read_prompt_spec(tmp_path, spec), tmp_path / "tokenizer.json")
    processor = gemma4.load_processor(tmp_path)
    talk = [{"role": "system", "content": [{"type": "text", "text": " Be brief. "}]}] if system else []
    talk += [{"role": role, "content": [{"type": "text", "text": "Hi"}]} for role in ("user", "assistant", "user")]
    told = {} if thinking is None else {"enable_thinking": thinking}
    written = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False, **told)
    ids, _ = prompter.encode(talk, thinking=thinking)
    assert ids.tolist() == processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert ("<|think|>" in written) == (thinking is True)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"text_config": {"enable_moe_block": True}}, "enable_moe_block = True, expected false"),
        ("config.json", {"text_config": {"attention_k_eq_v": True}}, "attention_k_eq_v = True, expected false"),
        ("config.json", {"text_config": {"use_bidirectional_attention": "vision"}}, "expected null, as the models E2B"),
        ("config.json", {"text_config": {"vocab_size_per_layer_input": 96}}, "the 480 tokens of vocab_size, not 96"),
        ("config.json", {"text_config": {"layer_types": ["full_attention"]}}, "expected 6 times 'sliding_attention'"),
        ("config.json", {"text_config": {"num_kv_shared_layers": 6}}, "of an earlier layer, and there is none"),
        (
            "config.json",
            {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}},
            "rope_type = 'yarn', expected 'default' or 'proportional'",
        ),
        ("config.json", {"vision_config": {"standardize": True}}, "standardize = True, expected false"),
        ("processor_config.json", {"image_processor": {"do_normalize": True}}, "do_normalize = True, expected false"),
        ("processor_config.json", {"image_processor": {"max_soft_tokens": 140}}, "expected at most the 85 tokens in a"),
        ("processor_config.json", {"image_processor": {"pooling_kernel_size": 2}}, "the 12 pixels of a token"),
        ("processor_config.json", {"video_processor": {"max_soft_tokens": 140}}, "expected at most the 85 tokens in a"),
        ("processor_config.json", {"video_processor": {"image_mean": [0.5] * 3}}, r"expected \[0.0, 0.0, 0.0\], with"),
    ],
)
def test_what_it_does_not_take_is_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    gemma4.build(tmp_path)
    data = json.loads((tmp_path / file).read_text())
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    (tmp_path / file).write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=message):
        spec, _ = read_model(open_checkpoint(str(tmp_path)))
        read_image_spec(tmp_path, spec)
