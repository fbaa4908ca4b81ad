"""Each text architecture and projector type: our files load in llama.cpp, which then computes what eager computes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import HALVES, sheet

from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_ import write_gguf
from edgevlm.export.gguf_.archs import projector_type, text_arch, why_no_pictures
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.layout import Layout, Span
from edgevlm.inputs.rules import Pad, RatioTiles, Stretch, TilesThenWhole
from edgevlm.inputs.spec import Chat, ImageSpec, PictureText, PromptSpec, RoleText
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Gated, Group, Linear, Normalize, Pool, Shuffle, Take
from edgevlm.models.record import weight_tree
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope, RopeScaling, ShortConv
from edgevlm.models.towers.mobilenet import Attending, Bottleneck, MobileNet
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.eager import eager_runtime
from edgevlm.runtimes.gguf import GgufFile, GgufWeights
from edgevlm.verify.weights import check_gguf

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.tokenizer import DEEPSEEK_CUTS, LFM2_PATTERN, TEKKEN_PATTERN, bytes_alone, isolated

VOCAB, WIDTH, EYES = 608, 64, 64
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)


def decoder(*, qk_norm=False, sections=(), tied=True, head_dim=16, scaling=None, mlp_bias=False, **options):
    attention = Attention(4, 2, head_dim, rope="main", qk_norm=Norm() if qk_norm else None, **options)
    return Decoder(
        VOCAB, WIDTH, 1024, (Block((attention,), Mlp(96, bias=mlp_bias)),), (0,) * 3,
        ropes={"main": Rope(10000.0, head_dim, scaling, sections)}, tie_embeddings=tied,
    )  # fmt: skip


def deep_decoder(*, sections=(4, 2, 2), **options):
    made = decoder(qk_norm=True, sections=sections, **options)
    turning = {"main": dataclasses.replace(made.ropes["main"], interleaved=True)}
    return dataclasses.replace(made, ropes=turning, deepstack=(0, 1))


def vit(*, act="gelu", image=56, patch=7, **options):
    attention = Attention(4, 4, 16, bias=True, out_bias=True)
    mlp = Mlp(96, act, gated=False, bias=True)
    return Vit(image, patch, EYES, 3, Block((attention,), mlp, Norm("layer", 1e-6)), **options)


def qwen_vit(full=(1, 3), layers=4, window=8, patch=14, mlp=96):
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    return QwenVit(patch, 2, window, EYES, layers, full, Block((attention,), Mlp(mlp, bias=True)))


LAYER = Norm("layer", 1e-6)


def plain_qwen_vit(**options):
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    block = Block((attention,), Mlp(96, "quick_gelu", gated=False, bias=True), LAYER)
    return QwenVit(14, 2, None, EYES, 2, (), block, **options)


def turned_vit(**options):
    """SigLIP's layers with RoPE and a table on any grid."""
    attention = Attention(4, 4, 16, bias=True, out_bias=True, rope="patches")
    block = Block((attention,), Mlp(96, "gelu_tanh", gated=False, bias=True), LAYER)
    table = {"patch_bias": True, "table": 3, "resample": "smooth", "post_norm": True}
    return QwenVit(14, 2, None, EYES, 2, (), block, **{**table, **options})


def axial_vit(merge=2, act="gelu_tanh"):
    """Gated layers without biases, a norm before them, staggered RoPE."""
    block = Block((Attention(4, 4, 16, rope="patches"),), Mlp(96, act), Norm("rms", 1e-5))
    return QwenVit(14, merge, None, EYES, 3, (), block, pre_norm=True, staggered=True)


def axial_merger(eps=1e-5, bias=False):
    return Normalize(Norm("rms", eps)), Group(2, EYES), Linear("merger", EYES, bias=False), *two_maps(bias)


def pooled():
    return Pool(2, EYES), Normalize(Norm("rms", 1e-6)), Linear("linear", WIDTH, bias=False)


def plain_merger(norm=LAYER):
    return (Normalize(norm), *merger()[1:-1])


def two_maps(bias=True):
    return Linear("linear_1", WIDTH, bias), Act("gelu"), Linear("linear_2", WIDTH, bias)


def internvl(scale=2):
    first = Linear("linear_1", WIDTH)
    return Shuffle(scale, EYES), Normalize(Norm("layer", 1e-5)), first, Act("gelu"), Linear("linear_2", WIDTH)


def merger():
    first = Linear("linear_1", 4 * EYES)
    return Normalize(Norm()), Group(2, EYES), first, Act("gelu"), Linear("linear_2", WIDTH), Take("order")


def idefics3():
    return Shuffle(2, EYES), Linear("linear", WIDTH, bias=False)


def sandwich(size=16, **options):
    made = decoder(bias=True, sections=(2, 3, 3), head_dim=32, tied=False, **options)
    rope = Rope(10000.0, size, sections=(2, 3, 3))
    both = dataclasses.replace(made.block(0), places="sandwich")
    return dataclasses.replace(made, blocks=(both,), ropes={"main": rope})


