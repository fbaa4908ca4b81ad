"""Adapters of every family and every layout of its files against peft's merge_and_unload on transformers' own class."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from cases import heavy_but
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import (
    deepseek_vl,
    dots_ocr,
    fast_vlm,
    gemma3,
    gemma3n,
    gemma4,
    glm4v,
    granite4_vision,
    granite_docling,
    hunyuan_vl,
    internvl,
    janus,
    lfm2_vl,
    lfm3_vl,
    linked,
    llava15,
    minicpmv,
    minicpmv4_6,
    mistral3,
    moondream,
    nanovlm,
    ovis2,
    paddleocr_vl,
    paligemma,
    phi4_multimodal,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
)

from edgevlm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgevlm.checkpoint.families import FAMILIES, adapter_base, read_model
from edgevlm.checkpoint.module_names import inner_name
from edgevlm.checkpoint.opening import open_model
from edgevlm.errors import EdgeVLMError

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True)
class Case:
    """How a family's checkpoint is built in each layout, and which layers an adapter can change.

    module: the class that peft wraps, from the model that was built; None where it is the model itself.
    queries: and values, where those names also mean what peft cannot wrap.
    """

    build: Callable[..., Any]
    layouts: tuple[str | None, ...]
    tower: str
    projector: str
    embed: str = "embed_tokens"
    head: str = "lm_head"
    queries: tuple[str, ...] | str = ("q_proj", "v_proj")

    def make(self, folder: Path, layout: str | None) -> Any:
        return self.build(folder) if layout is None else self.build(folder, layout=layout)


LAYOUTS = ("hub", "saved", "memory")
CASES = {
    "llava": Case(llava15.build, LAYOUTS, r".*vision_tower.*\.(q_proj|fc1)", r".*multi_modal_projector\.linear_.*"),
    "internvl": Case(internvl.build, LAYOUTS, r".*vision_tower.*\.(q_proj|fc2)", r".*multi_modal_projector\.linear_.*"),
    "qwen2_5_vl": Case(qwen2_5_vl.build, LAYOUTS, r".*visual\.blocks.*\.(qkv|down_proj)", r".*merger\.mlp\.[02]"),
    "qwen2_5_vl tied": Case(
        partial(qwen2_5_vl.build, tie=True), LAYOUTS, r".*visual\.patch_embed\.proj", r".*merger\.mlp\.0"
    ),
    "qwen2_vl": Case(qwen2_vl.build, LAYOUTS, r".*visual\.blocks.*\.(qkv|fc2)", r".*merger\.mlp\.[02]"),
    "qwen3_5 tied": Case(qwen3_5.build, LAYOUTS, r".*visual\.blocks.*\.(qkv|linear_fc2)", r".*merger\.linear_fc[12]"),
    "minicpmv4_6 tied": Case(
        minicpmv4_6.build, LAYOUTS, r".*(vision_tower.*\.(v_proj|fc1)|vit_merger\.linear_2)", r".*mlp\.0\.linear_[12]"
    ),
    "minicpmv4_7": Case(
        partial(minicpmv4_6.build, version="4_7", tie=False),
        LAYOUTS,
        r".*(vision_tower.*\.(k_proj|fc2)|vit_merger\.linear_1)",
        r".*mlp\.0\.linear_2",
    ),
    "qwen3_vl": Case(
        qwen3_vl.build,
        LAYOUTS,
        r".*visual\.(patch_embed\.proj|blocks.*\.(qkv|linear_fc1))",
        r".*merger(_list\.\d)?\.linear_fc[12]",
    ),
    "paddleocr_vl": Case(
        paddleocr_vl.build,
        LAYOUTS,
        r".*vision_model.*\.(q_proj|fc2|patch_embedding)",
        r".*(mlp_AR|projector)\.linear_[12]",
    ),
    "hunyuan_vl tied": Case(
        hunyuan_vl.build,
        LAYOUTS,
        r".*(vit|vision_tower)\.layers.*\.(q_proj|fc1|dense_4h_to_h)",
        r".*(perceive|patch_merger)\.(mlp|proj\.0|proj_conv)",
    ),
    "glm4v": Case(
        glm4v.build,
        LAYOUTS,
        r".*visual\.(patch_embed\.proj|blocks.*\.(qkv|up_proj))",
        r".*visual\.(downsample|merger\.(proj|gate_proj))",
    ),
    "glm46v": Case(
        partial(glm4v.build, kind="glm46v"), LAYOUTS, r".*visual\.blocks.*\.proj", r".*visual\.merger\.up_proj"
    ),
    "glm_ocr tied": Case(
        partial(glm4v.build, kind="glm_ocr", tie=True),
        LAYOUTS,
        r".*visual\.blocks.*\.(qkv|down_proj)",
        r".*visual\.merger\.down_proj",
    ),
    "deepseek_vl": Case(
        deepseek_vl.build, LAYOUTS, r".*vision_model.*\.(v_proj|patch_embedding)", r".*aligner\.linear[12]"
    ),
    "llava_next": Case(linked.build, LAYOUTS, r".*vision_tower.*\.(k_proj|fc1)", r".*multi_modal_projector\.linear_1"),
    "llava_onevision": Case(
        partial(linked.build, kind="llava_onevision", text="qwen2", tower="siglip", layers=-1),
        LAYOUTS,
        r".*vision_tower.*\.(v_proj|fc2)",
        r".*multi_modal_projector\.linear_.*",
    ),
    "janus": Case(janus.build, LAYOUTS, r".*vision_model.*\.(v_proj|fc1)", r".*model\.aligner\.fc1"),
    "mistral3": Case(mistral3.build, LAYOUTS, r".*vision_tower.*\.(v_proj|gate_proj)", r".*projector\.linear_1"),
    "lighton_ocr": Case(
        partial(mistral3.build, kind="lighton_ocr"),
        LAYOUTS,
        r".*vision_encoder.*\.(q_proj|up_proj)",
        r".*vision_projection\.(linear_2|patch_merger\.merging_layer)",
    ),
    "fast_vlm": Case(fast_vlm.build, LAYOUTS, r".*token_mixer\.(qkv|proj)", r".*multi_modal_projector\.linear_1"),
    "vipllava": Case(
        partial(linked.build, kind="vipllava", text="llama", layers=[-2, -3, 1]),
        LAYOUTS,
        r".*vision_tower.*\.(q_proj|fc1)",
        r".*multi_modal_projector\.linear_.*",
    ),
    "lfm2_vl tied": Case(
        lfm2_vl.build, LAYOUTS, r".*vision_tower.*\.(k_proj|patch_embedding)", r".*multi_modal_projector\.linear_.*"
    ),
    "granite4_vision": Case(
        granite4_vision.build,
        LAYOUTS,
        r".*vision_tower.*\.(q_proj|fc2)",
        r".*_projectors.*\.(out_linear|attention\.query|output_query\.dense)",
    ),
    "granite_docling tied": Case(
        granite_docling.build,
        LAYOUTS,
        r".*vision_model\.encoder.*\.(k_proj|fc1)",
        r".*connector\.(mlp_fc2|coarse\.projection|coarse.*\.linear_[12])",
    ),
    "lfm3_vl tied": Case(
        lfm3_vl.build, LAYOUTS, r".*vision_tower.*\.(k_proj|conv\.in_proj|w2)", r".*multi_modal_projector\.linear_.*"
    ),
    # Its projection is a bare parameter, which peft's layers do not take.
    "gemma3 tied": Case(gemma3.build, LAYOUTS, r".*vision_tower.*\.(k_proj|fc1)", r".*vision_tower.*\.fc2"),
    "gemma3n tied": Case(
        partial(gemma3n.build, unread=False),
        LAYOUTS,
        r".*vision_tower.*\.(attn\.value\.proj|pw_exp\.conv)",
        r".*embed_vision\.embedding_projection",
        queries=r".*language_model.*\.(q_proj|v_proj|linear_left|per_layer_input_gate)",
    ),
    "gemma4 tied": Case(
        partial(gemma4.build, unread=False),
        LAYOUTS,
        r".*vision_tower.*\.(v_proj|down_proj)\.linear",
        r".*embed_vision\.embedding_projection",
        queries=r".*language_model.*\.(q_proj|v_proj|per_layer_input_gate)",
    ),
    "ovis2": Case(
        partial(ovis2.build, tied=False), ("hub", "saved"), r".*vision_tower.*\.(v_proj|down_proj)", r".*head_linear"
    ),
    "phi4_multimodal": Case(
        phi4_multimodal.build,
        LAYOUTS,
        r".*img_processor\.encoder.*\.(v_proj|fc1)",
        r".*img_projection_(up|down)",
        queries=("qkv_proj",),
    ),
    "paligemma tied": Case(
        paligemma.build, LAYOUTS, r".*vision_tower.*\.(q_proj|fc2)", r".*multi_modal_projector\.linear"
    ),
}
TIED = [name for name in CASES if name.endswith(" tied")]
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "alpha_pattern": {"q_proj": 5, r"layers\.1\..*": 7}},
    "DoRA": {"use_dora": True, "rank_pattern": {"v_proj": 3}},
}
TARGETS = ("q and v", "all linear layers", "tower", "projector", "tables", "trained tables")
# What the default suite has of the matrix: every layout, target and kind once and more.
SAMPLE = [
    ("llava", "hub", "all linear layers", "LoRA"),
    ("llava", "memory", "trained tables", "rsLoRA"),
    ("internvl", "saved", "tower", "DoRA"),
    ("qwen2_5_vl", "hub", "tables", "DoRA"),
    ("qwen3_vl", "hub", "projector", "LoRA"),
    ("vipllava", "memory", "projector", "rsLoRA"),
    ("janus", "hub", "q and v", "LoRA"),
    ("gemma3 tied", "hub", "all linear layers", "LoRA"),
    ("gemma4 tied", "saved", "all linear layers", "LoRA"),
    ("mistral3", "hub", "tower", "LoRA"),
    ("lfm2_vl tied", "saved", "tower", "DoRA"),
    ("qwen3_5 tied", "hub", "all linear layers", "rsLoRA"),
    ("granite4_vision", "saved", "all linear layers", "DoRA"),
    ("phi4_multimodal", "hub", "projector", "LoRA"),
]


def options_of(case: Case, target: str) -> dict[str, Any]:
    text = r".*(language_model|text_model|decoder).*\.(q_proj|v_proj)|.*\.qkv_proj"
    return {
        "q and v": {"target_modules": case.queries if isinstance(case.queries, str) else list(case.queries)},
        "all linear layers": {"target_modules": "all-linear"},
        "tower": {"target_modules": case.tower},
        "projector": {"target_modules": case.projector},
        "tables": {"target_modules": [case.embed, case.head, "q_proj"]},
        "trained tables": {"target_modules": text, "modules_to_save": [case.embed, case.head]},
        "trained embedding": {"target_modules": text, "modules_to_save": [case.embed]},
        "trained head": {"target_modules": text, "modules_to_save": [case.head]},
        "head, own embedding": {"target_modules": [case.head, "q_proj"], "modules_to_save": [case.embed]},
        "embedding, own head": {"target_modules": [case.embed, "q_proj"], "modules_to_save": [case.head]},
    }[target]


@torch.no_grad()
def adapt(model: Any, out: Path, **options: Any) -> Weights:
    """Save an adapter with random A, B and the rest; the weights that peft merges the folder to, by name in memory."""
    torch.manual_seed(3)
    fresh = copy.deepcopy(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "bias": "none", **options}))
    for parameter in {id(p): p for p in adapted.parameters() if p.requires_grad}.values():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(out)
    merged = peft.PeftModel.from_pretrained(fresh, out).merge_and_unload()
    return {name: value.detach().clone().numpy() for name, value in merged.state_dict().items()}


def by_inner(names: Any) -> dict[str, str]:
    return {inner_name(name): name for name in names}


def assert_merged(merged: Checkpoint, base: Checkpoint, expected: Weights) -> None:
    """Every tensor, and the head even where no file has one."""
    memory, changed = by_inner(expected), []
    for name in (name for name in merged.names() if not name.endswith("num_batches_tracked")):
        found, wanted = merged.read(name), expected[memory[inner_name(name)]]
        # Two steps of float32, of which one at 20 is 2e-6.
        np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=2.4e-7, atol=2e-6, err_msg=name)
        if name not in base.names() or not np.array_equal(found, base.read(name)):
            changed.append(name)
    assert changed
    spec, weights = read_model(merged)
    if spec.decoder.tie_embeddings:
        embed, head = (expected[memory[inner_name(n)]] for n in (adapter_base(base).embed, adapter_base(base).head))
        np.testing.assert_array_equal(embed, head)
    else:
        name = weights.stored_names("decoder.head.weight")[0]
        np.testing.assert_allclose(weights.read("decoder.head.weight"), expected[memory[inner_name(name)]], atol=2e-6)


def check(case: Case, layout: str | None, target: str, kind: str, place: Path) -> None:
    model = case.make(place / "model", layout)
    expected = adapt(model, place / "adapter", **options_of(case, target), **KINDS[kind])
    merged = open_model(str(place / "model"), adapter=place / "adapter")
    assert_merged(merged, open_checkpoint(str(place / "model")), expected)


@pytest.mark.parametrize(("family", "layout", "target", "kind"), SAMPLE)
def test_a_sample(family: str, layout: str, target: str, kind: str, tmp_path: Path) -> None:
    check(CASES[family], layout, target, kind, tmp_path)


# Kinds take turns: over its layouts a family has each kind with each target.
COMBINATIONS = [
    (family, layout, target, list(KINDS)[(number + where + what) % len(KINDS)])
    for number, (family, case) in enumerate(CASES.items())
    for where, layout in enumerate(case.layouts)
    for what, target in enumerate(TARGETS)
]


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "layout", "target", "kind"), COMBINATIONS)
def test_every_combination(family: str, layout: str, target: str, kind: str, tmp_path: Path) -> None:
    if family in TIED and target == "tables":
        pytest.skip("refused: test_tied_tables")
    check(CASES[family], layout, target, kind, tmp_path)


@pytest.mark.parametrize("target", ["trained embedding", "trained head", "embedding, own head", "head, own embedding"])
def test_one_of_a_tied_pair(target: str, tmp_path: Path) -> None:
    """What is trained as a copy leaves the other as it was."""
    check(CASES["qwen2_5_vl tied"], "memory", target, "LoRA", tmp_path)
    spec, _ = read_model(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"))
    assert not spec.decoder.tie_embeddings


def test_a_table_that_stays_tied(tmp_path: Path) -> None:
    """peft's ensure_weight_tying trains one table for both; it is stored once."""
    case = CASES["qwen2_5_vl tied"]
    model = case.make(tmp_path / "model", "hub")
    options = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True}
    expected = adapt(model, tmp_path / "adapter", **options)
    merged = open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter")
    assert_merged(merged, open_checkpoint(str(tmp_path / "model")), expected)
    assert read_model(merged)[0].decoder.tie_embeddings


@pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
def test_lora_on_a_tied_table_is_refused(table: str, tmp_path: Path) -> None:
    """peft trains one use of the table and merges into both, which gives another model than it trained."""
    model = CASES["qwen2_5_vl tied"].make(tmp_path / "model", "saved")
    adapt(model, tmp_path / "adapter", target_modules=[table, "q_proj"])
    with pytest.raises(EdgeVLMError, match=rf"puts LoRA on '.*{table}.weight', which model uses as embedding and as h"):
        open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl tied"])
@pytest.mark.parametrize("options", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}])
def test_a_resized_embedding_is_named(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The base model is the right one: the sentence says what really differs."""
    model = CASES[family].make(tmp_path / "model", "hub")
    vocabulary = model.lm_head.weight.shape[0]
    model.resize_token_embeddings(vocabulary + 8)
    adapt(model, tmp_path / "adapter", **{"target_modules": ["q_proj"], **options})
    wanted = f"was trained with a vocabulary of {vocabulary + 8} tokens where model has {vocabulary}: its embedding was"
    with pytest.raises(EdgeVLMError, match=wanted):
        open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter")


def renamed(adapter: Path, rule: Callable[[str], str]) -> None:
    """An adapter's tensors under the names of another layout."""
    path = adapter / "adapter_model.safetensors"
    root = "base_model.model."
    save_file({root + rule(name.removeprefix(root)): value for name, value in load_file(path).items()}, path)


OLD = {  # what transformers 4's classes, or a wrapped decoder alone, called the same modules
    "llava": lambda name: (
        name.replace("model.language_model.", "language_model.model.")
        .replace("model.vision_tower.", "vision_tower.vision_model.")
        .replace("model.multi_modal_projector", "multi_modal_projector")
    ),
    "qwen2_5_vl": lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    "internvl": lambda name: name.replace("model.language_model.", "model."),
}


@pytest.mark.parametrize("family", OLD)
def test_adapters_of_older_classes(family: str, tmp_path: Path) -> None:
    case = CASES[family]
    model = case.make(tmp_path / "model", "saved")
    expected = adapt(model, tmp_path / "adapter", target_modules=r".*language_model.*\.(q_proj|down_proj)|lm_head")
    renamed(tmp_path / "adapter", OLD[family])
    merged = open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter")
    assert_merged(merged, open_checkpoint(str(tmp_path / "model")), expected)


def plain(checkpoint: Checkpoint) -> torch.nn.Module:
    """A module with the names and tensors of a checkpoint: what peft wraps of a family without a transformers class."""
    root = torch.nn.Module()
    names = (name for name in checkpoint.names() if not name.endswith("num_batches_tracked"))
    for name in sorted(names, reverse=True):  # weights, which tell a layer's kind, before biases
        put(root, name, torch.from_numpy(checkpoint.read(name)))
    return root


def put(at: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    *path, last, part = name.split(".")
    for module in path:
        if module not in dict(at.named_children()):
            at.add_module(module, torch.nn.Module())
        at = at.get_submodule(module)
    if last not in dict(at.named_children()):
        if part != "weight":
            layer: torch.nn.Module = torch.nn.Module()
        elif last in ("embed_tokens", "token_embedding"):
            layer = torch.nn.Embedding(*tensor.shape)
        else:
            layer = torch.nn.Linear(*tensor.shape[::-1], bias=False) if tensor.ndim == 2 else torch.nn.Module()
        at.add_module(last, layer)
    setattr(at.get_submodule(last), part, torch.nn.Parameter(tensor, requires_grad=False))


NANO = {
    "blocks": {"target_modules": ["q_proj", "qkv_proj", "fc1", "down_proj"]},
    "projector": {"target_modules": ["proj"], "use_dora": True},
    "trained head": {"target_modules": ["q_proj"], "modules_to_save": ["head"]},
    "trained embedding": {"target_modules": ["q_proj"], "modules_to_save": ["token_embedding"]},
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("options", NANO)
def test_nanovlm(options: str, tie: bool, tmp_path: Path) -> None:
    """Its files have one layout, and of a tied pair the head's name."""
    nanovlm.build(tmp_path / "model", tie=tie)
    base = open_checkpoint(str(tmp_path / "model"))
    module = plain(base)
    if tie:
        put(module, "decoder.token_embedding.weight", torch.from_numpy(base.read("decoder.head.weight")))
        module.get_submodule("decoder.token_embedding").weight = module.get_submodule("decoder.head").weight
    expected = adapt(module, tmp_path / "adapter", **NANO[options])
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_internvl_as_its_authors_publish_it(kind: str, tmp_path: Path) -> None:
    internvl.build(tmp_path / "model", layout="remote")
    base = open_checkpoint(str(tmp_path / "model"))
    options = {"target_modules": ["qkv", "fc1", "q_proj", "lm_head", "mlp1.1"], **KINDS[kind]}
    expected = adapt(plain(base), tmp_path / "adapter", **options)
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


@pytest.mark.parametrize("layout", ["hub", "own"])
def test_moondream(layout: Any, tmp_path: Path) -> None:
    moondream.build(tmp_path / "model", layout=layout)
    base = open_checkpoint(str(tmp_path / "model"))
    options = {"target_modules": ["qkv", "proj", "fc1", "fc2", "lm_head"], **KINDS["rsLoRA"]}
    expected = adapt(plain(base), tmp_path / "adapter", **options)
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


def test_dots_ocr(tmp_path: Path) -> None:
    dots_ocr.build(tmp_path / "model")
    base = open_checkpoint(str(tmp_path / "model"))
    options = {"target_modules": ["qkv", "fc1", "fc3", "q_proj", "gate_proj", "mlp.0"], **KINDS["rsLoRA"]}
    expected = adapt(plain(base), tmp_path / "adapter", **options)
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


def test_minicpmv(tmp_path: Path) -> None:
    minicpmv.build(tmp_path / "model")
    base = open_checkpoint(str(tmp_path / "model"))
    options = {"target_modules": ["q_proj", "fc1", "down_proj", "kv_proj", "out_proj", "lm_head"], **KINDS["DoRA"]}
    expected = adapt(plain(base), tmp_path / "adapter", **options)
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


def test_fastvlm_as_its_authors_publish_it(tmp_path: Path) -> None:
    fast_vlm.build(tmp_path / "model", layout="own")
    base = open_checkpoint(str(tmp_path / "model"))
    options = {"target_modules": r".*(token_mixer\.(qkv|proj)|q_proj|down_proj|mm_projector\.0)", **KINDS["DoRA"]}
    expected = adapt(plain(base), tmp_path / "adapter", **options)
    assert_merged(open_model(str(tmp_path / "model"), adapter=tmp_path / "adapter"), base, expected)


ALL = {f"{name} {layout}": (case.build, {"layout": layout}) for name, case in CASES.items() for layout in case.layouts}
ALL |= {
    "minicpmv": (minicpmv.build, {}),
    "nanovlm": (nanovlm.build, {}),
    "dots_ocr": (dots_ocr.build, {}),
    "internvl remote": (internvl.build, {"layout": "remote"}),
}
ALL |= {"llava_qwen2": (fast_vlm.build, {"layout": "own"})}
ALL |= {f"moondream1 {layout}": (moondream.build, {"layout": layout}) for layout in ("hub", "own")}


@pytest.mark.parametrize("name", heavy_but([name for name in ALL if name.endswith("hub")], ALL))
def test_names_without_wrappers_are_of_one_tensor(name: str, tmp_path: Path) -> None:
    """What names are matched by tells every tensor of every layout from every other."""
    build, options = ALL[name]
    build(tmp_path, **options)
    names = open_checkpoint(str(tmp_path)).names()
    assert len(by_inner(names)) == len(names)


def test_every_family_is_here(builder: Any, tmp_path: Path) -> None:
    """A new family comes with its adapters."""
    tested = {"smolvlm", "idefics3", "edgevlm_query"} | {name.split()[0] for name in ALL} | {"internvl_chat"}
    assert {kind for family in FAMILIES for kind in family.model_types} == tested
