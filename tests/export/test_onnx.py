"""The ONNX files: valid, standard where they claim to be, shapes free, weights stored once, values right."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.export.onnx_.emit import write_onnx
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.decoder import decoder
from edgevlm.models.eager import EagerOps
from edgevlm.models.spec import states
from edgevlm.models.states import States
from edgevlm.runtimes.eager import encode_view
from edgevlm.runtimes.ort.products import session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.verify.reference import Reference, cosine

RECIPES = [("fp32", "balanced"), ("fp16", "balanced"), ("int8", "balanced"), ("int4", "balanced"), ("int4", "size"),
           ("int4", "latency"), ("int8", "latency")]  # fmt: skip
GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")


class Exported:
    """The tiny model in one recipe, with the reference on the same weights."""

    def __init__(self, checkpoint: Path, folder: Path, quantize: str, preset: str, **overrides: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.spec, weights = read_model(open_checkpoint(str(checkpoint)))
        recipe = make_recipe(quantize, preset, overrides)
        self.expected = QuantizedModel(weights, recipe)
        self.entry, self.table = write_onnx(folder, self.spec, weights, recipe, self.expected.quantized)
        self.reference = Reference(self.spec, self.expected, read_image_spec(checkpoint, self.spec))

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """The reference's (T, tokens, D) of normalized tiles (T, 3, H, W)."""
        return np.stack([encode_view(self.spec, self.expected, tile) for tile in pixels])

    def session(self, name: str) -> Any:
        ort = import_onnxruntime()
        options = session_options(ort, not name.endswith("_portable") and signed_saturates(ort))
        return ort.InferenceSession(str(self.folder / f"{name}.onnx"), options)

    def past(self, batch: int) -> dict[str, np.ndarray]:
        shapes = {
            state.name: [0 if size is None else size for size in state.shape] for state in states(self.spec.decoder)
        }
        return {f"past_key_values.{name}": np.zeros((batch, *shape), np.float32) for name, shape in shapes.items()}


def every_position(out: Exported, graph: str, embeds: np.ndarray) -> np.ndarray:
    """The reference's logits after each position, with the weights that `graph` holds."""
    weights, recipe = out.expected, out.expected.recipe
    if graph == "decoder_prefill":
        weights = replace(weights, recipe=replace(recipe, decoder=recipe.prefill))
    inputs = decoder_inputs(out.spec.decoder, Layout(len(embeds)), 0, len(embeds))
    return decoder(EagerOps(weights, States(), inputs, keep=len(embeds)), embeds, out.spec.decoder)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    made: dict[tuple[str, str], Exported] = {}

    def make(quantize: str, preset: str = "balanced") -> Exported:
        key = (quantize, preset)
        if key not in made:
            folder = tmp_path_factory.mktemp("onnx") / f"{quantize}-{preset}"
            made[key] = Exported(tiny_checkpoint, folder, quantize, preset)
        return made[key]

    return make


@pytest.mark.parametrize(("quantize", "preset"), RECIPES)
def test_files_are_valid_and_portable_ones_are_standard(exported, quantize: str, preset: str) -> None:
    out = exported(quantize, preset)
    for path in out.folder.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=path.stem.endswith("_portable"))
        model = onnx.load(path, load_external_data=False)
        domains = {node.domain for node in model.graph.node} | {opset.domain for opset in model.opset_import}
        if path.stem.endswith("_portable"):
            assert domains == {""}
    operators = [node.op_type for node in onnx.load(out.folder / "decoder_model_merged.onnx").graph.node]
    layers = out.spec.decoder.num_layers
    assert operators.count("GroupQueryAttention") == layers
    assert operators.count("SkipSimplifiedLayerNormalization") == 2 * layers
    if quantize == "int4":
        assert operators.count("MatMulNBits") == 4 * layers + 1  # packed QKV, output, packed gate and up, down; head
    assert (out.folder / "decoder_prefill.onnx").exists() == (preset == "latency" and quantize == "int4")


@pytest.mark.parametrize("suffix", ["", "_portable"])
@pytest.mark.parametrize(("quantize", "preset"), RECIPES)
def test_any_number_of_tiles_and_masked_tiles(exported, quantize: str, preset: str, suffix: str) -> None:
    out = exported(quantize, preset)
    size, bound = out.spec.vision.image_size, 0.99999 if quantize.startswith("fp") else 0.999
    session = out.session(f"vision_encoder{suffix}")
    rng = np.random.default_rng(1)
    for batch, images in ((1, 1), (1, 2), (2, 3), (1, 13)):
        pixels = rng.uniform(-1, 1, (batch, images, 3, size, size)).astype(np.float32)
        mask = np.ones((batch, images, size, size), bool)
        if images > 1:
            mask[-1, -1] = False  # a tile that only fills the batch up
            pixels[-1, -1] = 0
        features = session.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})[0]
        real = pixels.reshape(-1, 3, size, size)[mask.any((2, 3)).ravel()]
        assert features.shape == (len(real), out.spec.image_tokens, out.spec.decoder.hidden_size)
        assert cosine(features, out.features(real)) >= bound


