"""Ovis2 (arXiv 2405.20797): an AIMv2 tower, and features that are shares of a visual vocabulary's embeddings."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Split, Transposed, prefix_of
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.rules import CoveringTiles
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.inputs.squares import Stretch
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear, Normalize, Shuffle
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.towers.vit import Vit

HEAD = "lm_head"
AROUND = PictureText(
    open="<IMG_START>", whole_close="<IMG_GRID>", tile_join="<IMG_COL>", row_join="<IMG_ROW>", close="<IMG_END>"
)


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, vision = config.section("text_config"), config.section("vision_config")
    prefix = prefix_of(checkpoint, "embed_tokens.weight")
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}embed_tokens.weight", default=True)
    decoder = read_decoder(text, tied=tied, usual="qwen2")
    vision.choice("tokenize_function", "softmax", {"softmax": "softmax"})
    tower, stride = _tower(vision), vision.count("hidden_stride", 1)
    markers = config.value("visual_indicator_token_ids", [151666, 151667, 151668, 151669, 151670])
    count = vision.count("num_visual_indicator_tokens", 5)
    if not (isinstance(markers, list) and len(markers) == count and all(type(i) is int and i >= 0 for i in markers)):
        raise config.wrong("visual_indicator_token_ids", f"{count} token ids")
    return ModelSpec(
        name=checkpoint.name,
        family="ovis2",
        vision=tower,
        projector=(
            Shuffle(stride, tower.hidden_size),
            Linear("linear_1", _vocabulary(vision), bias=False),
            Normalize(Norm("layer", 1e-5)),
            Act("softmax"),
            Linear("linear_2", decoder.hidden_size, bias=False),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 151665, least=0),
        markers=tuple(markers),
    )


def _vocabulary(vision: JsonFile) -> int:
    """Visual words, without those of the tokens around a picture, which are the table's last rows."""
    size, around = vision.count("vocab_size", 16384), vision.count("num_visual_indicator_tokens", 5)
    if size <= around:
        raise vision.wrong("vocab_size", f"more than the {around} of num_visual_indicator_tokens")
    return size - around


def _tower(config: JsonFile) -> Vit:
    shape = config.without("hidden_act")
    tower = read_vit(shape, image_size=224, patch_size=14, hidden_size=1024, heads=8, patch_norm=True)
    bias, heads = config.flag("qkv_bias", False), config.count("num_attention_heads", 8)
    attention = Attention(heads, heads, max(1, tower.hidden_size // heads), bias=bias, out_bias=bias)
    act = config.choice("hidden_act", "silu", {"silu": "silu"})
    mlp = Mlp(config.count("intermediate_size", 2816), act, bias=config.flag("mlp_bias", False))
    block = Block((attention,), mlp, Norm("rms", config.number("rms_norm_eps", 1e-5)))
    return replace(tower, num_layers=config.count("num_hidden_layers", 24), block=block)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    head = prefix_of(checkpoint, "head_linear.weight")
    table = f"{prefix_of(checkpoint, 'visual_embeddings_table.weight')}visual_embeddings_table"
    tower, words = f"{head}transformer.", next(step.rows for step in spec.projector if isinstance(step, Linear))
    layer, total = f"{tower}encoder.layers.{{i}}.", words + len(spec.markers)
    stored = {
        "norm1": "rms_norm1", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj", "norm2":
        "rms_norm2", "o": "attention.out_proj", "gate": "ffn.gate_proj", "up": "ffn.up_proj", "down": "ffn.down_proj",
    }  # fmt: skip
    return {
        "vision.patch_embedding": f"{tower}embeddings.patch_embedding",
        "vision.patch_norm": f"{tower}embeddings.rms_norm",
        "vision.position_embedding": Plain(f"{tower}embeddings.position_embedding.weight"),
        **{f"vision.layers.{{i}}.{ours}": f"{layer}{theirs}" for ours, theirs in stored.items()},
        "vision.post_norm": f"{tower}rms_norm",
        "projector.linear_1": f"{head}head_linear",
        "projector.norm": f"{head}head_norm",
        "projector.linear_2": Transposed(Split(f"{table}.weight", 0, total)),
        "markers": Split(f"{table}.weight", words, total),
        **names.llama(prefix_of(checkpoint, "embed_tokens.weight"), HEAD),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "Ovis2ImageProcessor")
    file.require(True, "do_resize", "use_covering_area_grid")
    side, most = check_side(file, "size", file.square("size"), model), file.count("max_patches", 12)
    tiled = file.flag("crop_to_patches", False) and most > 1
    return image_spec(files, model, CoveringTiles(side, most) if tiled else Stretch(side), usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("image_seq_length", model.image_tokens)
    needed = (AROUND.open, AROUND.whole_close, AROUND.tile_join, AROUND.row_join, AROUND.close)
    return prompt_spec(files, model, picture=AROUND, needed=needed, placeholder="<image>")


FAMILY = Family(("ovis2",), "Ovis2", read, tensor_names, image, prompt, towers=("ovis2_vision",))
