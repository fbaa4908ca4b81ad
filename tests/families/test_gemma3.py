"""Gemma 3: pictures that see themselves, windows, two RoPEs, a projection that is stored transposed."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma3
from tiny.common import picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import PICTURES, QUESTION, SIZES, Checkpoint, QuantizedFamilyTests, Variant, check_tokens

from edgevlm.bundle.manifest import open_bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_ import CoreMLOptions
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ViewTokens
from edgevlm.runtimes import open_runtime
from edgevlm.types import F32


def views(inputs: dict[str, Any]) -> list[F32]:
    """(pictures, 3, S, S)."""
    return list(inputs["pixel_values"])


def _variant(name: str, **options: Any) -> Variant:
    return Variant(name, partial(gemma3.build, **options), gemma3.load_processor, views, sizes=(*SIZES, *LONG))


LONG = [(1, 40), (600, 3), (4100, 60)]
VARIANTS = {name: _variant(name, layout=name) for name in ("hub", "saved", "memory")}
OTHERS = {"scale": _variant("scale", scalar=24), "bfloat16": _variant("bfloat16", dtype="bfloat16")}


class TestGemma3(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(OTHERS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.heavy
def test_another_scale_and_weights_in_bfloat16(other: Checkpoint) -> None:
    """llama.cpp takes the root of the head size alone for the scale; embeddings are scaled by a number in bfloat16."""
    for target, count in (("onnx", 64), ("coreml", 32)):
        check_tokens(other, "several", target, count)
    if other.variant.name == "scale":
        with pytest.raises(EdgeVLMError, match="scales scores in another way"):
            other.bundle("fp32", "gguf")


@pytest.mark.heavy
def test_fixed_lengths_read_a_picture_by_one_call(tmp_path: Path) -> None:
    """CoreML's profile for the Neural Engine, on the evaluator."""
    made = Checkpoint(VARIANTS["hub"], tmp_path)
    options = ExportOptions(
        str(made.folder), tmp_path / "out", ("onnx", "coreml"), "fp16", coreml=CoreMLOptions("ane", (256,))
    )
    bundle = open_bundle(export_model(options).folder)
    with closing(open_runtime(bundle, "coreml")) as runtime:
        asked = GenerateOptions(max_tokens=32, ignore_stop=True)
        ours = Pipeline(bundle, runtime).answer(PICTURES["several"], QUESTION, asked).ids
    assert list(ours) == made.answer("several").tokens[:32]


def test_a_conversation_is_written_as_the_template_does(tmp_path: Path) -> None:
    """A system message keeps its white space and comes before the first text; every other text is trimmed."""
    gemma3.build(tmp_path)
    spec, _ = read_model(open_checkpoint(str(tmp_path)))
    prompter = Prompter(read_prompt_spec(tmp_path, spec), tmp_path / "tokenizer.json")
    processor = gemma3.load_processor(tmp_path)
    text, image = (lambda said: {"type": "text", "text": said}), {"type": "image"}
    talk = [
        {"role": "system", "content": [text("  Be brief.\n ")]},
        {"role": "user", "content": [image, text(" What is it?\n"), image, text("  And  this? ")]},
        {"role": "assistant", "content": [text("\tA cat. ")]},
        {"role": "user", "content": [text(" Sure?")]},
    ]
    written = processor.apply_chat_template(talk, add_generation_prompt=True)
    said = processor(text=written, images=[picture(20, 30), picture(30, 20, 1)])
    ids, layout = prompter.encode(talk, [[ViewTokens(None, 3, 3)]] * 2)
    assert ids.tolist() == said["input_ids"][0]
    assert [span.tokens for span in layout.spans] == [9, 9]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"mm_tokens_per_image": 10}, "mm_tokens_per_image = 10, expected a square number"),
        ("config.json", {"text_config": {"layer_types": ["full_attention"]}}, "expected 4 times 'sliding_attention'"),
        ("config.json", {"text_config": {"rope_scaling": {"rope_type": "yarn"}}}, "expected 'default' or 'linear'"),
        ("config.json", {"text_config": {"use_bidirectional_attention": True}}, "bidirectional_attention = True"),
        ("preprocessor_config.json", {"do_pan_and_scan": True}, "do_pan_and_scan = True, expected false"),
    ],
)
def test_what_it_does_not_take_is_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    gemma3.build(tmp_path)
    data = json.loads((tmp_path / file).read_text())
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    (tmp_path / file).write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=message):
        spec, _ = read_model(open_checkpoint(str(tmp_path)))
        read_image_spec(tmp_path, spec)
