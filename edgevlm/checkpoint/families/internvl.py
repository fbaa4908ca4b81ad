"""InternVL 2.5, 3 and 3.5 (arXiv 2412.05271) in both layouts: transformers' own, and the one of the remote code."""

from __future__ import annotations

from edgevlm.checkpoint.chat_template import ChatFormat, chatml
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.linked import two_maps
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.tokens import token_id
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, make_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import numbered, with_squares, with_video_of
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.rules import RatioTiles
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.inputs.squares import Stretch
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Normalize, Shuffle
from edgevlm.models.spec import Norm
from edgevlm.models.towers.vit import Vit

CONTEXT, EMBED = "<IMG_CONTEXT>", "embed_tokens.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    remote = checkpoint.config["model_type"] == "internvl_chat"
    text, prefix = config.section("llm_config" if remote else "text_config"), prefix_of(checkpoint, EMBED)
    head = f"{names.head_beside(prefix)}.weight"
    tied = is_tied(checkpoint, config, text, head, f"{prefix}{EMBED}", default=not remote)
    decoder = read_decoder(text, tied=tied)
    section = config.section("vision_config")
    section.choice("norm_type", "layer_norm", {"layer_norm": "layer_norm"})
    section.require(False, "use_qk_norm", "qk_normalization")
    pooled = remote or section.flag("use_mean_pooling", True)
    vision = read_vit(
        section, image_size=448, patch_size=14, hidden_size=1024, inner=4096, act="gelu", class_token=True,
        post_norm=not pooled,
    )  # fmt: skip
    config.choice("select_layer" if remote else "vision_feature_layer", -1, {-1: "last"})
    ratio = config.number("downsample_ratio", 0.5, least=1 / 64, most=1)
    return ModelSpec(
        name=checkpoint.name,
        family=str(checkpoint.config["model_type"]),
        vision=vision,
        projector=(
            Shuffle(round(1 / ratio), vision.hidden_size),
            Normalize(Norm("layer", 1e-5)),
            *two_maps(config.without("projector_hidden_act") if remote else config, decoder),
        ),
        decoder=decoder,
        image_token_id=token_id(checkpoint, CONTEXT) if remote else config.count("image_token_id", 151667, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    prefix = prefix_of(checkpoint, EMBED)
    part, tower = names.timm, "vision_model."
    connector: Names = {"projector.norm": "mlp1.0", "projector.linear_1": "mlp1.1", "projector.linear_2": "mlp1.3"}
    if spec.family != "internvl_chat":
        part, tower = names.beit, prefix_of(checkpoint, "embeddings.cls_token")
        connector = names.two_maps(tower.replace("vision_tower", "multi_modal_projector"), norm="layer_norm")
    assert isinstance(spec.vision, Vit)
    return {
        **part(tower, spec.vision.num_patches + 1, spec.vision.hidden_size),
        **connector,
        **names.llama(prefix, names.head_beside(prefix)),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    if model.family == "internvl_chat":
        return _remote_image(files, model)
    file = files.image
    processor_type(file, "GotOcr2ImageProcessor")
    file.require(True, "do_resize")
    side = check_side(file, "size", file.square("size"), model)
    # crop_to_patches is false in the files, and InternVLProcessor turns it on.
    rule = RatioTiles(side, file.count("min_patches", 1), file.count("max_patches", 12), thumbnail=True)
    return with_squares(image_spec(files, model, rule, usual=3), files, model, "InternVLVideoProcessor", **FRAMES)


def _remote_image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """The remote code's load_image: preprocessor_config.json's cropping settings are outdated and not read."""
    config = files.config
    side = check_side(config, "force_image_size", config.count("force_image_size", 448), model)
    config.require(False, "pad2square")
    least, most = config.count("min_dynamic_patch", 1), config.count("max_dynamic_patch", 6)
    tiles = RatioTiles(side, least, most, config.flag("use_thumbnail", False))
    rule = tiles if config.flag("dynamic_image_size", False) else Stretch(side)
    spec = make_spec(model, rule, resample="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return with_video_of(spec, side, **FRAMES)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_tokens("image_seq_length", model.image_tokens)
    text = PictureText(open="<img>", close="</img>")
    chat = None
    if model.family == "internvl_chat":  # its code writes its own conversation, whatever chat template there is
        chat = ChatFormat(chatml(files.config.choice("template", None, _SYSTEM)), image_close="\n")
    return prompt_spec(files, model, picture=text, needed=("<img>", "</img>"), chat=chat, grounding=BOXES)


FRAMES = numbered("<img>", "</img>", most=8)  # as many as the authors' own examples take
BOXES = Grounding("tagged", 1000, open="<box>", close="</box>", label_open="<ref>", label_close="</ref>")
# conversation.py of the remote code, by the key `template` of config.json.
_SYSTEM = {
    "internvl2_5": "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。",
}


TYPES, TOWERS = ("internvl", "internvl_chat"), ("internvl_vision", "intern_vit_6b")
FAMILY = Family(TYPES, "InternVL 2.5, 3 and 3.5", read, tensor_names, image, prompt, towers=TOWERS)
