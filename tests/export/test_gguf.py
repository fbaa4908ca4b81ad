"""The GGUF pair: the same bits as ONNX, read by outsiders; llama.cpp's names; and what must be refused."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tracemalloc

import gguf
import numpy as np
import onnx
import pytest
from cases import heavy_but
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgevlm.bundle.manifest import open_bundle
from edgevlm.bundle.qtensor import QTensor
from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_ import validate_gguf, write_gguf
from edgevlm.export.gguf_.blocks import ggml_type, pack
from edgevlm.export.gguf_.tokenizer import byte_level, read_vocabulary
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Rope
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.gguf import GgufFile, GgufWeights
from edgevlm.runtimes.llama.names import PROJECTORS, TEXT
from edgevlm.verify.across import verify_across

# --- the same bits, read by the onnx and the gguf package ------------------------------------------------------


def onnx_tensors(folder):
    """Canonical name -> float32 values, decoded from the graphs by the operators' definitions."""
    found = {}
    for file in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        graph = onnx.load(folder / "onnx" / f"{file}.onnx").graph
        fed = {value.name for value in graph.input}  # an option's initializer is its default
        arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in fed}
        users = {name: node for node in graph.node for name in node.input}
        for name, array in arrays.items():
            if name.startswith(("const/", "rope.")) or name.endswith((".scale", ".zero_points")):
                continue
            stem, _, what = name.rpartition(".")
            node = users[name]
            node = users[node.output[0]] if node.op_type == "Cast" else node
            values = decode(node, array, arrays.get(f"{stem}.scale")) if what in ("weight", "rows") else array
            parts = stem.split("+") if what != "position_embedding" else []
            if not parts:
                found[name] = values
                continue
            suffix = "bias" if what == "bias" else "weight"
            found |= split(parts, suffix, values, sizes(parts, len(values)))
    return found


def decode(node, array, scale):
    if node.op_type == "MatMulNBits":  # com.microsoft contrib operators: (q - zero point) * scale, low nibble first
        bits = next(a.i for a in node.attribute if a.name == "bits")
        codes = array.astype(np.int32)
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(array), array.shape[1], -1)
        blocks = (codes - (8 if bits == 4 else 128)).astype(np.float32)
        return (blocks * scale.reshape(len(array), -1, 1)).reshape(len(array), -1)
    if node.op_type == "GatherBlockQuantized":
        bits = next(a.i for a in node.attribute if a.name == "bits")
        codes = array.astype(np.int32)
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(array), -1)
        blocks = (codes - (8 if bits == 4 else 128)).astype(np.float32).reshape(*scale.shape, -1)
        return (blocks * scale[:, :, None]).reshape(len(array), -1)
    if node.op_type == "DynamicQuantizeMatMul":
        codes = array.astype(np.float32) - (128 if array.dtype == np.uint8 else 0)
        return np.ascontiguousarray((codes * scale).T)
    values = array.astype(np.float32)
    return np.ascontiguousarray(values.T) if node.op_type == "MatMul" else values