def gated_vit(*, bias=False, table=5, resample="cubic", **options):
    norm = Norm("rms", 1e-5)
    attention = Attention(4, 4, 16, bias=bias, out_bias=bias, rope="patches", qk_norm=norm if bias else None)
    return QwenVit(
        14, 2, None, EYES, 2, (), Block((attention,), Mlp(96, bias=bias), norm), patch_bias=True, post_norm=True,
        pre_norm=not bias, table=0 if bias else table, resample=resample, **options,
    )  # fmt: skip


def between_vit(*, bias=False, **options):
    attention = Attention(4, 4, 16, bias=bias, out_bias=bias, rope="patches")
    block = Block((attention,), Mlp(96, bias=bias), Norm("rms", 1e-5))
    return QwenVit(
        14, 2, None, EYES, 2, (), block, **{"patch_bias": True, "post_norm": True, "pre_norm": True} | options
    )


def gated_merger(act="gelu"):
    first, second = Linear("linear_1", WIDTH), Linear("linear_2", WIDTH, bias=False)
    return Group(2, EYES), first, second, Normalize(Norm("layer", 1e-5)), Act(act), Gated(Mlp(160), WIDTH)


def bottlenecks(**options):
    """MobileNetV5's layers with few channels."""
    few, many, norm = Attention(3, 1, 16), Attention(4, 1, 8), Norm("rms", 1e-6)
    layers = (
        Bottleneck(8, 32, fused=3, stride=2), *[Bottleneck(8, 32, fused=3)] * 2,
        Bottleneck(16, 48, 3, 5, stride=2), *[Bottleneck(16, 64, 5), Bottleneck(16, 64, 3)] * 2,
        Bottleneck(32, 96, 5, 5, stride=2), *[Bottleneck(32, 64, 5)] * 7, Bottleneck(32, 32),
        *[Attending(few, stride=2), Bottleneck(32, 64)] * 14,
        Bottleneck(40, 96, 5, 5, stride=2), *[Attending(many), Bottleneck(40, 64)] * 19,
    )  # fmt: skip
    block = Block((many,), Mlp(144, "gelu_tanh", gated=False), norm)
    made = MobileNet(256, 16, EYES, len(layers), block, stem=12, layers=layers, fine=45)
    return dataclasses.replace(made, **options)


def embedder(eps=1e-6, width=WIDTH):
    bare = Normalize(Norm("rms", 1e-6, weight=False), "norm_after")
    return Normalize(Norm("rms", eps)), Linear("linear", width, bias=False), bare


LLAMA3 = RopeScaling(8.0, 1.0, 4.0, 64)
TEXTS = {
    "llama": ("llama", decoder(tied=False)),
    "llama with every bias": ("llama", decoder(bias=True, out_bias=True, mlp_bias=True)),
    "llama with scaled rope": ("llama", decoder(scaling=LLAMA3)),
    "qwen2": ("qwen2", decoder(bias=True)),
    "qwen2 with wide heads": ("llama", decoder(bias=True, head_dim=32)),
    "qwen3": ("qwen3", decoder(qk_norm=True, head_dim=32)),
    "qwen3 with biases": ("qwen3", decoder(qk_norm=True, bias=True)),
    "qwen2vl": ("qwen2vl", decoder(bias=True, sections=(2, 3, 3), tied=False)),
    "glm4": ("glm4", sandwich()),
}
LARGE = "gemma3nv of larger pictures"
TOWERS = {
    "idefics3": (vit(act="gelu_tanh"), idefics3()),
    "mlp": (vit(act="gelu_tanh", post_norm=False), two_maps()),
    "mlp with quick gelu, a first norm and no biases": (
        vit(act="quick_gelu", pre_norm=True, post_norm=False, patch_bias=False), two_maps(bias=False)
    ),
    "mlp with a last norm": (vit(), two_maps()),
    "internvl": (vit(class_token=True, post_norm=False), internvl()),
    "internvl with a last norm": (vit(class_token=True), internvl(scale=4)),
    "qwen2.5vl_merger": (qwen_vit(), merger()),
    "qwen2.5vl_merger, other windows that no layer has": (qwen_vit(full=(0, 1, 2, 3), window=4), merger()),
    "gemma3": (vit(act="gelu_tanh"), pooled()),
    "janus_pro": (vit(), two_maps()),
    "janus_pro without biases": (vit(), two_maps(bias=False)),
    "paddleocr": (turned_vit(), plain_merger(Norm("layer", 1e-5))),
    "pixtral": (axial_vit(1), two_maps()),
    "pixtral with groups": (axial_vit(), axial_merger()),
    "lightonocr": (axial_vit(act="silu"), axial_merger(eps=1e-6)),
    "glm4v": (gated_vit(), gated_merger()),
    "glm4v with norms of heads and biases": (gated_vit(bias=True), gated_merger()),
    "dots_ocr": (between_vit(), plain_merger()),
    "dots_ocr with biases": (between_vit(bias=True, pre_norm=False), plain_merger()),
    "gemma3nv": (bottlenecks(), embedder()),
    LARGE: (bottlenecks(image_size=512, patch_size=32), embedder()),
}  # fmt: skip
# Sizes of pictures: of a grid tower one window, several with a rest on both sides, and one token.
GRIDS = {name: [(112, 112), (140, 308), (28, 28)] for name in TOWERS if TOWERS[name][0].kind == "qwen_vit"}
GRIDS |= {name: [(tower.image_size,) * 2] for name, (tower, _) in TOWERS.items() if tower.kind == "mobilenet"}


