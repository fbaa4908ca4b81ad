"""FastVLM as its authors publish it (github.com/apple/ml-fastvlm, llava/): FastViTHD, two maps, a Qwen2 decoder.

The code there builds the tower in its folded form, and so do its files have it: one with branches is refused. A picture
has no token there: here it is written as the token that ends a text, which prompts do not have otherwise.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count

from edgevlm.checkpoint.chat_template import ChatFormat, chatml
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.fastvit import OWN, fastvit, fastvit_names
from edgevlm.checkpoint.families.linked import head_of
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.tokens import token_id
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import make_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Pad
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear
from edgevlm.models.towers.conv_vit import ConvVit

STEM, EMBED, STAGES = "patch_embed.0.reparam_conv.weight", "embed_tokens.weight", 5
TOWER = re.compile(r"mobileclip_l_(\d{2,5})")
PICTURE = "<|endoftext|>"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    config.choice("mm_projector_type", "linear", {"mlp2x_gelu": "two maps"})
    config.choice("mm_patch_merge_type", "flat", {"flat": "flat"})
    config.choice("image_aspect_ratio", None, {"pad": "pad"})
    config.require(False, "mm_use_im_start_end")
    head, embed = f"{head_of(checkpoint)}.weight", f"{prefix_of(checkpoint, EMBED)}{EMBED}"
    decoder = read_decoder(config, tied=is_tied(checkpoint, config, config, head, embed), kind="qwen2")
    width = decoder.hidden_size
    projector = (Linear("linear_1", width), Act("gelu"), Linear("linear_2", width))
    return ModelSpec(
        checkpoint.name, "llava_qwen2", _tower(checkpoint, config), projector, decoder, token_id(checkpoint, PICTURE)
    )


def _tower(checkpoint: Checkpoint, config: JsonFile) -> ConvVit:
    """Its name ends in the side of its pictures; widths and depths are the files'."""
    name = config.text("mm_vision_tower", "")
    if (match := TOWER.fullmatch(name)) is None:
        raise config.wrong("mm_vision_tower", "mobileclip_l_ and the pixels per side of a picture")
    if not any(tensor.endswith(STEM) for tensor in checkpoint.names()):
        raise EdgeVLMError(
            f"{checkpoint.folder} has no tensor that ends in '{STEM}': its tower has the branches that it was trained "
            "with, and folded kernels are read; take the published checkpoint."
        )
    tower, held = prefix_of(checkpoint, STEM), frozenset(checkpoint.names())

    def map_of(stage: int, block: int) -> str:
        return f"{tower}{OWN.name('block', stage, block)}convffn.fc1.weight"

    depths = tuple(next(n for n in count() if map_of(stage, n) not in held) for stage in range(STAGES))
    if 0 in depths:
        raise EdgeVLMError(f"{checkpoint.folder} lacks blocks of its tower: download it again.")
    widths = tuple(checkpoint.shape(map_of(stage, 0))[1] for stage in range(STAGES))
    config.choice("mm_hidden_size", 2 * widths[-1], {2 * widths[-1]: f"{2 * widths[-1]}"})
    return fastvit(widths, depths, int(match[1]))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, ConvVit)
    projector = prefix_of(checkpoint, "mm_projector.0.weight")
    return {
        **fastvit_names(OWN, prefix_of(checkpoint, STEM), spec.vision),
        "projector.linear_1": f"{projector}mm_projector.0",
        "projector.linear_2": f"{projector}mm_projector.2",
        **names.llama(prefix_of(checkpoint, EMBED), head_of(checkpoint)),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """expand2square and the tower's own CLIPImageProcessor there."""
    assert isinstance(model.vision, ConvVit)
    black = Pad(model.vision.image_size, (0, 0, 0))
    return make_spec(model, black, resample="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """The conversation qwen_2 of predict.py there, which is about one picture."""
    chat = replace(chatml("You are a helpful assistant."), images_first=True, image_after="\n", pictures=1)
    return prompt_spec(files, model, needed=("<|im_start|>", "<|im_end|>"), chat=ChatFormat(chat))


def _head(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return (f"{prefix_of(checkpoint, STEM)}head.",)


FAMILY = Family(("llava_qwen2",), "FastVLM in its authors' layout", read, tensor_names, image, prompt, _head)