def sizes(parts, rows):
    if len(parts) == 1:
        return [rows]
    kinds = [part.rsplit(".", 1)[1] for part in parts]
    if kinds == ["q", "k", "v"] and parts[0].startswith("decoder"):
        return [rows // 2, rows // 4, rows // 4]  # twice as many query heads, in the tiny and in the default model
    return [rows // len(parts)] * len(parts)


def split(parts, suffix, values, heights):
    edges = np.cumsum(heights)[:-1]
    return {f"{p}.{suffix}": v for p, v in zip(parts, np.split(values, edges), strict=True)}


def gguf_name(weight):
    return (TEXT["llama"] if weight.startswith("decoder.") else PROJECTORS["idefics3"]).name(weight)


def gguf_tensors(folder, names, spec):
    """The same, decoded by the gguf package; q and k rows of llama files are put back by their published formula."""
    read = {}
    for file in ("model", "mmproj"):
        for tensor in gguf.GGUFReader(folder / "gguf" / f"{file}.gguf").tensors:
            read[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type)
    found = {}
    for name in names:
        values = read.pop(gguf_name(name))
        part = name.split(".")
        attention = spec.block(0).mixers[0]
        heads = {"q": attention.heads, "k": attention.kv_heads}.get(part[-2]) if part[0] == "decoder" else None
        if heads:
            values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[name] = values
    assert not read, f"tensors that ONNX lacks: {sorted(read)}"
    return found


def differing(folder, spec):
    ours = onnx_tensors(folder)
    theirs = gguf_tensors(folder, list(ours), spec.decoder)
    return [name for name in ours if not np.array_equal(bits(ours[name]), bits(theirs[name]))], len(ours)


def bits(values):
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("model", ["tiny", "default"])
@pytest.mark.parametrize("kind", heavy_but(["int4", "fp16"], ["int4", "int8", "fp16", "fp32"]))
def test_every_tensor_is_equal_bit_for_bit(gguf_bundle, kind, model):
    bundle = gguf_bundle(kind, model)
    different, count = differing(bundle.folder, bundle.manifest.spec)
    assert different == []
    layers = bundle.manifest.spec
    assert count == 4 + 16 * layers.vision.num_layers + 9 * layers.decoder.num_layers + 4
    kinds = bundle.manifest.targets["gguf"].bytes
    expected = {"int4": {"Q4_0", "Q8_0", "F32"}, "int8": {"Q8_0", "F32"}, "fp16": {"F16", "F32"}, "fp32": {"F32"}}
    assert set(kinds) == expected[kind]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_every_tensor_of_the_256m_shape_is_equal_bit_for_bit(checkpoint_256m, tmp_path, kind, monkeypatch):
    from edgevlm.export.pipeline import ExportOptions, export_model

    out = tmp_path / "bundle"
    options = ExportOptions(str(checkpoint_256m), out, targets=("onnx", "gguf"), quantize=kind, gate=False)
    bundle = open_bundle(export_model(options).folder)
    spec = bundle.manifest.spec.decoder
    monkeypatch.setitem(globals(), "sizes", lambda parts, rows: thirds(parts, rows, spec))
    different, count = differing(out, bundle.manifest.spec)
    assert different == [] and count == 470


def thirds(parts, rows, spec):
    if len(parts) == 3 and parts[0].startswith("decoder"):
        a = spec.block(0).mixers[0]
        return [n * a.head_dim for n in (a.heads, a.kv_heads, a.kv_heads)]
    return [rows // len(parts)] * len(parts)


@pytest.mark.parametrize("kind", heavy_but(["int4"], ["int4", "int8"]))
@pytest.mark.parametrize("side", ["gguf", "onnx"])
def test_one_changed_code_is_found(gguf_bundle, tmp_path, kind, side):
    bundle = gguf_bundle(kind)
    folder = shutil.copytree(bundle.folder, tmp_path / "changed")
    weight = "decoder.layers.1.down.weight"
    if side == "gguf":
        path = folder / "gguf/model.gguf"
        tensor = GgufFile(path).tensors[gguf_name(weight)]
        place = tensor.start + tensor.nbytes - 1
    else:
        entry = json.loads((folder / "weights.json").read_text())["tensors"][weight]
        path, place = folder / entry["file"], entry["codes"]["offset"] + 40
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    different, _ = differing(folder, bundle.manifest.spec)
    assert different == [weight]
    report = verify_across(open_changed(folder), tokens=1)
    assert report.different == (f"gguf: {weight}",) and not report.agreed
    assert {row.divergence for row in report.rows if row.second == "llama.cpp"} <= {"weights"}
    assert {row.divergence for row in report.rows if row.second != "llama.cpp"} == {"none"}


def open_changed(folder):
    """A bundle whose weights are not the ones it was hashed with: only small files are hashed on opening."""
    from edgevlm.bundle.manifest import FileInfo, Manifest, sha256
    from edgevlm.io.records import from_dict, to_dict

    data = json.loads((folder / "manifest.json").read_text())
    for name in data["files"]:
        path = folder / name
        data["files"][name] = to_dict(FileInfo(path.stat().st_size, sha256(path)))
    (folder / "manifest.json").write_text(json.dumps(data))
    from_dict(Manifest, data, "manifest.json")
    return open_bundle(folder)


def test_our_reader_agrees_with_the_gguf_package(gguf_bundle):
    bundle = gguf_bundle("int4")
    for file in ("model", "mmproj"):
        path = bundle.folder / "gguf" / f"{file}.gguf"
        ours, theirs = GgufFile(path), gguf.GGUFReader(path)
        assert {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")} == ours.keys
        assert len(theirs.tensors) == len(ours.tensors)
        for tensor in theirs.tensors:
            assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), ours.read(tensor.name))
    rows = np.array([5, 0, 511, 5])
    table = GgufWeights(*pair(bundle), bundle.manifest.spec).read("decoder.embed.weight")
    assert np.array_equal(GgufFile(pair(bundle)[0]).rows("token_embd.weight", rows), table[rows])


def pair(bundle):
    return bundle.folder / "gguf/model.gguf", bundle.folder / "gguf/mmproj.gguf"


# --- blocks ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.sampled_from(["int4", "int8"]))
@settings(max_examples=60, deadline=None)
def test_blocks_dequantize_to_the_same_values(seed, rows, blocks, kind):
    rng = np.random.default_rng(seed)
    low, high, columns = (-8, 8, blocks) if kind == "int4" else (-127, 128, 1)
    codes = rng.integers(low, high, (rows, 32 * blocks)).astype(np.int8)
    scale = (rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-7, 5)).astype(np.float16)
    tensor = QTensor(kind, codes, scale)
    quantized = ggml_type(kind, 32 * blocks)
    assert np.array_equal(bits(gguf.dequantize(pack(tensor, quantized), quantized)), bits(tensor.dequantize()))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_int4_blocks_are_ggmls_own_bytes(seed):
    """Round to nearest is GGUF's rule, so for plain weights even the bytes are what llama.cpp's tools write."""
    weight = np.random.default_rng(seed).normal(size=(3, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    assert np.array_equal(pack(quantize(weight, "int4", "w"), kind), gguf.quants.quantize(weight, kind))


def test_rows_that_blocks_do_not_divide_keep_their_values():
    tensor = quantize(np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32), "int8", "w")
    assert ggml_type("int8", 40).name == "F32"
    assert np.array_equal(pack(tensor, ggml_type("int8", 40)), tensor.dequantize())


def test_rope_rows_interleave_what_split_halves_rotate():
    """Rotating neighbouring pairs of permuted rows equals rotating split halves (Su et al. 2021, both layouts)."""
    block = Block((Attention(3, 1, 8, rope="main"),), Mlp(1))
    eyes = Vit(8, 8, 8, 1, Block((Attention(1, 1, 8),), Mlp(1)))
    spec = ModelSpec("m", "f", eyes, (), Decoder(1, 1, 8, (block,), (0,), ropes={"main": Rope(1e4, 8)}), 0)
    order_of = TEXT["llama"].order
    x, angles = np.random.default_rng(0).normal(size=(3, 8)), np.random.default_rng(1).normal(size=4)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[:, :4], x[:, 4:]
    halves = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)
    order = order_of("decoder.layers.0.q.weight", spec)
    pairs = x.reshape(-1)[order].reshape(3, 4, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    assert np.allclose(turned.reshape(-1), halves.reshape(-1)[order])
    assert (
        order_of("decoder.layers.0.v.weight", spec) is None
        and TEXT["qwen2"].order("decoder.layers.0.q.weight", spec) is None
    )
    assert PROJECTORS["idefics3"].order("vision.layers.0.q.weight", spec) is None


def test_names_are_llama_cpps_own():
    """gguf-py's tables from Hugging Face names to GGUF names, which its converter uses."""
    text = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    eyes = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 4)
    parts = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
    decoder = parts | {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    decoder |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    vision = parts | {"o": "self_attn.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    vision |= {"norm1": "layer_norm1", "norm2": "layer_norm2"}
    pairs = {f"decoder.layers.3.{k}": f"model.layers.3.{v}" for k, v in decoder.items()}
    pairs |= {"decoder.embed": "model.embed_tokens", "decoder.norm": "model.norm", "decoder.head": "lm_head"}
    for ours, theirs in pairs.items():
        assert gguf_name(f"{ours}.weight") == text.get_name(f"{theirs}.weight", (".weight", ".bias")), ours
    pairs = {f"vision.layers.3.{k}": f"model.vision_model.encoder.layers.3.{v}" for k, v in vision.items()}
    pairs |= {
        "vision.patch_embedding": "model.vision_model.embeddings.patch_embedding",
        "vision.post_norm": "model.vision_model.post_layernorm",
        "projector.linear": "model.connector.modality_projection.proj",
    }
    for ours, theirs in pairs.items():
        assert gguf_name(f"{ours}.bias") == eyes.get_name(f"{theirs}.bias", (".weight", ".bias")), ours
    positions = eyes.get_name("model.vision_model.embeddings.position_embedding.weight", (".weight",))
    assert gguf_name("vision.position_embedding") == positions


# --- tokenizer and template ------------------------------------------------------------------------------------


def test_vocabulary_is_the_tokenizers(gguf_checkpoint):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(gguf_checkpoint)
    ours = read_vocabulary(gguf_checkpoint / "tokenizer.json", 600)
    assert ours.pre == "smollm"
    assert {token: i for i, token in enumerate(ours.tokens) if i < len(theirs)} == theirs.get_vocab()
    special = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert {i for i, kind in enumerate(ours.types) if kind == gguf.TokenType.CONTROL} == special
    assert ours.tokens[599] == "[PAD599]" and ours.types[599] == gguf.TokenType.UNUSED
    assert ours.single("\n\n") == theirs.convert_tokens_to_ids("ĊĊ")
    assert ours.single("no such token") is None
    assert byte_level("né\n ") == "nÃ©ĊĠ"


def change(**changes):
    def apply(data):
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = data
            for key in parents:
                place = place[key]
            place[last] = value

    return apply


SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(model__type="Unigram"), "its model is 'Unigram'"),
        (change(model__byte_fallback=True), "byte fallback"),
        (change(model__ignore_merges=True, model__vocab__zq=511), "ignore_merges is True, and no merges make 'zq'"),
        (change(normalizer={"type": "NFC"}), "it normalizes text"),
        (change(pre_tokenizer=None), "its pre-tokenizer is missing"),
        (change(pre_tokenizer={"type": "Metaspace"}), "its pre-tokenizer is Metaspace"),
        (change(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}), "Split . ByteLevel"),
        (change(pre_tokenizer={**BYTES, "add_prefix_space": True}), "its pre-tokenizer is ByteLevel"),
        (change(model__vocab={"a": 900}), "the model has 512 embeddings"),
        (change(model__merges=7), "no usable tokenizer.json"),
        (lambda data: data.pop("model"), "no usable tokenizer.json"),
        (lambda data: data.update(added_tokens=[{"id": "x", "content": "y"}]), "no usable tokenizer.json"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks_are_refused(gguf_checkpoint, tmp_path, damage, reason):
    data = json.loads((gguf_checkpoint / "tokenizer.json").read_text())
    damage(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=reason):
        read_vocabulary(tmp_path / "tokenizer.json", 512)


def test_gpt2_and_llama3_tokenizers_are_named(gguf_checkpoint, tmp_path):
    data = json.loads((gguf_checkpoint / "tokenizer.json").read_text())
    data["pre_tokenizer"] = BYTES
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert read_vocabulary(tmp_path / "tokenizer.json", 512).pre == "gpt-2"


# --- the validator, and damaged files --------------------------------------------------------------------------


def rewrite(path, out, drop=(), keys=None):
    """Copy a GGUF file with tensors left out and keys changed (None: left out), with the gguf package."""
    reader, keys = gguf.GGUFReader(path), keys or {}
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = keys.get(name, field.contents())
        if value is not None:
            writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


# Each of these loads in llama.cpp without an error, or kills the process.
MMPROJ_DAMAGE = [
    ({"drop": ["v.patch_embd.bias"]}, "the tensor v.patch_embd.bias is missing"),
    ({"drop": ["v.position_embd.weight"]}, "the tensor v.position_embd.weight is missing"),
    ({"drop": ["v.blk.1.attn_q.bias"]}, "the tensor v.blk.1.attn_q.bias is missing"),
    ({"drop": ["v.post_ln.weight", "v.post_ln.bias"]}, "the tensor v.post_ln.weight is missing"),
    ({"keys": {"clip.vision.projector.scale_factor": None}}, "the key clip.vision.projector.scale_factor is missing"),
    ({"keys": {"clip.use_gelu": None}}, "the key clip.use_gelu is missing"),
    ({"keys": {"clip.vision.preproc_image_size": None}}, "the key clip.vision.preproc_image_size is missing"),
    ({"keys": {"clip.vision.image_std": [0.5, 0.5]}}, "image_std is .0.5, 0.5., expected .0.5, 0.5, 0.5."),
    ({"keys": {"clip.vision.image_mean": [0.5, 0.5, float("nan")]}}, "image_mean"),
    ({"keys": {"clip.projector_type": "mlp"}}, "projector_type is 'mlp', expected 'idefics3'"),
    ({"keys": {"clip.vision.block_count": 1}}, "block_count is 1, expected 2"),
]
MODEL_DAMAGE = [
    ({"drop": ["output_norm.weight"]}, "the tensor output_norm.weight is missing"),
    ({"keys": {"tokenizer.chat_template": None}}, "the key tokenizer.chat_template is missing"),
    ({"keys": {"tokenizer.ggml.eos_token_id": 9999}}, "eos_token_id is outside the vocabulary"),
    ({"keys": {"tokenizer.ggml.add_bos_token": True}}, "add_bos_token is True, expected False"),
    ({"keys": {"llama.rope.freq_base": 1e6}}, "rope.freq_base"),
    ({"keys": {"llama.attention.key_length": None}}, "key_length is missing"),
    ({"keys": {"tokenizer.ggml.tokens": ["a"] * 512}}, "the token 'a' appears more than once"),
    ({"keys": {"tokenizer.ggml.tokens": [str(i) for i in range(512)]}}, "no single token for '<fake_token"),
    ({"keys": {"tokenizer.ggml.tokens": ["a"]}}, "1 tokens and 512 types stand for 512 embeddings"),
]


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [("mmproj", *case) for case in MMPROJ_DAMAGE] + [("model", *case) for case in MODEL_DAMAGE],
)
def test_files_that_llama_cpp_would_misread_are_refused(gguf_bundle, tmp_path, file, damage, reason):
    bundle = gguf_bundle("int4")
    model, mmproj = pair(bundle)
    validate_gguf(model, mmproj, bundle.manifest.spec, bundle.image_spec, bundle.prompt_spec)
    damaged = rewrite(bundle.folder / "gguf" / f"{file}.gguf", tmp_path / f"{file}.gguf", **damage)
    files = (damaged, mmproj) if file == "model" else (model, damaged)
    with pytest.raises(EdgeVLMError, match=rf"^{file}.gguf would not work in llama.cpp: .*{reason}"):
        validate_gguf(*files, bundle.manifest.spec, bundle.image_spec, bundle.prompt_spec)


def test_files_of_another_model_are_refused(gguf_bundle):
    tiny, default = gguf_bundle("int4"), gguf_bundle("int4", "default")
    with pytest.raises(EdgeVLMError, match="would not work"):
        validate_gguf(*pair(default), tiny.manifest.spec, tiny.image_spec, tiny.prompt_spec)
    with pytest.raises(EdgeVLMError, match="architecture is 'clip', expected 'llama'"):
        validate_gguf(*reversed(pair(tiny)), tiny.manifest.spec, tiny.image_spec, tiny.prompt_spec)


def test_without_llama_cpps_markers_a_decoder_is_written_alone(gguf_checkpoint, tmp_path):
    source = shutil.copytree(gguf_checkpoint, tmp_path / "source")
    data = json.loads((source / "tokenizer.json").read_text())
    data["model"]["vocab"]["xyzzy"] = data["model"]["vocab"].pop("ĊĊ")
    data["model"]["merges"].pop()
    (source / "tokenizer.json").write_text(json.dumps(data))
    entry = write(source, tmp_path / "out")
    assert entry.mmproj is None and r"no single token for '\n\n'" in entry.no_pictures
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]


