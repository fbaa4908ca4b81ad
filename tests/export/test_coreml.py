"""The CoreML target: packages written, read back from disk, executed, compared; and faults that must be named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cases import heavy_but

from edgevlm.bundle.files import write_json
from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.targets import CoreMLTarget, EmbeddingFile
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_ import CoreMLOptions, ane_ops, check_recipe, write_coreml
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import normalize, prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.records import from_dict, to_dict
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.coreml import runtime as coreml
from edgevlm.runtimes.coreml.engines import EvaluatedDecoder, EvaluatedVision
from edgevlm.runtimes.coreml.runtime import CoreMLDecoder, CoreMLEncoder
from edgevlm.runtimes.coreml.table import EmbeddingTable
from edgevlm.runtimes.gguf import GgufWeights
from edgevlm.runtimes.mil.blob import blob_span
from edgevlm.runtimes.mil.file import open_package
from edgevlm.runtimes.mil.overflow import overflow_report
from edgevlm.runtimes.mil.trace import find_divergence
from edgevlm.runtimes.mil.weights import CoreMLWeights
from edgevlm.types import F32, U8
from edgevlm.verify.gate import picture_folder, run_gate
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.runtime import lowest_cosine

ct = pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")

TOKENS = 32
NEAR_TIE = 5e-2  # the gate's bound for CoreML


class Exported:
    """A CoreML folder with what was exported, as a bundle without the other targets."""

    def __init__(self, checkpoint: Path, folder: Path, quantize: str, options: CoreMLOptions) -> None:
        spec, weights = read_model(open_checkpoint(str(checkpoint)))
        recipe = fit(make_recipe(quantize, "size"), weights)
        self.spec, self.weights, self.recipe = spec, QuantizedModel(weights, recipe), recipe
        (folder / "coreml").mkdir(parents=True)
        self.entry = write_coreml(folder / "coreml", spec, weights, recipe, self.weights.quantized, options)
        self.image = write_image_spec(folder, checkpoint, spec)
        self.bundle = as_bundle(folder, spec, self.entry)

    def reference(self) -> Reference:
        return Reference(self.spec, self.weights, self.image)

    def encoder(self, storage: str = "fp16") -> CoreMLEncoder:
        return CoreMLEncoder(self.bundle, EngineOptions(storage=storage))

    def decoder(self, storage: str = "fp16", context: int | None = None) -> CoreMLDecoder:
        return CoreMLDecoder(self.bundle, EngineOptions(storage=storage), context=context)

    def copy(self, to: Path) -> Bundle:
        shutil.copytree(self.bundle.folder, to)
        return as_bundle(to, self.spec, self.entry)


def write_image_spec(folder: Path, checkpoint: Path | str, spec: ModelSpec) -> ImageSpec:
    image = read_image_spec(open_checkpoint(str(checkpoint)).folder, spec)
    write_json(folder / "preprocess.json", to_dict(image))
    return image


def as_bundle(folder: Path, spec: Any, entry: CoreMLTarget) -> Bundle:
    files = {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_file()}
    manifest = SimpleNamespace(spec=spec, targets={"coreml": entry}, files=files)
    return Bundle(folder, cast(Any, manifest))


FORMS = {
    "gpu-fp16": ("fp16", CoreMLOptions("gpu", (256,))),
    "gpu-int8": ("int8", CoreMLOptions("gpu", (256,))),
    "gpu-int4": ("int4", CoreMLOptions("gpu", (256,))),
    "ane-int8": ("int8", CoreMLOptions("ane", (96, 192))),
    "ane-fp16": ("fp16", CoreMLOptions("ane", (128,))),
    "ane-palette6": ("palette6", CoreMLOptions("ane", (128,))),
    "gpu-palette4": ("palette4", CoreMLOptions("gpu", (256,))),
}


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def get(form: str) -> Exported:
        if form not in made:
            quantize, options = FORMS[form]
            made[form] = Exported(tiny_checkpoint, tmp_path_factory.mktemp(form), quantize, options)
        return made[form]

    return get


def views(model: Exported, count: int = 1, seed: int = 0) -> list[U8]:
    side = model.spec.vision.image_size
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8))


def pixels(model: Exported, seed: int = 0) -> F32:
    """A normalized view (3, H, W)."""
    return normalize(views(model, 1, seed)[0], model.image)


def prompt(model: Exported, reference: Reference, text: int = 30) -> Any:
    """A picture's features between two stretches of text."""
    ids = np.random.default_rng(1).integers(0, model.spec.decoder.vocab_size, text)
    (features,) = reference.features(views(model))
    return np.concatenate([reference.embed(ids[:10]), features, reference.embed(ids[10:])])


