"""The builders of tests/tiny: names as in each layout, weights that matter, transformers reads what can be read."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import deepseek_vl, internvl, llava15, nanovlm, qwen2_5_vl
from tiny.common import Answer, ask, picture

QUESTION = "What is in the picture?"
PICTURES = {
    "none": [],
    "one": [picture(80, 48)],
    "several": [picture(100, 33, 1), picture(64, 64, 2), picture(31, 90, 3)],
}


def expand(*patterns: str) -> set[str]:
    """Names of patterns with alternatives and ranges in braces: "a.{0..2}.{b,c}"."""

    def alternatives(part: str) -> list[str]:
        if ".." in part:
            first, last = part.split("..")
            return [str(i) for i in range(int(first), int(last) + 1)]
        return part.split(",")

    names = set()
    for pattern in patterns:
        fixed, *rest = pattern.split("{")
        tails = [part.split("}") for part in rest]
        for choice in product(*(alternatives(inside) for inside, _ in tails)):
            names.add(fixed + "".join(a + after for a, (_, after) in zip(choice, tails, strict=True)))
    return names


def llama(at: str, head: str | None, *extra: str) -> set[str]:
    """A Llama-like decoder of 2 layers under `at`, its head, and what its layers have beyond."""
    layer = at + "layers.{0..1}."
    parts = ["self_attn.{q,k,v,o}_proj.weight", "mlp.{gate,up,down}_proj.weight", *extra]
    parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    names = expand(at + "{embed_tokens,norm}.weight", *(layer + part for part in parts))
    return names | ({head} if head else set())


QKV_BIAS = "self_attn.{q,k,v}_proj.bias"
QK_NORM = "self_attn.{q,k}_norm.weight"


def qwen2_5_vl_names(tower: str, text: str, head: str | None) -> set[str]:
    return llama(text, head, QKV_BIAS) | expand(
        tower + "patch_embed.proj.weight",
        tower + "blocks.{0..2}.norm{1..2}.weight",
        tower + "blocks.{0..2}.attn.{qkv,proj}.{weight,bias}",
        tower + "blocks.{0..2}.mlp.{gate,up,down}_proj.{weight,bias}",
        tower + "merger.ln_q.weight",
        tower + "merger.mlp.{0,2}.{weight,bias}",
    )


def internvl_names(top: str, text: str, head: str, extra: str) -> set[str]:
    layer = top + "vision_tower.encoder.layer.{0..1}."
    return llama(text, head, extra) | expand(
        top + "vision_tower.embeddings.{cls_token,position_embeddings}",
        top + "vision_tower.embeddings.patch_embeddings.projection.{weight,bias}",
        layer + "attention.{q_proj,k_proj,v_proj,projection_layer}.{weight,bias}",
        layer + "{layernorm_before,layernorm_after,mlp.fc1,mlp.fc2}.{weight,bias}",
        layer + "lambda_{1..2}",
        top + "multi_modal_projector.{layer_norm,linear_1,linear_2}.{weight,bias}",
    )


def internvl_remote_names(extra: str) -> set[str]:
    return llama("language_model.model.", "language_model.lm_head.weight", extra) | expand(
        "vision_model.embeddings.{class_embedding,position_embedding,patch_embedding.weight,patch_embedding.bias}",
        "vision_model.encoder.layers.{0..1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2,norm1,norm2}.{weight,bias}",
        "vision_model.encoder.layers.{0..1}.ls{1..2}",
        "mlp1.{0,1,3}.{weight,bias}",
    )


def siglip_names(at: str) -> set[str]:
    layer = at + "encoder.layers.{0..1}."
    return expand(
        at + "embeddings.{patch_embedding.weight,patch_embedding.bias,position_embedding.weight}",
        layer + "self_attn.{q_proj,k_proj,v_proj,out_proj}.{weight,bias}",
        layer + "{layer_norm1,layer_norm2,mlp.fc1,mlp.fc2}.{weight,bias}",
        at + "post_layernorm.{weight,bias}",
    )


def llava_names(tower: str, top: str, text: str, head: str) -> set[str]:
    layer = tower + "encoder.layers.{0..2}."
    return llama(text, head) | expand(
        tower + "embeddings.{class_embedding,patch_embedding.weight,position_embedding.weight}",
        tower + "{pre_layrnorm,post_layernorm}.{weight,bias}",
        layer + "self_attn.{q_proj,k_proj,v_proj,out_proj}.{weight,bias}",
        layer + "{layer_norm1,layer_norm2,mlp.fc1,mlp.fc2}.{weight,bias}",
        top + "multi_modal_projector.{linear_1,linear_2}.{weight,bias}",
    )


def deepseek_names(tower: str) -> set[str]:
    aligner = expand("model.aligner.{linear1,linear2}.{weight,bias}")
    return llama("model.language_model.", HEAD) | siglip_names(tower) | aligner


def nanovlm_names(*embeddings: str) -> set[str]:
    return set(embeddings) | expand(
        "vision_encoder.patch_embedding.{conv.weight,conv.bias,position_embedding}",
        "vision_encoder.blocks.{0..1}.{ln1,ln2,attn.qkv_proj,attn.out_proj,mlp.fc1,mlp.fc2}.{weight,bias}",
        "vision_encoder.layer_norm.{weight,bias}",
        "decoder.blocks.{0..1}.attn.{q,k,v,out}_proj.weight",
        "decoder.blocks.{0..1}.mlp.{gate,up,down}_proj.weight",
        "decoder.blocks.{0..1}.norm{1..2}.weight",
        "decoder.{norm.weight,rotary_embd.inv_freq}",
        "MP.proj.weight",
    )


class Case(NamedTuple):
    """A builder, its options, the names it must save, and whether transformers reads them."""

    module: Any
    options: dict[str, Any]
    names: set[str]
    loadable: bool = True


HEAD = "lm_head.weight"
OLD = ("", "language_model.model.", "language_model.lm_head.weight")
NOW = ("model.", "model.language_model.", HEAD)
CASES = {
    "qwen2_5_vl-hub": Case(qwen2_5_vl, {}, qwen2_5_vl_names("visual.", "model.", HEAD)),
    "qwen2_5_vl-hub-tied": Case(qwen2_5_vl, {"tie": True, "seed": 2}, qwen2_5_vl_names("visual.", "model.", None)),
    "qwen2_5_vl-saved": Case(qwen2_5_vl, {"layout": "saved"}, qwen2_5_vl_names("visual.", "model.", HEAD)),
    "qwen2_5_vl-memory": Case(
        qwen2_5_vl, {"layout": "memory"}, qwen2_5_vl_names("model.visual.", "model.language_model.", HEAD)
    ),
    "internvl-hub": Case(internvl, {}, internvl_names(*OLD, QKV_BIAS)),
    "internvl-saved": Case(internvl, {"layout": "saved"}, internvl_names(*OLD, QKV_BIAS)),
    "internvl-memory": Case(internvl, {"layout": "memory"}, internvl_names(*NOW, QKV_BIAS)),
    "internvl-remote": Case(internvl, {"layout": "remote"}, internvl_remote_names(QKV_BIAS), False),
    "internvl-hub-qwen3": Case(internvl, {"decoder": "qwen3"}, internvl_names(*OLD, QK_NORM)),
    "internvl-saved-qwen3": Case(internvl, {"decoder": "qwen3", "layout": "saved"}, internvl_names(*OLD, QK_NORM)),
    "internvl-remote-qwen3": Case(
        internvl, {"decoder": "qwen3", "layout": "remote"}, internvl_remote_names(QK_NORM), False
    ),
    "llava15-hub": Case(llava15, {}, llava_names("vision_tower.vision_model.", *OLD)),
    "llava15-hub-pad": Case(llava15, {"pad": True, "seed": 1}, llava_names("vision_tower.vision_model.", *OLD)),
    "llava15-saved-metaspace": Case(
        llava15, {"layout": "saved", "form": "metaspace"}, llava_names("vision_tower.", *OLD)
    ),
    "llava15-memory": Case(llava15, {"layout": "memory"}, llava_names("model.vision_tower.", *NOW)),
    "deepseek_vl-hub": Case(deepseek_vl, {}, deepseek_names("model.vision_model.vision_model.")),
    "deepseek_vl-saved": Case(deepseek_vl, {"layout": "saved"}, deepseek_names("model.vision_model.")),
    "deepseek_vl-memory": Case(deepseek_vl, {"layout": "memory"}, deepseek_names("model.vision_model.")),
    "nanovlm": Case(nanovlm, {}, nanovlm_names("decoder.head.weight"), False),
    "nanovlm-untied": Case(
        nanovlm, {"tie": False}, nanovlm_names("decoder.head.weight", "decoder.token_embedding.weight"), False
    ),
}


class Built(NamedTuple):
    case: Case
    folder: Path
    model: Any
    processor: Any


_BUILT: dict[str, Built] = {}


@pytest.fixture(params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each case, built once."""
    name = request.param
    if name not in _BUILT:
        case, folder = CASES[name], tmp_path_factory.mktemp("tiny") / name
        model = case.module.build(folder, **case.options)
        _BUILT[name] = Built(case, folder, model, case.module.load_processor(folder))
    return _BUILT[name]


