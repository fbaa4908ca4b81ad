"""SmolVLM, SmolVLM2 and Idefics3, at any size: SigLIP tower, pixel shuffle, Llama decoder."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.composed import END, Composed
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Rows
from edgevlm.checkpoint.families.towers import bucketed_positions, read_vit
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.grounding import loc_tokens
from edgevlm.checkpoint.processor.images import check_side, image_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_video
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Queries, Shuffle, Step
from edgevlm.models.towers.vit import Vit

HEAD, FAKE, WHOLE = "lm_head", "<fake_token_around_image>", "<global-img>"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    text, prefix = config.section("text_config"), _prefix(checkpoint)
    tied = is_tied(checkpoint, config, text, f"{HEAD}.weight", f"{prefix}text_model.embed_tokens.weight")
    tower = config.section("vision_config")
    vision = read_vit(tower, image_size=224, patch_size=32, hidden_size=1152, masked_tiles=True)
    decoder = read_decoder(text, tied=tied)
    return ModelSpec(
        name=checkpoint.name,
        family=str(checkpoint.config["model_type"]),
        vision=vision,
        projector=_projector(config, vision.hidden_size, decoder.hidden_size),
        decoder=decoder,
        image_token_id=config.count("image_token_id", 128257, least=0),
    )


def _projector(config: JsonFile, width: int, hidden: int) -> tuple[Step, ...]:
    connector = config.section("query_connector")
    if connector.given:  # edgevlm.train's own
        kind = connector.choice("kind", "", {"qformer": "qformer", "resampler": "resampler"})
        return (Queries(kind, connector.count("queries", most=limits.PATCHES)),)
    scale = config.count("scale_factor", 2)
    return (Shuffle(scale, width), Linear("linear", hidden, bias=False))


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    assert isinstance(spec.vision, Vit)
    prefix, side = _prefix(checkpoint), spec.vision.patches_per_side
    table = f"{prefix}vision_model.embeddings.position_embedding.weight"
    return {
        **names.siglip(f"{prefix}vision_model."),
        "vision.position_embedding": Rows(table, lambda: bucketed_positions(side)),
        "projector.linear": f"{prefix}connector.modality_projection.proj",
        **names.llama(f"{prefix}text_model.", HEAD),
    }


def _prefix(checkpoint: Checkpoint) -> str:
    return "" if any(name.startswith("text_model.") for name in checkpoint.names()) else "model."


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    return (f"{_prefix(checkpoint)}connector.",) if any(isinstance(step, Queries) for step in spec.projector) else ()


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file = files.image
    processor_type(file, "Idefics3ImageProcessor", "SmolVLMImageProcessor")
    rule = TilesThenWhole(
        side=check_side(file, "max_image_size", file.edge("max_image_size"), model),
        longest_edge=file.edge("size") if file.flag("do_resize", True) else None,
        max_edge=4096,  # as the next, a constant of the processor's code
        short_edge_multiple=2,
        split=file.flag("do_image_splitting", True),
    )
    made = image_spec(files, model, rule)
    # Frames are whole pictures; what is said of them is in transformers' models/smolvlm/processing_smolvlm.py.
    return with_video(
        made, files, "SmolVLMVideoProcessor", replace(rule, split=False),
        intro="You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n",
        stamp="\nFrame from {time}:", open=f"{FAKE}{WHOLE}", close=FAKE, outro="\n\n",
    )  # fmt: skip


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    files.check_class("Idefics3Processor", "SmolVLMProcessor")
    files.check_tokens("image_seq_len", model.image_tokens)
    tile = f"{FAKE}<row_{{row}}_col_{{col}}>"
    text = PictureText(tile=tile, row_close="\n", whole=f"\n{FAKE}{WHOLE}", alone=f"{FAKE}{WHOLE}", close=FAKE)
    return prompt_spec(files, model, picture=text, needed=(FAKE, END), grounding=loc_tokens(files))


COMPOSED = Composed(
    projectors=("pixel-shuffle", "linear", "qformer", "resampler"),
    config="SmolVLMConfig",
    vision="SmolVLMVisionConfig",
    model="SmolVLMForConditionalGeneration",
    settings=lambda side, scale: {"scale_factor": scale},
    images=lambda side, tokens, tiles: {
        "image_processor_type": "SmolVLMImageProcessor", "resample": 1, "do_pad": True,
        "do_image_splitting": tiles > 0, "size": {"longest_edge": max(tiles, 1) * side},
        "max_image_size": {"longest_edge": side},
    },
    processor=lambda side, tokens, tiles: {"processor_class": "SmolVLMProcessor", "image_seq_len": tokens},
    tokens=(FAKE, WHOLE),
    grid=6,
    fits=lambda side: bool((bucketed_positions(side) == range(side**2)).all()),
)  # fmt: skip
TYPES, TITLE = ("smolvlm", "idefics3", "edgevlm_query"), "SmolVLM, SmolVLM2, Idefics3 and Granite-Docling"
TOWERS = ("smolvlm_vision", "smolvlm", "idefics3_vision", "idefics3")
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, unused, towers=TOWERS, composed=COMPOSED)