def greedy(decoder: CoreMLDecoder, embeds: Any, count: int = TOKENS) -> list[int]:
    tokens = [int(decoder.forward(embeds).argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.step(tokens[-1]).argmax()))
    return tokens


def gaps(reference: Reference, embeds: Any, tokens: list[int]) -> Any:
    """By how much the reference's logits prefer another token, at each step."""
    logits = reference.logits(embeds, reference.embed(np.array(tokens[:-1], np.int64)))
    return logits.max(-1) - logits[np.arange(len(tokens)), tokens]


# Parity of what was saved, read back and executed


@pytest.mark.parametrize("form", heavy_but(["gpu-int4", "ane-int8", "ane-palette6"], FORMS))
def test_parity_with_the_reference(exported: Callable[[str], Exported], form: str) -> None:
    model = exported(form)
    reference = model.reference()
    for storage in ("fp32", "fp16"):
        encoder, decoder = model.encoder(storage), model.decoder(storage)
        tiles = views(model, 2)
        assert lowest_cosine(encoder.encode(tiles), reference.features(tiles)) >= 0.9999
        embeds = prompt(model, reference)
        wanted = reference.logits(embeds)[-1]
        assert cosine(decoder.forward(embeds), wanted) >= 0.9999
        decoder.rewind(0)
        worst = gaps(reference, embeds, greedy(decoder, embeds)).max()
        assert worst == 0 if storage == "fp32" else worst < NEAR_TIE
        encoder.close()
        decoder.close()


@pytest.mark.parametrize("form", ["gpu-fp16", "gpu-int4"])
def test_same_tokens_in_fp16(exported: Callable[[str], Exported], form: str) -> None:
    model = exported(form)
    reference = model.reference()
    embeds = prompt(model, reference)
    assert (gaps(reference, embeds, greedy(model.decoder(), embeds)) == 0).all()


@pytest.mark.parametrize("form", ["gpu-int4", "ane-int8"])
def test_split_prompts_and_truncation(exported: Callable[[str], Exported], form: str) -> None:
    model = exported(form)
    reference = model.reference()
    embeds, decoder = prompt(model, reference), model.decoder("fp32")
    wanted = decoder.forward(embeds)
    decoder.forward(embeds[:5])  # what a truncation must forget
    decoder.rewind(7)
    assert decoder.position == 7
    decoder.rewind(0)
    decoder.forward(embeds[:3])
    decoder.forward(embeds[3:40])
    np.testing.assert_allclose(decoder.forward(embeds[40:]), wanted, atol=2e-4)
    assert decoder.position == len(embeds)


def test_any_prompt_length_on_fixed_shapes(exported: Callable[[str], Exported]) -> None:
    model = exported("ane-int8")
    reference = model.reference()
    embeds = np.tile(prompt(model, reference), (3, 1))
    decoder = model.decoder("fp32", context=96)
    for length in (1, 2, 31, 32, 33, 64, 95, 96):  # 95: the last call has no room for padding
        decoder.rewind(0)
        assert cosine(decoder.forward(embeds[:length]), reference.logits(embeds[:length])[-1]) > 0.99999
    with pytest.raises(EdgeVLMError, match="97 positions"):
        decoder.step(1)


def test_contexts_and_devices_are_checked(exported: Callable[[str], Exported]) -> None:
    model = exported("ane-int8")
    assert model.decoder().context == 192
    with pytest.raises(EdgeVLMError, match="no context length 100: choose one of 96, 192"):
        model.decoder(context=100)
    without = cast(Any, SimpleNamespace(folder="b", manifest=SimpleNamespace(targets={})))
    for half in (CoreMLEncoder, CoreMLDecoder):
        with pytest.raises(EdgeVLMError, match="on macOS only"):
            half(model.bundle, EngineOptions(device="npu"))
        with pytest.raises(EdgeVLMError, match="holds no CoreML packages"):
            half(without, EngineOptions())
    with pytest.raises(EdgeVLMError, match="prompt is empty"):
        model.decoder().forward(np.zeros((0, model.spec.decoder.hidden_size), np.float32))