def model(text="llama", tower="idefics3"):
    vision, steps = TOWERS[tower]
    return ModelSpec(f"{text}, {tower}", "any", vision, steps, TEXTS[text][1], 600)


def rules(tower):
    """What decides between types that compute the same: the colour around pictures, breaks between rows of tokens."""
    image, prompt = IMAGE, PROMPT
    if tower.startswith("janus_pro"):
        image = dataclasses.replace(IMAGE, rule=Pad(56, (127, 127, 127)))
    if tower.startswith("pixtral"):
        prompt = dataclasses.replace(PROMPT, picture=PictureText(line_break="<global-img>"))
    return image, prompt


class Arrays(dict):
    """Random weights for every tensor of the tree, none of them without effect."""

    def __init__(self, spec, seed=0):
        random = np.random.default_rng(seed)
        self.tree = weight_tree(spec)
        for name, info in self.tree.items():
            values = random.normal(size=info.shape)
            if "norm" in name and name.endswith("weight"):
                values = 1 + 0.2 * values
            elif info.role in ("matrix", "kernel"):
                gain = 6 if "head" in name else 1.5
                values *= gain / np.sqrt(np.prod(info.shape[1:]))
            elif name.startswith("decoder.embed"):
                values *= 0.3
            else:
                values *= 0.3
            self[name] = values.astype(np.float32)

    def read(self, name):
        return self[name]

    def names(self):
        return list(self)

    def shape(self, name):
        return self[name].shape

    def is_linear(self, name):
        return self.tree[name].is_linear


