"""nanoVLM in its own layout (github.com/huggingface/nanoVLM, models/): SigLIP, pixel shuffle, SmolLM2."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain
from edgevlm.checkpoint.families.tokens import token_id
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, make_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.rules import WholeThenTiles
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Shuffle
from edgevlm.models.towers.vit import Vit

HEAD, EMBED = "decoder.head", "decoder.token_embedding"
VISION = {
    "hidden_size": "vit_hidden_dim", "intermediate_size": "vit_inter_dim", "patch_size": "vit_patch_size",
    "image_size": "vit_img_size", "num_attention_heads": "vit_n_heads", "num_hidden_layers": "vit_n_blocks",
    "layer_norm_eps": "vit_ln_eps",
}  # fmt: skip
TEXT = {
    "hidden_size": "lm_hidden_dim", "intermediate_size": "lm_inter_dim", "rms_norm_eps": "lm_rms_eps",
    "rope_theta": "lm_re_base", "max_position_embeddings": "lm_max_position_embeddings", "vocab_size": "lm_vocab_size",
    "num_attention_heads": "lm_n_heads", "num_key_value_heads": "lm_n_kv_heads", "num_hidden_layers": "lm_n_blocks",
    "tie_word_embeddings": "lm_tie_weights",
}  # fmt: skip
VIT_LAYER = {"norm1": "ln1", "o": "attn.out_proj", "norm2": "ln2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
TEXT_LAYER = {
    "norm1": "norm1", "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
    "norm2": "norm2", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    if config.flag("vit_cls_flag", False):
        raise config.wrong("vit_cls_flag", "false")
    if config.number("lm_attn_scaling", 1.0) != 1.0:
        raise config.wrong("lm_attn_scaling", "1.0")
    vision = read_vit(config.renamed(**VISION), image_size=512, patch_size=16, hidden_size=768, heads=12)
    text = config.renamed(**TEXT)
    tied = is_tied(checkpoint, text, text, f"{HEAD}.weight", f"{EMBED}.weight", default=True)
    decoder = read_decoder(text, tied=tied, kind="llama")
    image = config.section("vlm_extra_tokens").value("image_token")
    token = token_id(checkpoint, image if isinstance(image, str) else "<|image|>")
    shuffle = Shuffle(config.count("mp_pixel_shuffle_factor", 4), vision.hidden_size)
    projector = (shuffle, Linear("linear", decoder.hidden_size, bias=False))
    return ModelSpec(checkpoint.name, "nanovlm", vision, projector, decoder, token)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, Vit)
    width, patches, blocks = spec.vision.hidden_size, "vision_encoder.patch_embedding", "vision_encoder.blocks."
    return {
        "vision.patch_embedding": f"{patches}.conv",
        "vision.position_embedding": Plain(f"{patches}.position_embedding", (1, spec.vision.num_patches, width)),
        **{f"vision.layers.{{i}}.{ours}": f"{blocks}{{i}}.{theirs}" for ours, theirs in VIT_LAYER.items()},
        **names.fused_qkv(blocks, ".attn.qkv_proj", width),
        "vision.post_norm": "vision_encoder.layer_norm",
        "projector.linear": "MP.proj",
        # Of tied weights, files keep the head's name.
        "decoder.embed": EMBED if f"{EMBED}.weight" in checkpoint.names() else HEAD,
        **{f"decoder.layers.{{i}}.{ours}": f"decoder.blocks.{{i}}.{theirs}" for ours, theirs in TEXT_LAYER.items()},
        "decoder.norm": "decoder.norm",
        "decoder.head": HEAD,
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """DynamicResize and GlobalAndSplitImages of data/custom_transforms.py there. Pixels are only divided by 255."""
    config = files.config
    side = check_side(config, "vit_img_size", config.count("vit_img_size", 512), model)
    enlarge = config.flag("resize_to_max_side_len", False)
    rule = WholeThenTiles(side, config.count("max_img_size", 1024), enlarge, whole_resample="bilinear")
    return make_spec(model, rule, resample="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """As get_image_string of data/processors.py there."""
    whole = "<|global_image|>"
    text = PictureText(tile="<row_{row}_col_{col}>", whole=whole, alone=whole, number="<image: {index}>")
    return prompt_spec(files, model, picture=text, needed=(whole,))


FAMILY = Family(("nanovlm",), "nanoVLM", read, tensor_names, image, prompt, mark="vit_hidden_dim", embed=EMBED)