def test_functions_share_weights(exported: Callable[[str], Exported]) -> None:
    """Four functions over two context lengths, and each matrix once in the file."""
    model = exported("ane-int8")
    package = open_package(model.bundle.folder / "coreml" / "Decoder.mlpackage")
    names = {"prefill_32_ctx96", "decode_ctx96", "prefill_32_ctx192", "decode_ctx192"}
    assert set(package.functions) == names
    offsets = {
        name: {op.inputs["data"][0].offset for op in function.ops if op.type.startswith("constexpr")}
        for name, function in package.functions.items()
    }
    assert len(set(map(frozenset, offsets.values()))) == 1
    assert {kind.shape[0] for f in package.functions.values() for kind in f.states.values()} == {
        2 * model.spec.decoder.num_layers
    }
    matrices = [n for n in model.weights.names() if n.startswith("decoder.") and model.weights.read(n).ndim == 2]
    count = sum(model.weights.read(name).size for name in matrices)
    assert package.weight_file is not None and package.weight_file.stat().st_size < 1.5 * count


def test_coremltools_reads_the_packages(exported: Callable[[str], Exported]) -> None:
    """Apple's own reader and type inference accept them."""
    from coremltools.converters.mil.frontend.milproto.load import load

    for form in ("gpu-int4", "ane-int8"):
        for name in ("VisionEncoder", "Decoder"):
            path = exported(form).bundle.folder / "coreml" / f"{name}.mlpackage"
            loaded = ct.models.MLModel(str(path), skip_model_load=True)
            program = load(loaded.get_spec(), loaded.get_spec().specificationVersion, loaded.weights_dir)
            program.validate()
            assert set(program.functions) == set(open_package(path).functions)


def test_the_same_export_gives_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    models = [Exported(tiny_checkpoint, tmp_path / str(i), "int4", CoreMLOptions("gpu", (64,))) for i in range(2)]
    contents = [
        {str(p.relative_to(m.bundle.folder)): p.read_bytes() for p in m.bundle.folder.rglob("*") if p.is_file()}
        for m in models
    ]
    assert contents[0] == contents[1]


# Weights


@pytest.mark.parametrize("form", heavy_but(["gpu-int4", "ane-int8"], FORMS))
def test_every_matrix_is_the_quantizers(exported: Callable[[str], Exported], form: str) -> None:
    model = exported(form)
    stored = CoreMLWeights(model.bundle)
    linear = [name for name in model.weights.names() if model.weights.weights.is_linear(name)]
    assert set(linear) == set(stored.names()) | {"decoder.embed.weight"}
    for name in stored.names():
        ours, theirs = stored.quantized(name), model.weights.quantized(name)
        assert ours.kind == theirs.kind
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        np.testing.assert_array_equal(ours.dequantize(), theirs.dequantize())
        if theirs.scale is not None:
            np.testing.assert_array_equal(ours.scale, theirs.scale)


@pytest.mark.parametrize("form", ["gpu-fp16", "gpu-int8", "gpu-int4"])
def test_embedding_file(exported: Callable[[str], Exported], form: str) -> None:
    model = exported(form)
    expected = model.weights.quantized("decoder.embed.weight").dequantize()
    decoder = model.decoder()
    np.testing.assert_array_equal(decoder.embed(np.arange(len(expected))), expected)
    with pytest.raises(EdgeVLMError, match="outside the vocabulary"):
        decoder.embed(np.array([len(expected)]))
    with pytest.raises(EdgeVLMError, match="outside the vocabulary"):
        decoder.embed(np.array([-1]))