# The pictures' own rules do not matter here: views are given.
IMAGE = ImageSpec(
    2, Stretch(56), "bicubic", (0, 0, 0), 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), token_pixels=14
)
PROMPT = PromptSpec(
    2, Chat("", {"user": RoleText("user ", "user", "\n")}, "assistant"), PictureText(), "<image>", 600, (2,), bos_id=1
)
MARKERS = ("<fake_token_around_image>", "<global-img>", "<image>")
TEXT = "The quick brown fox jumps over the lazy dog; what colour is the car? 1 2 33, it's 10 past 7.\n\nA cat sat. né"


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    """A byte-level BPE with idefics3's markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT, "\n\n \n\n"], trainer)
    vocab = tokenizer.get_vocab()
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    if "ĊĊ" not in vocab:
        vocab["ĊĊ"] = len(vocab)
        merges.append(("Ċ", "Ċ"))
    tokenizer.model = models.BPE(vocab, merges)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in MARKERS])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def write(tmp_path, tokenizer_json):
    """write(spec, weights, kind) -> (bundle, the quantizer's weights)."""

    def make(spec, weights, kind="fp32", tokenizer=tokenizer_json):
        image, prompt = rules(spec.name.split(", ")[-1])
        recipe = fit(make_recipe(kind), weights)
        quantized = {}

        def code(name):
            quantized[name] = quantize(weights.read(name), recipe.form(name).kind, name)
            return quantized[name]

        folder = tmp_path / "gguf"
        entry = write_gguf(folder, spec, weights, recipe, image, prompt, tokenizer, code)
        manifest = SimpleNamespace(targets={"gguf": entry}, spec=spec, recipe={"decoder": {"kind": kind}})
        bundle = SimpleNamespace(
            manifest=manifest, folder=tmp_path, image_spec=image, prompt_spec=prompt, path=lambda name: tmp_path / name
        )
        expected = {n: quantized[n].dequantize() if n in quantized else weights[n] for n in weights}
        return bundle, expected

    return make


def files(bundle):
    entry = bundle.manifest.targets["gguf"]
    return bundle.path(entry.model), bundle.path(entry.mmproj) if entry.mmproj else None


# --- which table, and what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_the_architecture_follows_from_the_decoder(text):
    name, spec = TEXTS[text]
    assert text_arch(spec).name == name


@pytest.mark.parametrize("tower", TOWERS)
def test_the_projector_type_follows_from_tower_and_steps(tower):
    spec = model(tower=tower)
    found = projector_type(spec, *rules(tower))
    assert found is not None and found.name == tower.split()[0].rstrip(",") and why_no_pictures(spec) is None


def changed(**fields):
    block = decoder().block(0)
    return dataclasses.replace(decoder(), blocks=(dataclasses.replace(block, **fields),))


BLOCK = decoder().block(0)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (changed(mixers=(ShortConv(3),)), "other mixers than full attention"),
        (changed(mixers=(dataclasses.replace(BLOCK.mixers[0], window=8),)), "looks back a window"),
        (changed(mixers=(dataclasses.replace(BLOCK.mixers[0], scale=1.0),)), "other mixers than full attention"),
        (HALVES, "turns the two values of a pair by positions of different axes"),
        (changed(mixers=(dataclasses.replace(BLOCK.mixers[0], norm_after=True),)), "normalizes heads behind RoPE"),
        (changed(places="sandwich"), "another RoPE than one of three axes"),
        (sandwich(qk_norm=True), "other mixers than full attention"),
        (sandwich(mlp_bias=True), "another MLP than a gated one with SiLU and without biases"),
        (sandwich(size=32), "another RoPE than one of three axes"),
        (changed(norm=Norm("layer")), "other norms"),
        (changed(mlp=Mlp(96, "gelu_tanh")), "another MLP than a gated one with SiLU"),
        (dataclasses.replace(decoder(), mask="image"), "shows positions later ones"),
        (dataclasses.replace(decoder(), logit_cap=30.0), "changes embeddings or logits"),
        (dataclasses.replace(decoder(), embed_scale=8.0), "changes embeddings or logits"),
        (dataclasses.replace(decoder(), norm=Norm(eps=1e-5)), "other norms"),
        (dataclasses.replace(decoder(), blocks=(BLOCK, BLOCK), layers=(0, 1)), "layers of different kinds"),
        (decoder(head_dim=15), "odd head size"),
        (decoder(qk_norm=True, scaling=LLAMA3), "scales RoPE"),
        (decoder(qk_norm=True, out_bias=True), "has biases"),
        (decoder(sections=(2, 3, 3), head_dim=32), "do not add up to its hidden size|RoPE sections"),
        (decoder(sections=(4, 4)), "other RoPE sections"),
        (dataclasses.replace(deep_decoder(), deepstack=(0, 1, 2)), "or behind its last"),
        (deep_decoder(bias=True), "has biases on q, k and v"),
        (deep_decoder(sections=(8, 0)), "other RoPE sections"),
        (dataclasses.replace(decoder(qk_norm=True), deepstack=(0,)), "takes further levels of image features"),
        (dataclasses.replace(decoder(), deepstack=(0, 2)), "takes image features behind its last layer"),
        (dataclasses.replace(deep_decoder(), deepstack=(1,)), "behind other layers than its first"),
    ],
)  # fmt: skip
def test_decoders_that_llama_cpp_cannot_compute_are_refused(spec, reason):
    with pytest.raises(
        EdgeVLMError, match=f"cannot be written as GGUF: its decoder .*({reason}).*; use another target"
    ):
        text_arch(spec)


