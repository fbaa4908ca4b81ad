"""What a failed gate advises: only a setting that the failed component's form leaves open."""

from typing import Any

import pytest

from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.io.records import to_dict
from edgevlm.verify.advice import advice, notes
from edgevlm.verify.report import Row


def recipe(quantize: str = "int4", preset: str = "balanced", **components: str) -> dict[str, Any]:
    found: dict[str, Any] = to_dict(make_recipe(quantize, preset, components))
    return found


def missed(target: str, check: str, measured: float = 0.998, level: str = "numbers") -> Row:
    return Row(target, check, measured, 0.999, False, level=level)


FEATURES, LOGITS = "features of 13 tiles, cosine", "prefill logits, cosine"
CASES = [
    ([missed("onnx", FEATURES)], recipe(), "--vision fp16"),
    ([missed("gguf", FEATURES)], recipe("int8"), "--vision fp16"),
    ([missed("onnx", FEATURES)], recipe(vision="fp16"), "--projector fp16"),
    ([missed("onnx", FEATURES)], recipe("fp16"), ""),
    ([missed("onnx", FEATURES), missed("onnx", "one tile, KL divergence", 0.1)], recipe(), "--vision fp16"),
    ([missed("onnx", FEATURES, 0.4)], recipe(), ""),
    ([missed("onnx", LOGITS)], recipe("int8"), "--decoder fp16"),
    ([missed("onnx", LOGITS)], recipe(decoder="fp16"), "--embed fp16"),
    ([missed("onnx", LOGITS)], recipe(preset="latency"), "--preset balanced"),
    ([missed("onnx", LOGITS)], recipe("int8", "latency"), "--preset balanced"),
    ([missed("gguf", LOGITS)], recipe("int8", "latency"), "--decoder fp16"),
    ([missed("onnx", FEATURES), missed("gguf", LOGITS)], recipe(), "--vision fp16 and --decoder fp16"),
    ([missed("coreml", LOGITS)], recipe("int8"), ""),
    ([missed("onnx portable", LOGITS)], recipe("int8"), ""),
    ([missed("onnx", "embeddings, largest error", 0.1)], recipe("int8"), ""),
    ([missed("quantization", "features, cosine")], recipe(), "--vision fp16 --projector fp16"),
    ([missed("quantization", "features, cosine")], recipe("fp16"), "--vision fp32 --projector fp32"),
    ([missed("quantization", "features, cosine")], recipe("fp32"), ""),
    ([missed("quantization", "logits, mean cosine")], recipe("int8"), "--quantize fp16"),
    ([missed("quantization", "score lost", 0.2, "answers")], recipe(), "--decoder int8"),
    ([missed("onnx", "score lost", 0.2, "answers")], recipe(preset="size"), "--quantize int8"),
    ([missed("onnx", "integer products, largest relative error", 0.5)], recipe(), "--quantize fp16"),
    ([missed("onnx", "weights that differ", 1), missed("onnx", FEATURES)], recipe(), ""),
    ([missed("inputs", "tiles that differ from Pillow's", 1), missed("onnx", FEATURES)], recipe(), ""),
    ([], recipe(), ""),
]  # fmt: skip


def test_a_limit_takes_no_forms_beside_it() -> None:
    said = advice([missed("onnx", FEATURES)], recipe(), limited=True)
    assert said.startswith("Try --vision fp16 in place of --budget and --max-loss: ")


def test_matrices_that_keep_fp16_are_counted() -> None:
    outliers = {"outliers": ["vision.layers.0.q.weight", "vision.layers.0.k.weight", "projector.linear.weight"]}
    assert next(notes([], recipe() | outliers, {})).startswith("3 of the encoder's matrices keep fp16")
    assert next(notes([], recipe(vision="int4") | outliers, {})).startswith("1 of the encoder's")
    assert not list(notes([], recipe(vision="fp16", projector="fp16") | outliers, {}))
    assert not list(notes([], recipe() | {"outliers": 3}, {}))


@pytest.mark.parametrize(("rows", "made", "options"), CASES)
def test_a_setting_is_named_where_one_would_help(rows: list[Row], made: dict[str, Any], options: str) -> None:
    said = advice([Row("onnx", "another", 1, 1, True), *rows], made)
    assert said.startswith(f"Try {options}: ") and said.endswith(" would likely pass.") if options else said == ""