def test_truncated_embedding_file(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = exported("gpu-int4").copy(tmp_path / "copy")
    table = bundle.folder / "coreml" / "embedding.bin"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(EdgeVLMError, match="does not hold the table"):
        CoreMLDecoder(bundle, EngineOptions())


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_bit_identical_to_onnx_and_gguf(gguf_checkpoint: Path, tmp_path: Path, quantize: str) -> None:
    """Three targets of one export hold the same codes and scales, each read back from its own files."""
    pytest.importorskip("gguf", reason="gguf is not installed (pip install '.[gguf]')")
    assert all_tensors_agree(str(gguf_checkpoint), tmp_path / "out", quantize) > 20


def all_tensors_agree(checkpoint: str, out: Path, quantize: str) -> int:
    """The number of matrices compared, every one of them in all three targets."""
    targets = ("onnx", "gguf", "coreml")
    export_model(ExportOptions(checkpoint, out, targets, quantize, "size", gate=False))
    bundle = open_bundle(out)
    stored, onnx = CoreMLWeights(bundle), ShippedWeights(bundle)
    gguf = GgufWeights(out / "gguf" / "model.gguf", out / "gguf" / "mmproj.gguf", bundle.manifest.spec)
    for name in stored.names():
        ours, theirs = stored.quantized(name), onnx.quantized(name)
        assert ours.kind == theirs.kind == quantize
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        np.testing.assert_array_equal(ours.scale, theirs.scale)
        np.testing.assert_array_equal(ours.dequantize(), gguf.read(name).reshape(ours.codes.shape))
    return len(stored.names())


# Refusals and limits


def test_recipes_that_a_device_gets_wrong_are_refused() -> None:
    with pytest.raises(EdgeVLMError, match=r"'ane' cannot hold the decoder in int4.*coreai-models issues 279"):
        check_recipe(make_recipe("int4"), "ane")
    with pytest.raises(EdgeVLMError, match=r"cannot hold the decoder in palette4.*coremltools issue 2716"):
        check_recipe(make_recipe("palette4"), "ane")
    check_recipe(make_recipe("palette4", "balanced", {"decoder": "palette6"}), "ane")
    check_recipe(make_recipe("int4"), "gpu")
    check_recipe(make_recipe("int8"), "ane")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "npu"}, "profile 'npu' does not exist"),
        ({"profile": "gpu", "contexts": (512, 1024)}, "holds one context length"),
        ({"profile": "ane", "contexts": (500,)}, "multiples of 32"),
        ({"profile": "ane", "contexts": (64, 64)}, "given twice"),
        ({"image_side": 0}, "image side is 0 pixels: give 1 to"),
        ({"image_side": 100_000}, "image side is 100000 pixels: give 1 to"),
    ],
)
def test_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeVLMError, match=message):
        CoreMLOptions(**arguments)


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(EdgeVLMError, match="the model holds 100: give at most 96"):
        CoreMLOptions("gpu", (128,)).lengths(100)


def test_weights_beyond_fp16_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))

    class Huge:
        def read(self, name: str) -> Any:
            values = weights.read(name)
            return values + 1e5 if name == "decoder.norm.weight" else values

        def __contains__(self, name: object) -> bool:
            return name in weights

    recipe = make_recipe("int8")
    with pytest.raises(EdgeVLMError, match=r"'decoder.norm.weight' reaches 1e\+05"):
        write_coreml(tmp_path, spec, Huge(), recipe, QuantizedModel(weights, recipe).quantized)


def test_a_large_vocabulary_gets_a_split_head(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ane_ops, "MAX_DIM", 200)
    model = Exported(tiny_checkpoint, tmp_path, "int8", CoreMLOptions("ane", (64,)))
    assert model.entry.decoder.outputs == ("logits_0", "logits_1", "logits_2")  # 512 = 171 + 171 + 170
    reference = model.reference()
    embeds = prompt(model, reference)[:20]
    logits = model.decoder("fp32").forward(embeds)
    assert logits.shape == (model.spec.decoder.vocab_size,)
    assert cosine(logits, reference.logits(embeds)[-1]) > 0.99999
    whole = model.weights.quantized("decoder.embed.weight")
    np.testing.assert_array_equal(CoreMLWeights(model.bundle).quantized("decoder.embed.weight").codes, whole.codes)


# Planted faults: each must be found, and the component named


