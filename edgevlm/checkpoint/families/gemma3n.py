"""Gemma 3n E2B and E4B with pictures: a MobileNetV5, and a decoder with several streams of states."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.gemma3n_text import read_text, text_names
from edgevlm.checkpoint.families.gemma4_text import unused_keys
from edgevlm.checkpoint.families.mobilenetv5 import read_tower, tower_names
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.families.tokens import token_text
from edgevlm.checkpoint.families.transforms import Embedded
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import check_side, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.inputs.squares import Stretch
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Normalize
from edgevlm.models.spec import Norm

PROJECTOR = "embed_vision.embedding_projection.weight"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    vision, eps = read_tower(checkpoint, config), config.section("vision_config").number("rms_norm_eps", 1e-6)
    decoder = read_text(checkpoint, config.section("text_config"), tied=config.flag("tie_word_embeddings", True))
    spec = ModelSpec(
        name=checkpoint.name,
        family="gemma3n",
        vision=vision,
        projector=(
            Normalize(Norm("rms", eps)),
            Linear("linear", decoder.hidden_size, bias=False),
            Normalize(Norm("rms", eps, weight=False), "norm_after"),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 262145, least=0),
        markers=_hard(config),
    )
    tokens = config.count("vision_soft_tokens_per_image", 256)
    if tokens != spec.image_tokens:
        raise config.wrong("vision_soft_tokens_per_image", f"the {spec.image_tokens} states of the tower")
    return spec


def _hard(config: JsonFile) -> tuple[int, ...]:
    """Those tokens around a picture that the decoder's table has no embedding for: the tower's small one has it."""
    first, count = _visual(config)
    around = [config.count(key, usual, least=0) for key, usual in (("boi_token_id", 255999), ("eoi_token_id", 262144))]
    return tuple(token for token in around if first <= token < first + count)


def _visual(config: JsonFile) -> tuple[int, int]:
    """The first of the tokens in the small table, and how many it has."""
    section = config.section("vision_config")
    return section.count("vocab_offset", 262144, least=0), section.count("vocab_size", 128, most=limits.VOCABULARY)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    config = JsonFile(checkpoint.folder / "config.json", checkpoint.config)
    embed, (first, count) = f"{prefix_of(checkpoint, PROJECTOR)}embed_vision.", _visual(config)
    rows, vocab = config.section("text_config").count("vocab_size_per_layer_input", 262144), spec.decoder.vocab_size
    if rows > vocab:
        raise config.section("text_config").wrong("vocab_size_per_layer_input", f"at most the {vocab} of vocab_size")
    linear, eps = f"{embed}embedding_projection", config.section("vision_config").number("rms_norm_eps", 1e-6)
    tokens, size = tuple(token - first for token in spec.markers), (count, spec.vision.hidden_size)
    return {
        **tower_names(checkpoint, spec),
        "projector.norm": f"{embed}soft_embedding_norm",
        "projector.linear": linear,
        "markers": Embedded(f"{embed}embedding", tokens, size, f"{embed}hard_embedding_norm", linear, eps),
        **text_names(checkpoint, rows),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Sounds, keys and values in layers that have none of their own, and the small table if no token is in it."""
    prefix = prefix_of(checkpoint, PROJECTOR)
    hard = (f"{prefix}embed_vision.embedding.", f"{prefix}embed_vision.hard_embedding_norm.")
    return f"{prefix}audio_tower.", f"{prefix}embed_audio.", *hard, *unused_keys(checkpoint, spec.decoder)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Pixels from 0 to 1: published files have a mean and a deviation, and do not normalize."""
    file = files.image
    processor_type(file, "SiglipImageProcessor")
    file.require(True, "do_resize")
    return image_spec(files, model, Stretch(check_side(file, "size", file.square("size"), model)), usual=3)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """The chat template writes a picture's image token once; the processor writes the whole picture for it."""
    files.check_tokens("image_seq_length", model.image_tokens)
    first, last = token_text(files, "boi", 255999), token_text(files, "eoi", 262144)
    text = PictureText(open=f"\n\n{first}", close=f"{last}\n\n")
    return prompt_spec(files, model, picture=text, needed=(first, last))


FAMILY = Family(
    ("gemma3n",), "Gemma 3n (E2B, E4B) with pictures", read, tensor_names, image, prompt, unused,
    towers=("gemma3n_vision",), decoders=("gemma3n_text",),
)  # fmt: skip
