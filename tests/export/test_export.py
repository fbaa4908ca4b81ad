"""The export as a whole: what it costs, what it needs, and adapters on the way."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from alone import export_alone

from edgevlm.bundle.manifest import open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import normalize_all, prepare
from edgevlm.runtimes import open_runtime
from edgevlm.verify.gate import picture_folder
from edgevlm.verify.reference import Reference, cosine


@pytest.mark.heavy
def test_export_needs_no_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = export_alone(tiny_checkpoint, tmp_path / "out", "int4", "gate")
    assert done["rows"] and not done["missed"], done


def test_bundle_holds_what_upstream_tools_look_for(tiny_bundle: Path) -> None:
    names = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    graphs = {f"onnx/{g}.onnx" for g in ("vision_encoder", "embed_tokens", "decoder_model_merged")}
    assert graphs | {"config.json", "tokenizer.json", "tokenizer_config.json", "genai_config.json"} <= names
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert names == set(manifest["files"]) | {"manifest.json"}
    entry = manifest["targets"]["onnx"]["graphs"]["decoder"]
    assert {"inputs_embeds", "attention_mask", "past_key_values.0.key"} <= set(entry["inputs"])
    assert {"logits", "present.2.value"} <= set(entry["outputs"])
    vision = manifest["targets"]["onnx"]["graphs"]["vision_encoder"]
    assert set(vision["inputs"]) == {"pixel_values", "pixel_attention_mask"}
    assert set(vision["outputs"]) == {"image_features"}


def test_same_export_twice_gives_the_same_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        export_model(ExportOptions(str(tiny_checkpoint), tmp_path / name, gate=False))
        files.append(json.loads((tmp_path / name / "manifest.json").read_text())["files"])
    assert files[0] == files[1]


@pytest.mark.heavy
def test_adapter_is_merged_as_peft_does(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        builder.load_model(tiny_checkpoint),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    out = tmp_path / "out"
    result = export_model(ExportOptions(str(tiny_checkpoint), out, quantize="fp32", adapter=str(tmp_path / "adapter")))
    assert result.report is not None and result.report.passed
    bundle = open_bundle(out)
    ids = np.arange(40)
    reference = Reference(bundle.manifest.spec, ShippedWeights(bundle), bundle.image_spec)
    with torch.no_grad():
        theirs = merged(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    assert np.abs(reference.logits(reference.embed(ids))[0] - theirs).max() < 2e-4
    plain = builder.load_model(tiny_checkpoint)
    with torch.no_grad():
        unmerged = plain(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    assert np.abs(unmerged - theirs).max() > 0.05
    assert bundle.manifest.model.adapter == str(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ("onix",)}, "Target 'onix' does not exist"),
        ({"targets": ()}, "No target was given"),
        ({"quantize": "int3"}, "Quantization 'int3' is not available"),
        ({"preset": "fast"}, "Preset 'fast' does not exist"),
    ],
)
def test_options_are_checked_first(tmp_path: Path, options: dict, sentence: str) -> None:
    with pytest.raises(EdgeVLMError, match=sentence):
        ExportOptions("default", tmp_path / "out", **options)


@pytest.mark.heavy
@pytest.mark.parametrize("quantize", ["fp32", "int8", "int4"])
def test_256m_exports_within_bounds_of_memory(checkpoint_256m: Path, tmp_path: Path, quantize: str) -> None:
    """Largest tensor: the embedding, 49280 x 576 float32, 113 MB. With the gate: under 1.2 GB.

    Features of a random encoder leave the decoder undecided. One of 128 tokens may then turn with the rounding of its
    activations to 8 bits, by more than the gate excuses, on one kind of CPU and not on another; KL and agreement hold.
    """
    largest = 49280 * 576 * 4
    plain = export_alone(checkpoint_256m, tmp_path / "plain", quantize, "no-gate")
    assert plain["peak"] < 2 * largest + 500e6, plain
    judged = export_alone(checkpoint_256m, tmp_path / "judged", quantize, "gate")
    if quantize == "int4":
        assert judged["peak"] < 1.2e9, judged
        if [check.endswith("largest logit gap") for check in judged["missed"]] == [True]:
            pytest.xfail(f"one undecided token turned: {judged['missed']}")
    assert judged["rows"] and not judged["missed"], judged


@pytest.mark.heavy
def test_256m_fp32_features_are_those_of_transformers(
    builder: ModuleType, checkpoint_256m: Path, tmp_path: Path
) -> None:
    """Cosine 0.99999 per image token. The greedy tokens are compared in test_generate.py."""
    out = export_model(ExportOptions(str(checkpoint_256m), tmp_path / "fp32", quantize="fp32", gate=False)).folder
    bundle = open_bundle(out)
    picture = open_image(picture_folder() / "coffee.jpg")
    views = prepare(picture, bundle.image_spec, max_tiles=5).views
    tiles = normalize_all(views, bundle.image_spec)
    runtime = open_runtime(bundle, "onnxruntime")
    with torch.no_grad():
        theirs = builder.load_model(checkpoint_256m).get_image_features(torch.from_numpy(tiles)[None]).pooler_output
    features = np.stack(runtime.encoder.encode(views))
    assert len(tiles) > 3 and cosine(features, torch.cat(list(theirs)).numpy().reshape(features.shape)) >= 0.99999