NO_PICTURES = {
    "a class token": (vit(class_token=True), two_maps(), "class token, which llama.cpp puts behind the patches"),
    "a class token, idefics3": (vit(class_token=True), idefics3(), "class token, which llama.cpp's type lacks"),
    "no class token": (vit(), internvl(), "no class token, which llama.cpp's type asks for"),
    "equal widths": (
        dataclasses.replace(vit(), block=dataclasses.replace(vit().block, mlp=Mlp(EYES, gated=False, bias=True))),
        two_maps(), "takes the two feed-forward matrices for each other",
    ),
    "relu": (vit(act="relu"), idefics3(), "an activation that llama.cpp's towers lack"),
    "a shuffle by one": (vit(), (Shuffle(1, EYES), Linear("linear", WIDTH, bias=False)), "shuffles by 1"),
    "a bias": (vit(), (Shuffle(2, EYES), Linear("linear", WIDTH)), "projector has a bias"),
    "another chain": (vit(), (Linear("linear_1", WIDTH),), "no projector type for the tower 'vit' with linear"),
    "another pattern": (qwen_vit(full=(0, 3)), merger(), "other layers than every n-th"),
    "a table, qwen2vl_merger": (
        plain_qwen_vit(table=4), plain_merger(), "a table of positions, a bias of patches or further levels",
    ),
    "a table by its centers": (
        turned_vit(resample="centers"), plain_merger(Norm("layer", 1e-5)),
        "resamples its table between the centers of rows, where llama.cpp also averages",
    ),
    "another norm": (plain_qwen_vit(), plain_merger(Norm("layer", 1e-5)), "projector has another norm than its tower"),
    "a row's and a column's frequencies alike": (
        dataclasses.replace(axial_vit(), staggered=False), axial_merger(), "another RoPE than llama.cpp's",
    ),
    "a merger with another epsilon": (axial_vit(), axial_merger(eps=1e-3), "another norm than llama.cpp's"),
    "no merger before groups": (axial_vit(2), two_maps(), "projector joins patches in another way"),
    "a mean's bias": (vit(), (*pooled()[:2], Linear("linear", WIDTH)), "projector has a bias"),
    "a mean's other norm": (vit(), (Pool(2, EYES), Normalize(Norm("rms", 1e-5)), pooled()[2]), "another norm than its"),
    "another table, glm4v": (gated_vit(resample="smooth"), gated_merger(), "otherwise than by a bicubic"),
    "another norm, dots_ocr": (between_vit(), plain_merger(Norm("layer", 1e-5)), "another norm than llama.cpp's"),
    "no norm behind layers, dots_ocr": (between_vit(post_norm=False), plain_merger(), "with a norm behind its layers"),
    "another activation, glm4v": (gated_vit(), gated_merger("gelu_tanh"), "projector has other steps than"),
    "other windows": (qwen_vit(window=4), merger(), "other windows than llama.cpp's of 112 pixels"),
    "another stage": (bottlenecks(fine=37), embedder(), "vision tower has other layers than llama.cpp's"),
    "an epsilon of bottlenecks": (bottlenecks(), embedder(eps=1e-5), "projector has other norms than llama.cpp's"),
    "states of another width": (
        bottlenecks(hidden_size=96), embedder(), "features of another width than its tower's states",
    ),
    "fewer tokens of bottlenecks": (bottlenecks(patch_size=32), embedder(), "other than 16 x 16 tokens of a picture"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_PICTURES)
def test_a_tower_that_llama_cpp_lacks_leaves_a_decoder_alone(case, write):
    vision, steps, reason = NO_PICTURES[case]
    spec = dataclasses.replace(model(), vision=vision, projector=steps)
    bundle, expected = write(spec, Arrays(spec))
    entry = bundle.manifest.targets["gguf"]
    assert entry.mmproj is None and entry.projector_type is None and reason in entry.no_pictures
    weights = GgufWeights(*files(bundle), spec)
    assert "vision.patch_embedding.weight" not in weights and not weights.should_hold("vision.patch_embedding.weight")
    assert np.array_equal(weights.read("decoder.layers.1.q.weight"), expected["decoder.layers.1.q.weight"])
    assert [path.name for path in (bundle.folder / "gguf").iterdir()] == ["model.gguf"]


def test_stock_llama_cpp_is_told_how_pictures_are_cut():
    """As far as it has keys: InternVL's tiles, the longest edge of SmolVLM's; else one tile at most."""
    tiles = dataclasses.replace(IMAGE, rule=RatioTiles(56, 1, 6, True))
    longest = dataclasses.replace(IMAGE, rule=TilesThenWhole(56, 224, 4096, 2, True))
    asked = {"clip.vision.preproc_min_tiles": 1, "clip.vision.preproc_max_tiles": 6}
    spec = model(tower="internvl")
    assert asked.items() <= projector_type(spec).keys(spec, tiles).items()
    assert projector_type(spec).keys(spec, IMAGE)["clip.vision.preproc_max_tiles"] == 1
    spec = model(tower="idefics3")
    assert projector_type(spec).keys(spec, longest)["clip.vision.preproc_image_size"] == 224
    assert projector_type(spec).keys(spec, IMAGE)["clip.vision.preproc_image_size"] == 56


@pytest.mark.parametrize("add_bos", [False, True])
def test_stock_llama_cpp_adds_bos_where_the_prompt_says_so(tmp_path, tokenizer_json, add_bos):
    spec = model()
    weights = Arrays(spec)
    write_gguf(
        tmp_path, spec, weights, make_recipe("fp32"), IMAGE, dataclasses.replace(PROMPT, add_bos=add_bos),
        tokenizer_json, lambda name: quantize(weights[name], "fp32", name),
    )  # fmt: skip
    assert GgufFile(tmp_path / "model.gguf").keys["tokenizer.ggml.add_bos_token"] is add_bos


# --- the same bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int4", "int8", "fp32"])
@pytest.mark.parametrize(
    ("text", "tower"),
    [
        ("llama", "mlp"),
        ("qwen2", "internvl"),
        ("qwen3", "internvl with a last norm"),
        ("qwen2vl", "qwen2.5vl_merger"),
        ("llama", "gemma3"),
        ("llama", "janus_pro"),
        ("llama", "pixtral with groups"),
        ("qwen3", "lightonocr"),
        ("glm4", "glm4v"),
        ("qwen2", "dots_ocr"),
    ],
)
def test_every_weight_is_read_back_bit_for_bit(write, text, tower, kind):
    spec = model(text, tower)
    bundle, expected = write(spec, Arrays(spec), kind)
    weights = GgufWeights(*files(bundle), spec)
    for name, values in expected.items():
        assert name in weights and weights.read(name).tobytes() == values.tobytes(), name
    kinds = set(bundle.manifest.targets["gguf"].bytes)
    assert kinds <= {"int4": {"Q4_0", "Q8_0", "F32"}, "int8": {"Q8_0", "F32"}, "fp32": {"F32"}}[kind]


@pytest.mark.parametrize("kind", ["int4", "fp16", "fp32"])
def test_convolutions_of_single_channels_are_fp16_and_others_without_blocks(write, kind):
    """What llama.cpp takes: it dies of such kernels in float32, and has no convolution of blocks."""
    spec = model(tower="gemma3nv")
    bundle, expected = write(spec, Arrays(spec), kind)
    path = files(bundle)[1]
    weights, file = GgufWeights(*files(bundle), spec), GgufFile(path)
    kernels = {name for name, info in weight_tree(spec).items() if info.role == "kernel" and info.shape[1] == 1}
    assert len(kernels) == 6 + 9 + 28 + 2  # in three stages, and before keys and values
    for name, values in expected.items():
        held = values.astype(np.float16).astype(np.float32) if name in kernels else values
        assert name in weights and weights.read(name).tobytes() == held.tobytes(), name
    told = SimpleNamespace(names=lambda: list(expected), read=expected.__getitem__)
    assert check_gguf(weights, told).passed
    expected[min(kernels)] = expected[min(kernels)] * np.float32(1 + 2**-9)
    assert not check_gguf(weights, told).passed
    assert file.keys["clip.vision.patch_size"] == 1
    convolutions = [tensor for name, tensor in file.tensors.items() if name.startswith("v.") and len(tensor.shape) == 4]
    assert {tensor.kind for tensor in convolutions} == {"F16", "F32"}
    assert {tensor.kind for tensor in convolutions if tensor.shape[2:] == (1, 1)} == {
        "F16" if kind == "fp16" else "F32"
    }


def test_names_are_llama_cpps_own(write):
    """Every tensor stands in gguf-py's lists of the architecture's tensors, which its converter and loader share."""
    for text, tower in (
        ("llama", "mlp"),
        ("qwen2", "internvl"),
        ("qwen3", "idefics3"),
        ("qwen2vl", "qwen2.5vl_merger"),
        ("llama", "gemma3"),
        ("llama", "janus_pro"),
        ("llama", "pixtral with groups"),
        ("qwen3", "lightonocr"),
        ("llama", "paddleocr"),
    ):
        spec = model(text, tower)
        bundle, _ = write(spec, Arrays(spec))
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == text)
        for path, kind in zip(files(bundle), (arch, gguf.MODEL_ARCH.MMPROJ), strict=True):
            known = {
                gguf.TENSOR_NAMES[tensor].format(bid=layer) for tensor in gguf.MODEL_TENSORS[kind] for layer in range(4)
            }
            for name in GgufFile(path).tensors:
                stem = name.removesuffix(".1").rpartition(".")[0] if name.split(".")[-1] != "class_embd" else name
                assert {stem, name} & known, (text, tower, name)