def plant(bundle: Bundle, package: str, change: Callable[[Any], None], only: tuple[str, ...] = ()) -> None:
    """Edit a package's program, or some of its functions, through coremltools' protobuf classes."""
    path = bundle.folder / "coreml" / package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model.FromString(path.read_bytes())
    for name, function in spec.mlProgram.functions.items():
        for block in function.block_specializations.values():
            if not only or name in only:
                change(block)
    path.write_bytes(spec.SerializeToString())


def find(block: Any, name: str) -> Any:
    def name_of(op: Any) -> Any:
        return op.attributes["name"].immediateValue.tensor.strings.values[0]

    return next(op for op in block.operations if name_of(op) == name)


def overwrite(bundle: Bundle, package: str, op: str) -> None:
    """The first codes of one matrix become others."""
    opened = open_package(bundle.folder / "coreml" / package)
    assert opened.weight_file is not None
    _, start, count = blob_span(opened.weight_file, opened.find(next(iter(opened.functions)), op).inputs["data"][0])
    content = bytearray(opened.weight_file.read_bytes())
    content[start : start + 32] = b"\x77" * min(32, count)
    opened.weight_file.write_bytes(content)


def unwrite(block: Any) -> None:
    """The last layer's values are not kept."""
    writes = [i for i, op in enumerate(block.operations) if op.type == "write_state"]
    del block.operations[writes[-1]]


def unmask(block: Any) -> None:
    """The second layer attends to the future."""
    attention = [op for op in block.operations if op.type == "scaled_dot_product_attention"]
    attention[1].inputs.pop("attn_mask")


def diverges(model: Exported, bundle: Bundle) -> str:
    reference = model.reference()
    found = find_divergence(bundle, model.weights, pixels(model), prompt(model, reference))
    return found.name if found else ""


PROFILES = ["gpu-int4", "ane-int8"]


@pytest.mark.parametrize("form", heavy_but(PROFILES, FORMS))
def test_no_divergence_without_a_fault(exported: Callable[[str], Exported], form: str) -> None:
    assert diverges(exported(form), exported(form).bundle) == ""


@pytest.mark.parametrize("form", PROFILES)
@pytest.mark.parametrize(
    ("package", "op", "named"),
    [
        ("Decoder.mlpackage", "decoder_layers_1_gate_up_weight", "decoder.layers.1.gate_up"),
        ("VisionEncoder.mlpackage", "vision_layers_0_fc1_weight", "vision.layers.0.fc1"),
    ],
)
def test_a_wrong_weight(
    exported: Callable[[str], Exported], tmp_path: Path, form: str, package: str, op: str, named: str
) -> None:
    model = exported(form)
    bundle = model.copy(tmp_path / "b")
    overwrite(bundle, package, op)
    assert diverges(model, bundle) == named


@pytest.mark.parametrize("form", PROFILES)
def test_a_missing_bias(exported: Callable[[str], Exported], tmp_path: Path, form: str) -> None:
    model = exported(form)
    bundle = model.copy(tmp_path / "b")
    plant(bundle, "VisionEncoder.mlpackage", lambda block: find(block, "vision_layers_1_fc2").inputs.pop("bias"))
    assert diverges(model, bundle) == "vision.layers.1.fc2"


@pytest.mark.parametrize("form", PROFILES)
def test_a_state_that_is_not_written(exported: Callable[[str], Exported], tmp_path: Path, form: str) -> None:
    model = exported(form)
    bundle = model.copy(tmp_path / "b")
    plant(bundle, "Decoder.mlpackage", unwrite)
    last = model.spec.decoder.num_layers - 1
    assert diverges(model, bundle) == f"decoder.layers.{last}.attention"