def write(source, out, quantized=None, kind="int4"):
    from edgevlm.checkpoint.checkpoint import open_checkpoint
    from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec

    spec, weights = read_model(open_checkpoint(str(source)))
    recipe = make_recipe(kind)
    return write_gguf(
        out,
        spec,
        weights,
        recipe,
        read_image_spec(source, spec),
        read_prompt_spec(source, spec),
        source / "tokenizer.json",
        quantized or (lambda name: quantize(weights.read(name), recipe.form(name).kind, name)),
    )


def quantizer(source, kind="int4"):
    from edgevlm.checkpoint.checkpoint import open_checkpoint
    from edgevlm.checkpoint.families import read_model

    _, weights = read_model(open_checkpoint(str(source)))
    recipe = make_recipe(kind)
    return lambda name: quantize(weights.read(name), recipe.form(name).kind, name)


def test_one_tensor_is_in_memory_at_a_time(builder, gguf_checkpoint, tmp_path):
    """Forty layers cost no more memory than ten: what is kept grows with the vocabulary, not with the model."""
    peaks = []
    for layers in (10, 40):
        source = builder.build_tiny(tmp_path / f"deep-{layers}", text_layers=layers)
        shutil.copyfile(gguf_checkpoint / "tokenizer.json", source / "tokenizer.json")
        tracemalloc.start()
        write(source, tmp_path / f"out-{layers}", kind="fp32")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    added = 30 * 4 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64)
    assert peaks[1] - peaks[0] < 0.3 * added, (peaks, added)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_refused_or_read_in_bounds(hostile, data):
    original, path = hostile
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(damaged), 60000) - 1))
        width = data.draw(st.sampled_from([1, 4, 8]))
        damaged[place : place + width] = data.draw(st.binary(min_size=width, max_size=width))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path.write_bytes(damaged)
    try:
        file = GgufFile(path)
        for name in file.tensors:
            file.read(name)
    except EdgeVLMError as error:
        assert str(path) in str(error)


@pytest.fixture(scope="module")
def hostile(gguf_bundle, tmp_path_factory):
    original = gguf_bundle("int4").folder / "gguf/mmproj.gguf"
    return original.read_bytes(), tmp_path_factory.mktemp("hostile") / "bad.gguf"


def test_reading_what_is_no_gguf_file(tmp_path):
    for name, data in {"empty": b"", "text": b"hello", "zeros": bytes(1000), "magic": b"GGUF"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EdgeVLMError, match="is no GGUF file of edgevlm, or is damaged"):
            GgufFile(tmp_path / name)
    with pytest.raises(EdgeVLMError, match="cannot be read"):
        GgufFile(tmp_path / "missing")


def test_a_missing_gguf_package_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("edgevlm.export.gguf_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(EdgeVLMError, match=r"needs the package gguf, .*pip install '\.\[gguf\]'"):
        importlib.import_module("edgevlm.export.gguf_")