def test_names_are_the_layouts(built: Built) -> None:
    with safe_open(built.folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == built.case.names


def test_every_tensor_is_random_and_its_own(built: Built) -> None:
    tensors = load_file(built.folder / "model.safetensors")
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.std() > 0.01, name
        assert (tensor == 0).sum() == 0, name
    assert len({tensor.flatten()[:8].numpy().tobytes() for tensor in tensors.values()}) == len(tensors)


def test_sizes_suit_blocks_of_32(built: Built) -> None:
    """Every input dimension of a matrix is a multiple of 32 (a convolution over patches counts as one matrix)."""
    tables = ("position_embed", "cls_token", "class_embedding")
    for name, tensor in load_file(built.folder / "model.safetensors").items():
        if tensor.ndim > 1 and not any(table in name for table in tables):
            still = tensor.sum(2) if tensor.ndim == 5 else tensor  # a still image is a frame twice
            assert still[0].numel() % 32 == 0, (name, tuple(tensor.shape))


@pytest.mark.heavy
def test_transformers_reads_it_back(built: Built) -> None:
    if not built.case.loadable:
        config = json.loads((built.folder / "config.json").read_text())
        assert "auto_map" in config or "vit_hidden_dim" in config  # remote code
        return
    model, info = AutoModelForImageTextToText.from_pretrained(
        built.folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ours = ask(built.model, built.processor, PICTURES["one"], QUESTION, tokens=4)
    theirs = ask(model.eval(), built.processor, PICTURES["one"], QUESTION, tokens=4)
    np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-5)
    assert theirs.tokens == ours.tokens
    assert model.generation_config.eos_token_id == built.model.generation_config.eos_token_id


@pytest.mark.heavy
@pytest.mark.parametrize("pictures", PICTURES)
def test_answers_depend_on_everything(built: Built, pictures: str) -> None:
    answer = ask(built.model, built.processor, PICTURES[pictures], QUESTION)
    assert len(answer.tokens) == 64
    assert len(set(answer.tokens)) > 12, answer.tokens
    assert min(answer.margins) > 1e-3
    ends = np.atleast_1d(built.model.generation_config.eos_token_id)
    assert not set(answer.tokens) & set(ends.tolist()), "the answer ends early"
    assert len(answer.text) > 60
    tokenizer = Tokenizer.from_file(str(built.folder / "tokenizer.json"))
    assert max(answer.input_ids + answer.tokens) < tokenizer.get_vocab_size() <= answer.logits.shape[1]
    other = ask(built.model, built.processor, PICTURES[pictures], "How many?")
    assert other.tokens != answer.tokens
    if pictures == "none":
        assert answer.features is None
        return
    changed = [Image.fromarray(255 - np.asarray(image)) for image in PICTURES[pictures]]
    other = ask(built.model, built.processor, changed, QUESTION)
    assert other.input_ids == answer.input_ids
    assert answer.features is not None and other.features is not None
    assert answer.features.shape == other.features.shape
    assert (np.abs(other.features - answer.features).max(1) > 0.05).all(), "an image token does not see its picture"
    assert answer.features.std(0).min() > 0.05, "image tokens look the same"
    assert other.tokens != answer.tokens
    assert image_tokens(built, answer) == len(answer.features)


def image_tokens(built: Built, answer: Answer) -> int:
    """How many places the prompt has for image tokens."""
    return answer.input_ids.count(built.processor.image_token_id)


def test_the_tokenizer_file_alone_gives_the_prompts_tokens(built: Built) -> None:
    tokenizer = Tokenizer.from_file(str(built.folder / "tokenizer.json"))
    answer = ask(built.model, built.processor, [], "Ünïcode 🙂, 42 triangles?\n\tYes", tokens=1)
    assert tokenizer.encode(answer.prompt).ids == answer.input_ids
    if built.case.loadable:
        assert AutoTokenizer.from_pretrained(built.folder)(answer.prompt).input_ids == answer.input_ids
    assert "🙂" in tokenizer.decode(answer.input_ids, skip_special_tokens=False)


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_internvl_remote_holds_the_same_weights(decoder: Literal["qwen2", "qwen3"], tmp_path: Path) -> None:
    """Read as transformers' convert_internvl_weights_to_hf.py reads OpenGVLab's files."""
    model = internvl.build(tmp_path, layout="remote", decoder=decoder)
    rules = {
        "vision_model": "vision_tower",
        "layers": "layer",
        "class_embedding": "cls_token",
        "position_embedding": "position_embeddings",
        "patch_embedding": "patch_embeddings.projection",
        r"ls(\d+)": r"lambda_\1",
        "attn.proj": "attention.projection_layer",
        "attn": "attention",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    state = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("vision_model"):
            for pattern, replacement in rules.items():
                name = re.sub(pattern, replacement, name)
            name = "model." + name
        for old, new in (("mlp1.0", "layer_norm"), ("mlp1.1", "linear_1"), ("mlp1.3", "linear_2")):
            name = name.replace(old, "model.multi_modal_projector." + new)
        name = name.replace("language_model.lm_head", "lm_head").replace(
            "language_model.model.", "model.language_model."
        )
        if "attention.qkv" in name:
            width = len(tensor) // 3
            for index, part in enumerate("qkv"):
                state[name.replace("attention.qkv", f"attention.{part}_proj")] = tensor[index * width :][:width]
        else:
            state[name] = tensor
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("tie", [True, False])
def test_nanovlm_is_siglip_and_llama(tie: bool, tmp_path: Path) -> None:
    """The files, read as nanoVLM's from_pretrained methods read SigLIP and SmolLM2, answer like the oracle."""
    model = nanovlm.build(tmp_path, tie=tie)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config["vit_hidden_dim"],
            intermediate_size=config["vit_inter_dim"],
            num_hidden_layers=config["vit_n_blocks"],
            num_attention_heads=config["vit_n_heads"],
            image_size=config["vit_img_size"],
            patch_size=config["vit_patch_size"],
            layer_norm_eps=config["vit_ln_eps"],
            vision_use_head=False,
        )
    ).eval()
    decoder = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config["lm_hidden_dim"],
            intermediate_size=config["lm_inter_dim"],
            num_hidden_layers=config["lm_n_blocks"],
            num_attention_heads=config["lm_n_heads"],
            num_key_value_heads=config["lm_n_kv_heads"],
            vocab_size=config["lm_vocab_size"],
            rms_norm_eps=config["lm_rms_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["lm_re_base"]},
            max_position_embeddings=config["lm_max_position_embeddings"],
            tie_word_embeddings=config["lm_tie_weights"],
        )
    ).eval()
    vision, text = {}, {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "vision_encoder":
            rest = rest.replace("patch_embedding.conv", "embeddings.patch_embedding").replace(
                "layer_norm.", "post_layernorm."
            )
            rest = rest.replace("blocks", "encoder.layers").replace(".attn.", ".self_attn.")
            rest = rest.replace(".ln1", ".layer_norm1").replace(".ln2", ".layer_norm2")
            if rest.endswith("position_embedding"):
                vision["embeddings.position_embedding.weight"] = tensor[0]
            elif "qkv_proj" in rest:
                for piece, value in zip("qkv", tensor.chunk(3), strict=True):
                    vision[rest.replace("qkv_proj", f"{piece}_proj")] = value
            else:
                vision[rest] = tensor
        elif part == "decoder" and not rest.endswith("inv_freq"):
            rest = (
                rest.replace("blocks", "model.layers")
                .replace("attn.out_proj", "attn.o_proj")
                .replace(".attn.", ".self_attn.")
            )
            rest = rest.replace(".norm1", ".input_layernorm").replace(".norm2", ".post_attention_layernorm")
            rest = rest.replace("token_embedding", "model.embed_tokens").replace("head.", "lm_head.")
            text["model." + rest if rest.startswith("norm") else rest] = tensor
    if tie:
        text["model.embed_tokens.weight"] = text["lm_head.weight"]
    tower.load_state_dict(vision)
    decoder.load_state_dict(text)
    answer = ask(model, nanovlm.load_processor(tmp_path), PICTURES["several"], QUESTION, tokens=1)
    with torch.no_grad():
        patches = tower(torch.from_numpy(answer.inputs["pixel_values"][0])).last_hidden_state
        side, factor = config["vit_img_size"] // config["vit_patch_size"], config["mp_pixel_shuffle_factor"]
        blocks = patches.reshape(-1, side // factor, factor, side // factor, factor, patches.shape[-1])
        merged = blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2).flatten(0, 1)
        features = merged @ tensors["MP.proj.weight"].T
        np.testing.assert_allclose(features.numpy(), np.asarray(answer.features), atol=2e-5)
        ids = torch.tensor([answer.input_ids])
        embeds = decoder.get_input_embeddings()(ids)
        embeds[ids == nanovlm.load_processor(tmp_path).image_token_id] = features
        np.testing.assert_allclose(decoder(inputs_embeds=embeds).logits[0].numpy(), answer.logits, atol=2e-4)