@pytest.mark.parametrize("suffix", ["", "_portable"])
@pytest.mark.parametrize(("quantize", "preset"), RECIPES)
def test_embeddings_are_the_shipped_rows(exported, quantize: str, preset: str, suffix: str) -> None:
    out = exported(quantize, preset)
    ids = np.random.default_rng(2).integers(0, out.spec.decoder.vocab_size, (2, 7))
    rows = out.session(f"embed_tokens{suffix}").run(None, {"input_ids": ids})[0]
    assert np.abs(rows - out.reference.embed(ids)).max() <= 1e-6


@pytest.mark.parametrize("graph", ["decoder_model_merged", "decoder_model_merged_portable", "decoder_prefill"])
@pytest.mark.parametrize(("quantize", "preset"), RECIPES)
def test_past_of_any_length_and_ragged_batches(exported, quantize: str, preset: str, graph: str) -> None:
    out = exported(quantize, preset)
    if not (out.folder / f"{graph}.onnx").exists():
        pytest.skip("only int4 latency has a decoder for prompts")
    session = out.session(graph)
    exact = quantize.startswith("fp") or (graph.endswith("portable") and preset != "latency")
    # activations rounded to int8 cost a random 64-wide model more than any real one
    bound = 0.99999 if exact else 0.99
    layers = out.spec.decoder.num_layers
    names = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    ids = np.random.default_rng(3).integers(0, 400, 15)
    embeds = out.reference.embed(ids)
    wanted = every_position(out, graph, embeds)

    past, position = out.past(1), 0
    for step in (5, 1, 7, 1, 1):
        feeds = {"inputs_embeds": embeds[None, position : position + step], **past}
        position += step
        logits, *present = session.run(None, {**feeds, "attention_mask": np.ones((1, position), np.int64)})
        assert logits.shape == (1, 1, out.spec.decoder.vocab_size)
        assert cosine(logits[0, 0], wanted[position - 1]) >= bound
        past = dict(zip(names, present, strict=True))

    mask = np.zeros((3, 9), np.int64)  # right padding: rows of 9, 6 and 1 real positions
    for row, length in enumerate((9, 6, 1)):
        mask[row, :length] = 1
    feeds = {"inputs_embeds": np.repeat(embeds[None, :9], 3, 0), "attention_mask": mask, **out.past(3)}
    logits = session.run(["logits"], feeds)[0][:, 0]
    assert cosine(logits, wanted[[8, 5, 0]]) >= bound
    assert [value.name for value in session.get_overridable_initializers()] == ["num_logits_to_keep"]
    several = session.run(["logits"], feeds | {"num_logits_to_keep": np.array(3)})[0]
    assert cosine(several[:2], wanted[[[6, 7, 8], [3, 4, 5]]]) >= bound and several.shape[:2] == (3, 3)


def test_a_first_token_of_massive_activations_leaves_the_others_their_range(tiny_checkpoint, tmp_path) -> None:
    """As in trained models (arXiv 2402.17762): what flows into a map of one position is far larger."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    layer = "text_model.layers.0."
    for name, tensor in tensors.items():
        if name.endswith((f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight")):
            tensor[:, 3] *= 10
        elif name.endswith(f"{layer}self_attn.o_proj.weight"):
            tensor[3] = 0  # attention brings nothing of that channel to other positions
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    out = Exported(checkpoint, tmp_path / "onnx", "int4", "latency")
    embeds = out.reference.embed(np.random.default_rng(5).integers(0, 400, 40))
    embeds[:, 3] = 0
    embeds[0] = 0
    embeds[0, 3] = 100
    largest = _inputs_of_down(out, embeds)
    assert largest[0] > 50 * np.median(largest), "the test's own premise"
    feeds = {"inputs_embeds": embeds[None], "attention_mask": np.ones((1, 40), np.int64), **out.past(1)}
    logits = out.session("decoder_prefill").run(["logits"], feeds)[0][0, 0]
    assert cosine(logits, every_position(out, "decoder_prefill", embeds)[-1]) >= 0.99


def _inputs_of_down(out: Exported, embeds: np.ndarray) -> np.ndarray:
    """The largest value of each position that flows into the first layer's last map."""
    found = []

    class Spy(EagerOps):
        def linear(self, x, *maps, bias=False):
            found.extend([np.abs(x).max(-1)] if maps[0][0] == "decoder.layers.0.down" else [])
            return super().linear(x, *maps, bias=bias)

    inputs = decoder_inputs(out.spec.decoder, Layout(len(embeds)), 0, len(embeds))
    decoder(Spy(out.expected, States(), inputs, keep=len(embeds)), embeds, out.spec.decoder)
    return found[0]