def test_a_state_written_to_the_wrong_row(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """Every call writes from row 0 on: right for the first call, wrong for all that follow."""

    def stuck(block: Any) -> None:
        count = find(block, "end").inputs["y"].arguments[0]  # rows of a call, where lengths are fixed
        for op in block.operations:
            if op.type == "slice_update":
                corners = [op.inputs[corner].arguments[0].name for corner in ("begin", "end")]
                begin, end = (
                    next(o for o in block.operations if any(out.name == corner for out in o.outputs))
                    for corner in corners
                )
                begin.inputs["values"].arguments[2].CopyFrom(begin.inputs["values"].arguments[1])
                end.inputs["values"].arguments[2].CopyFrom(count)

    model = exported("ane-int8")
    bundle = model.copy(tmp_path / "b")
    plant(bundle, "Decoder.mlpackage", stuck)
    assert diverges(model, bundle) == "second call, decoder.layers.0.attention"


def spoil_inputs(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, Any], Any]) -> None:
    """The host gives the decoder other masks or RoPE rows."""
    right = coreml.decoder_inputs

    def wrong(*arguments: Any) -> dict[str, Any]:
        return {name: change(name, value) for name, value in right(*arguments).items()}

    monkeypatch.setattr(coreml, "decoder_inputs", wrong)


def late(name: str, value: Any) -> Any:
    """Rows that are one position late."""
    return np.roll(value, 1, 0) if name in ("cos", "sin") else value


