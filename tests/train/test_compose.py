"""Composed models: both halves are the originals', every layout reloads, and LLaVA's is exported like transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgevlm.bundle.manifest import open_bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.commands.train import advice, next_step
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import normalize_all, prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ViewTokens
from edgevlm.runtimes.eager import encode_view
from edgevlm.train.compose import ComposeOptions, compose
from edgevlm.train.models import open_source
from edgevlm.train.options import TrainOptions
from edgevlm.verify.reference import Reference

KINDS = ("mlp", "pixel-shuffle", "linear", "qformer", "resampler")


@pytest.fixture(scope="module")
def halves(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A SigLIP vision model and a Llama with a tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("halves")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8
    )
    SiglipVisionModel(vision).save_pretrained(folder / "encoder")
    tokenizer = builder._tokenizer(builder.models.BPE())
    trainer = builder.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=builder.BASE_SPECIALS,
        show_progress=False,
        initial_alphabet=sorted(builder.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([builder.TEXT], trainer)
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(),
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(text).save_pretrained(folder / "decoder")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.save_pretrained(folder / "decoder")
    return folder / "encoder", folder / "decoder"


def composed(halves: tuple[Path, Path], out: Path, kind: str) -> Path:
    encoder, decoder = map(str, halves)
    return compose(ComposeOptions(encoder, decoder, kind, out, queries=9, layers=2), lambda text: None)


@pytest.mark.parametrize("kind", KINDS)
def test_both_halves_are_the_originals_and_the_model_reloads(
    halves: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    source = open_source(str(composed(halves, tmp_path / kind, kind)))
    model = source.load().eval()
    vision = {k.removeprefix("vision_model."): v for k, v in _stored(halves[0]).items() if ".head." not in k}
    text = {k.removeprefix("model."): v for k, v in _stored(halves[1]).items()}
    inner = model.model
    tower = inner.vision_tower if kind == "mlp" else inner.vision_model
    language = inner.language_model if kind == "mlp" else inner.text_model
    for name, tensor in tower.state_dict().items():
        assert np.array_equal(tensor.numpy(), vision[name]), name
    for name, tensor in language.state_dict().items():
        known = text[name]
        assert np.array_equal(tensor.numpy()[: len(known)], known), name
    assert source.spec.image_tokens == {"pixel-shuffle": 16, "qformer": 9, "resampler": 9}.get(kind, 64)
    again = composed(halves, tmp_path / "again", kind)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / kind / "model.safetensors").read_bytes()
    new = language.embed_tokens.weight[len(text["embed_tokens.weight"]) :]
    assert torch.isfinite(new).all() and not torch.equal(new[0], new[1])
    views = [ViewTokens(None, 1, source.spec.image_tokens)]
    ids, _ = source.encoder().prompter.encode("Is it <image>?", [views])
    assert int((ids == source.prompt.image_token_id).sum()) == source.spec.image_tokens
    pixels = torch.zeros(1, 3, 64, 64) if kind == "mlp" else torch.ones(1, 1, 3, 64, 64)
    assert torch.isfinite(model(input_ids=torch.from_numpy(ids)[None], pixel_values=pixels).logits).all()


def test_llava_layout_computes_what_transformers_computes(halves: tuple[Path, Path], tmp_path: Path) -> None:
    folder = composed(halves, tmp_path / "llava", "mlp")
    _randomize_projector(folder)
    checkpoint = open_checkpoint(str(folder))
    spec, weights = read_model(checkpoint)
    model = open_source(str(folder)).load().eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    image_spec, prompt_spec = read_image_spec(folder, spec), read_prompt_spec(folder, spec)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    del settings["processor_class"]
    images = SiglipImageProcessorPil.from_pretrained(folder)
    processor = LlavaProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **settings)
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(question, add_generation_prompt=True)
    inputs = processor(text=text, images=[picture], return_tensors="pt")
    made = prepare(picture, image_spec)
    ids, layout = Prompter(prompt_spec, folder / "tokenizer.json").encode("What is it?", [made.tokens])
    assert len(made.views) == 1 and ids.tolist() == inputs["input_ids"][0].tolist()
    np.testing.assert_allclose(normalize_all(made.views, image_spec), inputs["pixel_values"].numpy(), atol=1e-6)
    reference = Reference(spec, weights, image_spec)
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"]).pooler_output[0].numpy()
        logits = model(**inputs).logits[0, -1].numpy()
    np.testing.assert_allclose(reference.features(made.views)[0], features, atol=2e-5)
    merged = reference.prompt(ids, layout, made.views)
    np.testing.assert_allclose(reference.logits(merged, layout=layout)[0], logits, atol=2e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_composed_models_pass_the_gate(halves: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    folder = composed(halves, tmp_path / "model", kind)
    _randomize_projector(folder)
    for quantize, targets in (("fp32", ("onnx",)), ("int8", ("onnx", "coreml"))):
        options = ExportOptions(str(folder), tmp_path / quantize, targets=targets, quantize=quantize)
        result = export_model(options)
        assert result.report is not None and result.report.passed
    options = ExportOptions(str(folder), tmp_path / "gguf", targets=("onnx", "gguf"), quantize="fp32")
    result = export_model(options)
    assert result.report is not None and result.report.passed
    entry = open_bundle(result.folder).manifest.targets["gguf"]
    if kind == "mlp":
        assert entry.projector_type == "mlp" and entry.mmproj and entry.no_pictures is None
    else:  # llama.cpp has the decoder only, and the bundle says why
        assert entry.mmproj is None and entry.projector_type is None
        assert "its projector shuffles by 1" in entry.no_pictures


@pytest.mark.parametrize("kind", ["qformer", "resampler"])
def test_query_projectors_are_refused_at_export(halves: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    folder = composed(halves, tmp_path / "model", kind)
    with pytest.raises(EdgeVLMError, match=f"has a {kind} as its projector, which can be trained but not exported"):
        export_model(ExportOptions(str(folder), tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    options = TrainOptions("base", Path("d.jsonl"), folder)
    said = advice(options)
    assert f"has a {kind} as its projector" in said and "Next:" not in said
    assert advice(replace(options, model=str(folder), out=tmp_path / "adapter", lora=4)) == said
    assert advice(replace(options, stage="align")) == f"Next: {next_step(replace(options, stage='align'))}"
    plain = composed(halves, tmp_path / "plain", "mlp")
    assert advice(replace(options, out=plain)).startswith("Next: edgevlm export ")


def test_an_earlier_feature_layer_leaves_the_last_ones_out(halves: tuple[Path, Path], tmp_path: Path) -> None:
    folder = composed(halves, tmp_path / "model", "mlp")
    config = json.loads((folder / "config.json").read_text())
    pixels = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    for layer, kept in ((-2, 2), (1, 1)):
        (folder / "config.json").write_text(json.dumps(config | {"vision_feature_layer": layer}))
        spec, weights = read_model(open_checkpoint(str(folder)))
        assert spec.vision.num_layers == kept
        model = open_source(str(folder)).load().eval()
        with torch.no_grad():
            theirs = torch.stack(model.get_image_features(torch.from_numpy(pixels)).pooler_output).numpy()
        ours = [encode_view(spec, weights, view) for view in pixels]
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for layers, sentence in ([-1, -2], "where its config.json asks for"), (4, "expected one of the tower's 3 layers"):
        (folder / "config.json").write_text(json.dumps(config | {"vision_feature_layer": layers}))
        with pytest.raises(EdgeVLMError, match=sentence):
            read_model(open_checkpoint(str(folder)))


def test_halves_come_from_vlms_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tiny = str(tiny_checkpoint)
    options = ComposeOptions(tiny, tiny, "pixel-shuffle", tmp_path / "out", scale_factor=4)
    source = open_source(str(compose(options, lambda text: None)))
    assert source.spec.image_tokens == 4
    old, new = (read_model(open_checkpoint(str(path)))[1] for path in (tiny_checkpoint, tmp_path / "out"))
    for name in old.names():
        if not name.startswith("projector"):
            assert np.array_equal(old.read(name), new.read(name)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector": "magic"}, "Projector 'magic' does not exist"),
        ({"queries": 0}, "1 or more"),
        ({"scale_factor": 3}, "--scale-factor 3 does not divide the 8 patches"),
        ({"encoder": "DECODER"}, "has no encoder that compose knows"),
        ({"decoder": "ENCODER"}, "has no decoder that compose knows"),
        ({"decoder": "nowhere"}, "there is no folder 'nowhere'"),
    ],
)
def test_what_cannot_be_composed_is_said(
    halves: tuple[Path, Path], tmp_path: Path, change: dict[str, str], message: str
) -> None:
    names = {"ENCODER": str(halves[0]), "DECODER": str(halves[1])}
    values = {"encoder": names["ENCODER"], "decoder": names["DECODER"], "projector": "pixel-shuffle"}
    values |= {key: names.get(str(value), value) for key, value in change.items()}
    with pytest.raises(EdgeVLMError, match=message):
        compose(ComposeOptions(out=tmp_path / "out", **values), lambda text: None)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_transparent_pictures_are_laid_over_white(halves: tuple[Path, Path], tmp_path: Path) -> None:
    folder = composed(halves, tmp_path / "model", "mlp")
    spec = open_source(str(folder)).image
    made = prepare(open_image(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), spec)
    assert np.allclose(normalize_all(made.views, spec), 1.0)


def _stored(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(str(folder))
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def _randomize_projector(folder: Path) -> None:
    """Features as large as embeddings, so that they matter to the logits."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if "projector" in name or "connector" in name:
            tensor.copy_(torch.randn(tensor.shape) * (0.3 if name.endswith("bias") else tensor.shape[-1] ** -0.5))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