# --- the same numbers ------------------------------------------------------------------------------------------


@pytest.fixture
def engines(write):
    """engines(spec, kind) -> llama.cpp and eager on the same weights."""
    opened = []

    def open_both(spec, kind="fp32"):
        from edgevlm.runtimes.llama.runtime import open_runtime

        weights = Arrays(spec)
        bundle, expected = write(spec, weights, kind)
        weights.update(expected)
        opened.append(open_runtime(bundle, EngineOptions(threads=1)))
        return opened[-1], eager_runtime(bundle, weights)

    yield open_both
    for runtime in opened:
        runtime.close()


def assert_close(one, two):
    """Within a share of the largest logit: float32 sums differ from processor to processor."""
    assert np.abs(one - two).max() < 1e-4 * np.abs(two).max()


LAYOUT = Layout(40, (Span(5, (3, 4)), Span(20, (2, 2))))


@needs_llama
@pytest.mark.parametrize("text", TEXTS)
def test_greedy_tokens_after_our_embeddings_are_eagers(engines, text):
    """In two parts, cut inside the first picture, and then 40 tokens of an answer."""
    ours, eager = engines(model(text))
    embeds = np.random.default_rng(1).normal(0, 0.5, (LAYOUT.length, WIDTH)).astype(np.float32)
    got, expected = [], []
    for runtime, logits in ((ours, got), (eager, expected)):
        runtime.decoder.forward(embeds[:9], LAYOUT)
        logits.append(runtime.decoder.forward(embeds[9:]))
        for _ in range(40):
            logits.append(runtime.decoder.step(int(logits[-1].argmax())))
        assert runtime.decoder.position == 80
    assert_close(np.array(got), np.array(expected))
    choices = [int(row.argmax()) for row in expected]
    assert [int(row.argmax()) for row in got] == choices and len(set(choices)) > 8


@needs_llama
@pytest.mark.parametrize("text", ["qwen2", "qwen3", "qwen2vl"])
def test_quantized_decoders_agree_with_eager(engines, text):
    ours, eager = engines(model(text), "int4")
    embeds = np.random.default_rng(1).normal(0, 0.5, (LAYOUT.length, WIDTH)).astype(np.float32)
    one, two = (runtime.decoder.forward(embeds, LAYOUT) for runtime in (ours, eager))
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.99