@pytest.mark.parametrize("form", PROFILES)
def test_wrong_rope_rows(exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    spoil_inputs(monkeypatch, late)
    assert diverges(exported(form), exported(form).bundle) == "decoder.layers.0.attention"


@pytest.mark.parametrize("form", PROFILES)
def test_a_rotation_of_the_wrong_half(exported: Callable[[str], Exported], tmp_path: Path, form: str) -> None:
    """The graph adds the unswapped halves."""

    def unswap(block: Any) -> None:
        swap = next(op for op in block.operations if op.type == "concat" and len(op.inputs["values"].arguments) == 2)
        names = [argument.name for argument in swap.inputs["values"].arguments]
        for argument, name in zip(swap.inputs["values"].arguments, reversed(names), strict=True):
            argument.name = name

    model = exported(form)
    bundle = model.copy(tmp_path / "b")
    plant(bundle, "Decoder.mlpackage", unswap_split(unswap))
    assert diverges(model, bundle) == "decoder.layers.0.attention"


def unswap_split(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """Apply `change` to the operations from the first rotation on (norms concatenate pairs too)."""

    def run(block: Any) -> None:
        first = next(i for i, op in enumerate(block.operations) if op.type == "split")
        change(SimpleNamespace(operations=block.operations[first:]))

    return run


@pytest.mark.parametrize("form", PROFILES)
def test_a_mask_that_shows_the_future(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    spoil_inputs(monkeypatch, lambda name, value: np.ones_like(value) if name == "mask" else value)
    assert diverges(exported(form), exported(form).bundle) == "decoder.layers.0.attention"


def test_a_mask_that_the_graph_ignores(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    model = exported("gpu-int4")
    bundle = model.copy(tmp_path / "b")
    plant(bundle, "Decoder.mlpackage", unmask)
    assert diverges(model, bundle) == "decoder.layers.1.attention"


# Ranges


def test_overflow_report_on_pictures(exported: Callable[[str], Exported]) -> None:
    model = exported("gpu-int4")
    report = overflow_report(model.bundle, [[pixels(model, seed)] for seed in range(2)], np.arange(5))
    assert not any(row.overflows for row in report.rows)
    names = [row.name for row in report.rows]
    assert "vision: vision_layers_0_q_k_v" in names and "decoder: decoder_layers_0_attention" in names
    assert report.rows[0].peak > 0


def test_overflow_report_names_a_layer_that_overflows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Weights scaled until a layer's activations leave fp16: the report names it, and fp32 storage stays right."""
    spec, weights = read_model(open_checkpoint(str(tiny_checkpoint)))

    class Loud:
        def read(self, name: str) -> Any:
            return weights.read(name) * (1e5 if name == "decoder.layers.1.up.weight" else 1)

        def __contains__(self, name: object) -> bool:
            return name in weights

        def names(self) -> list[str]:
            return weights.names()

        def is_linear(self, name: str) -> bool:
            return weights.is_linear(name)

    recipe = make_recipe("int8", "size")
    expected = QuantizedModel(cast(Any, Loud()), recipe)
    (tmp_path / "coreml").mkdir()
    entry = write_coreml(tmp_path / "coreml", spec, Loud(), recipe, expected.quantized, CoreMLOptions("gpu", (64,)))
    write_image_spec(tmp_path, tiny_checkpoint, spec)
    bundle = as_bundle(tmp_path, spec, entry)
    view = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    report = overflow_report(bundle, [[view]])
    assert report.problems[0].name.startswith("decoder: decoder_layers_1_gate_up")


def test_table_with_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="unknown kind 'int2'"):
        EmbeddingTable(tmp_path / "t.bin", EmbeddingFile("t.bin", "int2", (1, 1), (0, 1)))


def test_engine_off_a_mac_is_the_evaluator(exported: Callable[[str], Exported]) -> None:
    bundle = exported("gpu-int4").bundle
    encoder, decoder = (half(bundle, EngineOptions(), evaluate=True) for half in (CoreMLEncoder, CoreMLDecoder))
    assert isinstance(encoder.engine, EvaluatedVision) and isinstance(decoder.engine, EvaluatedDecoder)
    for half in (encoder, decoder):
        assert half.device.startswith("CPU (evaluator")
        half.close()
        half.close()


def test_incomplete_manifest(exported: Callable[[str], Exported]) -> None:
    model = exported("gpu-int4")
    for key in ("vision", "decoder", "embedding"):
        entry = {name: value for name, value in json.loads(json.dumps(to_dict(model.entry))).items() if name != key}
        with pytest.raises(EdgeVLMError, match=f"lacks the field '{key}'"):
            from_dict(CoreMLTarget, entry, "manifest.json")


# Through the pipeline and its gate


@pytest.fixture(scope="module")
def gated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizedModel]:
    """A bundle that passed its gate, and what the quantizer made of its weights."""
    folder = tmp_path_factory.mktemp("gated") / "out"
    result = export_model(ExportOptions(str(tiny_checkpoint), folder, ("coreml",), "int8", "size"))
    assert result.report is not None and result.report.passed
    _, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    return folder, QuantizedModel(weights, fit(make_recipe("int8", "size"), weights))


def spoil_weight(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    """A few codes of one matrix."""
    overwrite(bundle, "Decoder.mlpackage", "decoder_layers_1_gate_up_weight")


def spoil_mask(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    plant(bundle, "Decoder.mlpackage", unmask)


def spoil_state(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    plant(bundle, "Decoder.mlpackage", unwrite)


def spoil_rope(_: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are one position late."""
    spoil_inputs(monkeypatch, late)


def spoil_bias(bundle: Bundle, _: pytest.MonkeyPatch) -> None:
    plant(bundle, "VisionEncoder.mlpackage", lambda block: find(block, "vision_layers_1_fc2").inputs.pop("bias"))


@pytest.mark.parametrize(
    ("spoil", "check", "named"),
    [
        (spoil_weight, "weights that differ", "decoder.layers.1.gate_up"),
        (spoil_state, "prefill logits", "decoder.layers.2.attention"),
        pytest.param(spoil_mask, "prefill logits", "decoder.layers.1.attention", marks=pytest.mark.heavy),
        pytest.param(spoil_rope, "prefill logits", "decoder.layers.0.attention", marks=pytest.mark.heavy),
        pytest.param(spoil_bias, "features of 1 tile", "vision.layers.1.fc2", marks=pytest.mark.heavy),
    ],
)
def test_the_gate_fails_and_names_the_component(
    gated: tuple[Path, QuantizedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    check: str,
    named: str,
) -> None:
    folder, expected = gated
    bundle = open_bundle(shutil.copytree(folder, tmp_path / "copy"))
    spoil(bundle, monkeypatch)
    report = run_gate(bundle, expected=expected)
    assert not report.passed
    assert report.first_failure().startswith(f"coreml, {check}")
    located = [row.note for row in report.rows if row.check == "first operation that differs"]
    assert len(located) == 1 and located[0].startswith(f"{named}: differs from the reference")


@pytest.mark.heavy
def test_the_gate_calls_every_context(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Palettes for the Neural Engine, and a fault in the functions of one context that is not the longest."""
    result = export_model(
        ExportOptions(str(tiny_checkpoint), tmp_path / "out", ("coreml",), "palette6", coreml=CoreMLOptions("ane"))
    )
    assert result.report is not None and result.report.passed
    checks = [row.check for row in result.report.rows]
    assert {"logits with context 512, cosine", "logits with context 1024, cosine"} <= set(checks)
    bundle = open_bundle(tmp_path / "out")
    functions = bundle.manifest.targets["coreml"].decoder.functions
    assert sorted({function.context for function in functions.values()}) == [512, 1024, 2048]
    package = open_package(bundle.folder / "coreml" / "Decoder.mlpackage")
    assert {"constexpr_lut_to_dense"} <= {op.type for op in package.functions["decode_ctx512"].ops}

    plant(bundle, "Decoder.mlpackage", unwrite, only=("decode_ctx512", "prefill_32_ctx512"))
    _, weights = read_model(open_checkpoint(str(tiny_checkpoint)))
    report = run_gate(bundle, expected=QuantizedModel(weights, fit(make_recipe("palette6"), weights)))
    assert [row.check for row in report.rows if not row.passed] == ["logits with context 512, cosine"]
    assert [row.where for row in report.rows if row.check == "first operation that differs"] == [
        "decoder.layers.2.attention"
    ]


# Real models


def answer_prompt(checkpoint: str, quantize: str, out: Path, options: CoreMLOptions) -> tuple[Any, ...]:
    """(model, reference, views, prompt with their features), from a shipped picture and a question."""
    model = Exported(Path(checkpoint), out, quantize, options)
    source = open_checkpoint(checkpoint)
    parts = prepare(open_image(picture_folder() / "coffee.jpg"), model.image, max_tiles=1)
    prompter = Prompter(read_prompt_spec(source.folder, model.spec), source.folder / "tokenizer.json")
    ids, layout = prompter.encode("What is in the picture?", [parts.tokens])
    reference = model.reference()
    return model, reference, parts.views, reference.prompt(ids, layout, parts.views)


def holds(checkpoint: str, quantize: str, out: Path, options: CoreMLOptions) -> None:
    """The bar: features at 0.9999 and the same 32 greedy tokens, in fp16 storage."""
    model, reference, tiles, embeds = answer_prompt(checkpoint, quantize, out, options)
    assert lowest_cosine(model.encoder().encode(tiles), reference.features(tiles)) >= 0.9999
    assert (gaps(reference, embeds, greedy(model.decoder(), embeds)) == 0).all()


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    ("quantize", "profile"),
    [
        pytest.param("int8", "ane", marks=HEAVY),
        pytest.param("int4", "gpu", marks=HEAVY),
        pytest.param("fp16", "gpu", marks=HEAVY),
        pytest.param("int8", "gpu", marks=HEAVY),
    ],
)
def test_default_model(tmp_path: Path, quantize: str, profile: str) -> None:
    holds("default", quantize, tmp_path, CoreMLOptions(profile, (512,)))


@pytest.mark.heavy
@pytest.mark.parametrize(("quantize", "profile"), [("fp16", "gpu"), ("int8", "gpu"), ("int4", "gpu"), ("int8", "ane")])
def test_256m(checkpoint_256m: Path, tmp_path: Path, quantize: str, profile: str) -> None:
    holds(str(checkpoint_256m), quantize, tmp_path, CoreMLOptions(profile, (512,)))


@pytest.mark.heavy
@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_256m_bit_identical_to_onnx_and_gguf(checkpoint_256m: Path, tmp_path: Path, quantize: str) -> None:
    assert all_tensors_agree(str(checkpoint_256m), tmp_path / "out", quantize) > 200


@pytest.mark.heavy
def test_256m_export_memory(checkpoint_256m: Path, tmp_path: Path) -> None:
    """int4 of the 256M shape in a process of its own: under 2 GB."""
    code = (
        "import re, sys; from pathlib import Path\n"
        "from edgevlm.export.pipeline import ExportOptions, export_model\n"
        "export_model(ExportOptions(sys.argv[1], Path(sys.argv[2]), ('coreml',), 'int4', gate=False))\n"
        # not getrusage, which starts at the size of the process that this one was forked from
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024)\n"
    )
    command = [sys.executable, "-c", code, str(checkpoint_256m), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 2e9
