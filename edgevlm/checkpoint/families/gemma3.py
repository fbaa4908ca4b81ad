"""Gemma 3 with pictures (arXiv 2503.19786): a SigLIP tower, its patches averaged, and a decoder with windows."""

from __future__ import annotations

import math

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.gemma_text import gemma_names, read_gemma
from edgevlm.checkpoint.families.tensors import Names, Plain, PlusOne, Transposed, prefix_of
from edgevlm.checkpoint.families.tokens import token_key, token_text
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.inputs.squares import Stretch
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Normalize, Pool
from edgevlm.models.spec import Norm

PROJECTOR = "mm_soft_emb_norm.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    section, text = config.section("vision_config"), config.section("text_config")
    section.choice("model_type", "siglip_vision_model", {"siglip_vision_model": "siglip"})
    text.require(False, "use_bidirectional_attention")
    vision = read_vit(section, image_size=224, patch_size=16, hidden_size=768, heads=12)
    tokens, side = config.count("mm_tokens_per_image", 256), vision.patches_per_side
    scale = max(1, side // math.isqrt(tokens))
    if (side // scale) ** 2 != tokens or side % scale:
        raise config.wrong("mm_tokens_per_image", f"a square number that divides the tower's {side} x {side} patches")
    tied = config.flag("tie_word_embeddings", True)
    decoder = read_gemma(checkpoint, text, mask="image", default="gemma3_text", tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family="gemma3",
        vision=vision,
        projector=(
            Pool(scale, vision.hidden_size),
            Normalize(Norm("rms", vision.block.norm.eps)),
            Linear("linear", decoder.hidden_size, bias=False),
        ),
        decoder=decoder,
        image_token_id=config.count(token_key(config, "image"), 262144, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    projector = prefix_of(checkpoint, PROJECTOR)
    return {
        **names.siglip(prefix_of(checkpoint, names.PATCHES)),
        "projector.norm": PlusOne(f"{projector}mm_soft_emb_norm"),
        "projector.linear": Transposed(Plain(f"{projector}mm_input_projection_weight")),
        **gemma_names(checkpoint, spec.decoder),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "Gemma3ImageProcessor")
    file.require(True, "do_resize")
    file.require(False, "do_pan_and_scan")  # crops beside the picture, which no published file asks for
    return image_spec(files, model, Stretch(check_side(file, "size", file.square("size"), model)), usual=2)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """The chat template writes a picture's first token alone; the processor writes the whole picture for it."""
    files.check_tokens("image_seq_length", model.image_tokens)
    first, last = (token_text(files, key, usual) for key, usual in (("boi", 255999), ("eoi", 256000)))
    text = PictureText(open=f"\n\n{first}", close=f"{last}\n\n")
    return prompt_spec(files, model, picture=text, needed=(first, last), placeholder=first, grounding=BOXES)


BOXES = Grounding("json", 1000, y_first=True)


FAMILY = Family(
    ("gemma3",), "Gemma 3 with pictures", read, tensor_names, image, prompt, names.siglip_pooling,
    towers=("siglip_vision_model",), decoders=("gemma3_text",),
)  # fmt: skip
