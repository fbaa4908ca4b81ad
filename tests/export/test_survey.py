"""What `edgevlm info` says of a checkpoint, against transformers' counts, real exports, and exports that refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import llava15, qwen2_5_vl

from edgevlm.bundle.manifest import open_bundle
from edgevlm.checkpoint.opening import open_headers
from edgevlm.checkpoint.upstream import UPSTREAM
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.ane_ops import AneOps
from edgevlm.export.coreml_.mil_ops import MilOps
from edgevlm.export.onnx_.ops import OnnxOps
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.survey import PICTURE, Survey, survey
from edgevlm.inputs.preprocess import plan
from edgevlm.models.work import encoding, reading


def surveyed(folder: Path) -> Survey:
    return survey(open_headers(str(folder)))


def refusal(folder: Path, out: Path, target: str) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        export_model(ExportOptions(str(folder), out, (target,), quantize="fp16"))
    assert not out.exists()
    return str(caught.value)


def test_parameters_are_transformers(builder: ModuleType, tiny_checkpoint: Path) -> None:
    found, model = surveyed(tiny_checkpoint), builder.load_model(tiny_checkpoint)
    parts = {"vision": 0, "projector": 0, "decoder": 0, "embed": 0}
    for name, tensor in model.named_parameters():  # a tied head is listed once
        part = next(
            part
            for mark, part in (
                ("vision_model", "vision"), ("connector", "projector"), ("embed_tokens", "embed"), ("", "decoder"),
            )
            if mark in name
        )  # fmt: skip
        parts[part] += tensor.numel()
    assert found.parameters == parts and not found.problems
    assert found.stored == {"float32": 4 * sum(parts.values())}


def test_stored_tensors_count_once(tmp_path: Path) -> None:
    """Fused maps, and a convolution over two frames of which a still picture takes the sum."""
    model = qwen2_5_vl.build(tmp_path / "model", layout="saved")
    found = surveyed(tmp_path / "model").parameters
    assert sum(found.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.heavy
@pytest.mark.parametrize("quantize", ["fp16", "int8", "int4"])
def test_sizes_are_near_those_of_exports(tmp_path: Path, quantize: str) -> None:
    """Rounded up: by ONNX's tables and room for graphs, 1.3 MB of this model."""
    options = ExportOptions("default", tmp_path / "out", ("onnx", "gguf", "coreml"), quantize, gate=False)
    files = open_bundle(export_model(options).folder).manifest.files
    shared = sum(file.size for name, file in files.items() if name in UPSTREAM)
    for target, holding in survey(open_headers("default")).targets.items():
        real = shared + sum(file.size for name, file in files.items() if name.startswith(f"{target}/"))
        assert holding.sizes is not None and real < holding.sizes[quantize] < real + 1.3e6, (target, real, holding)
    # A token reads the decoder's file, but RoPE's tables, and the head, which lies in the embedding's.
    found = survey(open_headers("default"))
    rope = 4 * found.spec.decoder.context_length * found.spec.decoder.ropes["main"].size
    data = {
        name: files[f"onnx/{name}.onnx_data"].size
        for name in ("vision_encoder", "decoder_model_merged", "embed_tokens")
    }
    token = data["decoder_model_merged"] + data["embed_tokens"] - rope
    assert found.stages["decode"].weights[quantize] == pytest.approx(token, rel=0.05)
    assert found.stages["encode"].weights[quantize] == pytest.approx(data["vision_encoder"], rel=0.05)


def test_stages_are_of_all_views(tiny_checkpoint: Path) -> None:
    """As many calls of the encoder as views, and a prompt of all image tokens; a token reads what they left."""
    found = surveyed(tiny_checkpoint)
    assert found.image is not None
    views = plan(*PICTURE, found.image)
    tokens = sum(view.rows * view.cols for view in found.image.view_tokens(views, PICTURE))
    one, stages = encoding(found.spec, 64, 64), found.stages
    assert len(views) > 1 and stages["encode"].work.operations == len(views) * one.operations
    assert stages["encode"].work.read == one.read
    assert stages["prefill"].work == reading(found.spec, tokens)
    assert stages["decode"].work.kept == reading(found.spec, 1, tokens).kept
    assert found.to_dict()["stages"]["decode"]["kept"] == 4 * stages["decode"].work.kept


def test_a_tokenizer_that_one_target_lacks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = surveyed(folder)
    assert found.targets["gguf"].refusal == refusal(folder, tmp_path / "out", "gguf")
    assert found.targets["gguf"].sizes is None and found.targets["onnx"].sizes is not None


@pytest.mark.parametrize(("target", "ops"), [("onnx", OnnxOps), ("coreml", MilOps)])
def test_an_operation_that_one_target_lacks(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, ops: Any
) -> None:
    monkeypatch.delattr(next(kind for kind in ops.__mro__ if "pixel_shuffle" in vars(kind)), "pixel_shuffle")
    found = surveyed(tiny_checkpoint)
    assert "has no operation 'pixel_shuffle'" in str(found.targets[target].refusal)
    assert found.targets[target].refusal == refusal(tiny_checkpoint, tmp_path / "out", target)
    assert sum(holding.refusal is None for holding in found.targets.values()) == 2


def test_each_profile_of_coreml_is_asked(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Neural Engine's takes no int4; an operation that it alone lacks is its own refusal."""
    found = surveyed(tiny_checkpoint).targets["coreml"]
    assert found.profiles is not None and found.profiles.keys() == {"ane"}
    assert found.profiles["ane"].sizes is not None and found.profiles["ane"].sizes.keys() == {"fp16", "int8"}
    monkeypatch.setattr(AneOps, "heads", lambda ops, *given: ops._lacks("heads"))
    found = surveyed(tiny_checkpoint).targets["coreml"]
    assert found.refusal is None and found.profiles is not None
    assert "CoreML profile 'ane' has no operation 'heads'" in str(found.profiles["ane"].refusal)


def test_pictures_that_another_engine_encodes(tmp_path: Path) -> None:
    llava15.build(tmp_path / "model")
    found = surveyed(tmp_path / "model").targets["gguf"]
    options = ExportOptions(str(tmp_path / "model"), tmp_path / "out", ("onnx", "gguf"), quantize="fp32", gate=False)
    entry = open_bundle(export_model(options).folder).manifest.targets["gguf"]
    assert found.no_pictures is not None and found.no_pictures == getattr(entry, "no_pictures", None)


def test_a_processor_that_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": "Other"}))
    found = surveyed(folder)
    assert found.image is None and "image_processor_type = 'Other'" in found.problems[0]
    assert found.problems[0] == refusal(folder, tmp_path / "out", "onnx")
