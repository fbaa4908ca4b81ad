"""PaliGemma 1 and 2 (arXiv 2407.07726, 2412.03555): a SigLIP tower, one linear map, and a prompt that sees itself.

Its positions count from 1, which no RoPE can tell from 0: attention depends on differences of positions alone.
"""

from __future__ import annotations

from edgevlm.checkpoint.chat_template import ChatFormat, token_text
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.gemma_text import gemma_names, read_gemma
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.tokens import token_key
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.spec import Chat, ImageSpec, RoleText
from edgevlm.inputs.squares import Stretch
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear

PROJECTOR = "multi_modal_projector.linear.weight"
DECODERS = ("gemma", "gemma2")
BOXES = Grounding("tokens", 1024, y_first=True, open="<loc", close=">")


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    section, text = config.section("vision_config"), config.section("text_config")
    section.choice("model_type", "siglip_vision_model", {"siglip_vision_model": "siglip"})
    text.choice("model_type", "gemma", {name: name for name in DECODERS})
    text.require(True, "use_bidirectional_attention")
    tied = config.flag("tie_word_embeddings", True)
    return ModelSpec(
        name=checkpoint.name,
        family="paligemma",
        vision=read_vit(section, image_size=224, patch_size=16, hidden_size=768, heads=12),
        projector=(Linear("linear", config.count("projection_dim", 2048)),),
        decoder=read_gemma(checkpoint, text, mask="prompt", default="gemma", tied=tied),
        image_token_id=config.count(token_key(config, "image"), 256000, least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    return {
        **names.siglip(prefix_of(checkpoint, names.PATCHES)),
        "projector.linear": f"{prefix_of(checkpoint, PROJECTOR)}{PROJECTOR.removesuffix('.weight')}",
        **gemma_names(checkpoint, spec.decoder),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "SiglipImageProcessor")
    file.require(True, "do_resize")
    if file.value("image_seq_length", model.image_tokens) != model.image_tokens:
        raise file.wrong("image_seq_length", f"the {model.image_tokens} image tokens of a picture in config.json")
    return image_spec(files, model, Stretch(check_side(file, "size", file.square("size"), model)), usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """Pictures, the bos token, the question and a line break, as the processor writes them: there is no chat."""
    bos = token_text(files.names, "bos_token")
    if not bos:
        raise files.tokenizer_config.wrong("bos_token", "a token")
    chat = Chat("", {"user": RoleText("", "", "\n")}, "", images_first=True, text_open=bos)
    return prompt_spec(files, model, needed=(bos,), chat=ChatFormat(chat), grounding=BOXES)


FAMILY = Family(
    ("paligemma",), "PaliGemma 1 and 2", read, tensor_names, image, prompt, names.siglip_pooling,
    towers=("siglip_vision_model",), decoders=DECODERS,
)  # fmt: skip