@needs_llama
def test_pictures_share_positions_where_the_cache_is_cut_and_grown(engines):
    ours, eager = engines(model("qwen2vl"))
    embeds = np.random.default_rng(1).normal(0, 0.5, (700, WIDTH)).astype(np.float32)
    layout = Layout(700, (Span(5, (3, 4)), Span(20, (20, 30))))
    whole = eager.decoder.forward(embeds, layout)
    assert_close(ours.decoder.forward(embeds[:300], layout), ours_again(ours, embeds[:300], layout))
    with pytest.raises(EdgeVLMError, match="cannot forget a part of a picture"):
        ours.decoder.rewind(100)
    assert ours.decoder.position == 300
    ours.decoder.rewind(20)
    assert ours.decoder.position == 20
    assert_close(ours.decoder.forward(embeds[20:]), whole)  # the cache grows past its first size
    ours.decoder.rewind(650)
    assert_close(ours.decoder.forward(embeds[650:]), whole)


def ours_again(runtime, embeds, layout):
    runtime.decoder.rewind(0)
    return runtime.decoder.forward(embeds, layout)


@needs_llama
def test_a_text_alone_has_one_position_per_token(engines):
    ours, eager = engines(model("qwen2vl"))
    for runtime in (ours, eager):
        runtime.decoder.forward(np.ones((3, WIDTH), np.float32), LAYOUT)
        runtime.decoder.rewind(0)
    ids = np.arange(30)
    one, two = (runtime.decoder.forward(runtime.decoder.embed(ids), Layout(30)) for runtime in (ours, eager))
    assert_close(one, two)


@needs_llama
@pytest.mark.parametrize(
    "tower", [*(name for name in TOWERS if name != LARGE), pytest.param(LARGE, marks=pytest.mark.heavy)]
)
def test_features_are_eagers(engines, tower):
    text = "qwen2vl" if tower.startswith("qwen2.5vl_merger") else "qwen2"
    ours, eager = engines(model(text, tower))
    random = np.random.default_rng(2)
    sizes = GRIDS.get(tower, [(56, 56)])
    for height, width in sizes:
        views = list(random.integers(0, 256, (1 if len(sizes) > 1 else 2, height, width, 3)).astype(np.uint8))
        one, two = (np.stack(runtime.encoder.encode(views)) for runtime in (ours, eager))
        assert one.shape == two.shape
        assert np.abs(one - two).max() < 0.02 * np.abs(two).max()
        assert (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two) > 0.99999


@needs_llama
def test_a_decoder_alone_names_the_engine_that_encodes(engines):
    spec = dataclasses.replace(model(), vision=vit(class_token=True))
    ours, eager = engines(spec)
    with pytest.raises(EdgeVLMError, match=r"cannot encode this model's pictures: .* --runtime onnxruntime\+llama.cpp"):
        ours.encoder.encode([np.zeros((56, 56, 3), np.uint8)])
    embeds = np.ones((4, WIDTH), np.float32)
    assert_close(ours.decoder.forward(embeds), eager.decoder.forward(embeds))


# --- tokenizers ------------------------------------------------------------------------------------------------