def test_portable_decoder_takes_left_padding(exported) -> None:
    out = exported("fp32")
    ids = np.random.default_rng(4).integers(0, 400, 6)
    embeds = out.reference.embed(ids)
    padded = np.concatenate([np.ones((4, embeds.shape[1]), np.float32), embeds])
    mask = np.array([[0] * 4 + [1] * 6], np.int64)
    feeds = {"inputs_embeds": padded[None], "attention_mask": mask, **out.past(1)}
    logits = out.session("decoder_model_merged_portable").run(["logits"], feeds)[0][0, 0]
    assert cosine(logits, out.reference.logits(embeds)[0]) >= 0.99999


@pytest.mark.parametrize("quantize", ["fp32", "int8", "int4"])
def test_portable_graphs_by_the_standard_itself(exported, quantize: str) -> None:
    """onnx's own reference implementation, which knows no runtime, computes the same."""
    out = exported(quantize)
    size = out.spec.vision.image_size
    pixels = np.random.default_rng(5).uniform(-1, 1, (1, 2, 3, size, size)).astype(np.float32)
    mask = np.ones((1, 2, size, size), bool)
    path = str(out.folder / "vision_encoder_portable.onnx")
    features = ReferenceEvaluator(path).run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})[0]
    assert cosine(features, out.features(pixels[0])) >= 0.99999

    ids = np.array([[3, 99, 200, 7]])
    path = str(out.folder / "embed_tokens_portable.onnx")
    embeds = ReferenceEvaluator(path).run(None, {"input_ids": ids})[0]
    assert np.abs(embeds - out.reference.embed(ids)).max() <= 1e-6

    path = str(out.folder / "decoder_model_merged_portable.onnx")
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, 4), np.int64), **out.past(1)}
    logits = ReferenceEvaluator(path).run(["logits"], feeds)[0]
    assert cosine(logits[0, 0], out.reference.logits(embeds[0])[0]) >= 0.99999


def test_files_hold_the_quantizers_codes(exported) -> None:
    """Read by the onnx package: MatMulNBits' bytes and scales are the QTensor's."""
    out = exported("int4", "size")
    model = onnx.load(out.folder / "decoder_model_merged.onnx")
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    layer = "decoder.layers.1"
    key = "+".join(f"{layer}.{part}" for part in ("gate", "up"))
    packed = arrays[f"{key}.weight"].reshape(-1, out.spec.decoder.hidden_size // 2)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.int8) - 8
    tensors = [out.expected.quantized(f"{layer}.{part}.weight") for part in ("gate", "up")]
    assert np.array_equal(codes, np.concatenate([t.codes for t in tensors]))
    assert np.array_equal(arrays[f"{key}.scale"], np.concatenate([t.scale for t in tensors]).astype(np.float32))


@pytest.mark.parametrize("quantize", ["fp32", "int8", "int4"])
def test_tied_table_is_stored_once(exported, quantize: str) -> None:
    out = exported(quantize)
    model = onnx.load(out.folder / "decoder_model_merged.onnx", load_external_data=False)
    head = next(i for i in model.graph.initializer if i.name == "decoder.embed.weight")
    location = {item.key: item.value for item in head.external_data}["location"]
    assert location == "embed_tokens.onnx_data"
    assert not (out.folder / "decoder_model_merged_portable.onnx_data").exists()


def test_untied_head(builder, tmp_path: Path) -> None:
    checkpoint = builder.build_tiny(tmp_path / "untied", tie=False)
    for quantize in ("fp32", "int4"):
        out = Exported(checkpoint, tmp_path / quantize, quantize, "balanced")
        embeds = out.reference.embed(np.arange(9))
        feeds = {"inputs_embeds": embeds[None], "attention_mask": np.ones((1, 9), np.int64), **out.past(1)}
        wanted = out.reference.logits(embeds)[0]
        for suffix in ("", "_portable"):
            logits = out.session(f"decoder_model_merged{suffix}").run(["logits"], feeds)[0][0, 0]
            assert cosine(logits, wanted) >= (0.99999 if quantize == "fp32" else 0.99)