MARKED = "\n\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u092a\u093e\u0920" + " ÉCOLE" * 9
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen2_tokenizer():
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), split
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def llama_tokenizer(form):
    """SentencePiece's BPE as transformers converts it: every way to make a piece of two others is a merge."""
    spaced = Tokenizer(models.BPE())
    spaced.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    spaced.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    trained = json.loads(spaced.to_str())["model"]
    pieces = list(dict.fromkeys("".join(pair) for pair in trained["merges"]))
    letters = [token for token in trained["vocab"] if len(token) == 1]
    known = {*pieces, *letters}
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if {piece[:i], piece[i:]} <= known
    ]  # fmt: skip
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    vocab = {token: i for i, token in enumerate(order)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if form == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>", "<image>")]
    tokenizer.add_special_tokens(specials)
    return tokenizer


SAMPLES = (
    "The quick brown fox", "what colour is it?  Two  spaces", "10 and 33, 1 2", "né 漢字 \U0001f600!", "it's\n\n\n x",
    "x\t y", "'tis WHAT'S", " leading", "", "aaaa  bbbb", "car;car?car\r\n end ", "<im_start>x</s", "a" * 50,
)  # fmt: skip


@pytest.fixture
def stock(write, tmp_path):
    """stock(tokenizer) -> llama.cpp's own tokenizer in a file of ours."""
    from llama_cpp import Llama

    def make(tokenizer):
        path = tmp_path / "tokenizer.json"
        tokenizer.save(str(path))
        spec = model("qwen2", "mlp")
        bundle, _ = write(spec, Arrays(spec), tokenizer=path)
        return Llama(str(files(bundle)[0]), vocab_only=True, verbose=False)

    return make


@needs_llama
@pytest.mark.parametrize("kind", ["qwen2", "prepend", "always", "never"])
def test_llama_cpp_tokenizes_as_the_tokenizer_does(stock, kind):
    tokenizer = qwen2_tokenizer() if kind == "qwen2" else llama_tokenizer(kind)
    theirs = stock(tokenizer)
    special = ("user<image>\nwhat</s>", "<image><image>", "a <image>b", "a <image> b") if kind != "qwen2" else ()
    for text in (*SAMPLES, *special):
        if kind == "always" and (text.startswith(" ") or "> " in text):
            continue  # this form puts no second space before these, llama.cpp does
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids, text
    if special:
        assert theirs.detokenize([3 + 0xC3, 3 + 0xA9]).decode() == "é"


WORDS = """Où est l'été? Élan vital; Größe, straße. Привет, как дела? ПРИВЕТ Ελληνικά ΕΛΛΗΝΙΚΑ 中文句子在這裡 日本語
한국어 문장 iPhone camelCase HTTPServer XMLHttp 100 2026 3.14 ½ ² ٣٤ \U0001f600 a/b//c path/to/file \t x   y
«text» (it's) [WHAT'S] נוסח"""
# Each with texts that llama.cpp is known to cut elsewhere.
PUBLISHED = {
    "llama-bpe": (((LFM2_PATTERN,), True), ()),
    "chatglm-bpe": (((LFM2_PATTERN,), False, 40), ()),
    "tekken": (((TEKKEN_PATTERN,), True), ("\u0939\u093f\u0928\u094d\u0926\u0940", "une ÉCOLE")),
    "deepseek-llm": (((*DEEPSEEK_CUTS, "digits"), False), ()),
}


def published_tokenizer(cuts, whole_words, unmade=0):
    """Trained on WORDS, with more merges than any text below has letters. unmade: tokens without their merges."""
    steps = [*isolated(*(cut for cut in cuts if cut != "digits")), bytes_alone()]
    if "digits" in cuts:
        steps.insert(-1, pre_tokenizers.Digits(individual_digits=True))
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((WORDS + MARKED + TEXT).split("\n"), trainer)
    data = json.loads(tokenizer.to_str())
    data["model"]["merges"] = data["model"]["merges"][: -unmade or None]
    return Tokenizer.from_str(json.dumps(data))


@needs_llama
@pytest.mark.parametrize("kind", PUBLISHED)
def test_llama_cpp_tokenizes_as_published_tokenizers_do(stock, kind):
    """Texts of words, of letters of many scripts, and of white space, digits and marks in any order."""
    options, apart = PUBLISHED[kind]
    tokenizer = published_tokenizer(*options)
    theirs = stock(tokenizer)
    assert theirs.metadata["tokenizer.ggml.pre"] == kind

    def same(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return theirs.tokenize(text.encode(), add_bos=False, special=False) == ids

    random = np.random.default_rng(0)
    words, letters = WORDS.split(), [*WORDS, *" \n\r\t", "\r\n", "  "]
    if apart:
        letters = [letter for letter in letters if letter.isascii() or not letter.isupper()]
    else:
        words, letters = words + MARKED.split(), [*letters, *MARKED]
    texts = [*SAMPLES]
    for _ in range(400):
        texts.append(" ".join(random.choice(words, random.integers(1, 9))))
        texts.append("".join(random.choice(letters, random.integers(1, 20))))
    assert not [text for text in texts if not same(text)]
    assert not [text for text in apart if same(text)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "NFKC"}}, "it normalizes text"),
        ({"normalizer": None}, "its pre-tokenizer is missing"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre-tokenizer is Whitespace"),
    ],
)
def test_sentencepiece_that_llama_cpp_would_read_differently_is_refused(tmp_path, change, reason):
    from edgevlm.export.gguf_.tokenizer import read_vocabulary

    data = json.loads(llama_tokenizer("prepend").to_str()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(EdgeVLMError, match=reason):
        read_vocabulary(tmp_path / "tokenizer.json", VOCAB)


PARALLEL = sheet().decoder


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (dataclasses.replace(PARALLEL, mask="prompt"), "shows a prompt to itself"),
        (dataclasses.replace(PARALLEL, norm=Norm("layer", 1e-6)), "other layers than this architecture"),
        (dataclasses.replace(PARALLEL, head_bias=False), "no bias of the head"),
        (dataclasses.replace(PARALLEL, ropes={"main": Rope(1e4, 8, LLAMA3)}), "scales RoPE"),
        (dataclasses.replace(PARALLEL, logit_cap=30.0), "changes embeddings or logits"),
    ],
)
def test_parallel_layers(spec, reason):
    """Phi's, with a prefix that sees itself."""
    assert text_arch(PARALLEL).name == "phi2"
    with pytest.raises(EdgeVLMError, match=f"cannot be written as GGUF: its decoder .*{reason}"):
        text_arch(spec)
