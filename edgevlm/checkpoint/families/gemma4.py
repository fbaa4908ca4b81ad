"""Gemma 4 E2B and E4B with pictures: a tower on any grid whose patches are averaged, per-layer embeddings."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.gemma4_text import read_text, text_names, unused_keys
from edgevlm.checkpoint.families.gemma4_tower import read_tower, tower_names
from edgevlm.checkpoint.families.tensors import Names, prefix_of
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import make_spec, processor_type, resample_of, token_pixels
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_frames
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.native import Filled
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io.json import JsonFile
from edgevlm.io.limits import FRAMES
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Average, Linear, Normalize
from edgevlm.models.spec import Norm

PROJECTOR = "embed_vision.embedding_projection.weight"
OPEN, CLOSE = "<|image>", "<image|>"
PLACEHOLDERS = {"image_token_id": 258880, "video_token_id": 258884, "audio_token_id": 258881}


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    vision = read_tower(config.section("vision_config"))
    decoder = read_text(checkpoint, config.section("text_config"), tied=config.flag("tie_word_embeddings", True))
    width, eps = vision.hidden_size, vision.block.norm.eps
    # The mean is multiplied by the root of its width before a norm: eps is divided by its square instead.
    norm = Norm("rms", eps / width, weight=False)
    return ModelSpec(
        name=checkpoint.name,
        family="gemma4",
        vision=vision,
        projector=(
            Average(vision.merge, width),
            Normalize(norm),
            Linear("linear", decoder.hidden_size, bias=False),
        ),
        decoder=decoder,
        image_token_id=config.count("image_token_id", PLACEHOLDERS["image_token_id"], least=0),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    config, vocab = JsonFile(checkpoint.folder / "config.json", checkpoint.config), spec.decoder.vocab_size
    pad = config.section("text_config").count("pad_token_id", 0, least=0, most=vocab - 1)
    rows = [config.count(key, usual, least=0) for key, usual in PLACEHOLDERS.items()]
    return {
        **tower_names(checkpoint, spec.vision),
        "projector.linear": prefix_of(checkpoint, PROJECTOR) + PROJECTOR.removesuffix(".weight"),
        **text_names(checkpoint, tuple(row for row in rows if row < vocab), pad),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Sounds, and keys and values in layers that have none of their own."""
    prefix = prefix_of(checkpoint, PROJECTOR)
    return f"{prefix}audio_tower.", f"{prefix}embed_audio.", *unused_keys(checkpoint, spec.decoder)


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """Pixels from 0 to 1 by the processor, from -1 to 1 in the model; its file has no size."""
    file, half = files.image, (0.5, 0.5, 0.5)
    processor_type(file, "Gemma4ImageProcessor")
    file.require(False, "do_normalize")
    spec = make_spec(
        model, _rule(file, model, 280), resample=resample_of(file, 3), mean=half, std=half,
        rescale_factor=file.number("rescale_factor", 1 / 255),
    )  # fmt: skip
    video = files.video
    if video is files.image:  # transformers takes no other settings for those of videos
        return spec
    return with_frames(
        spec, files, "Gemma4VideoProcessor", _rule(video, model, 70), most=video.count("num_frames", 32, most=FRAMES),
        numbers=((0.0,) * 3, (1.0,) * 3), spread="starts", stamp="{time} ", open=OPEN, close=CLOSE, join=" ",
        token="<|video|>",
    )  # fmt: skip


def _rule(file: JsonFile, model: ModelSpec, usual: int) -> Filled:
    """Of pictures or frames. usual: their most tokens, where the file does not say."""
    file.require(True, "do_resize", "do_rescale")
    if file.side("patch_size", 16) * file.count("pooling_kernel_size", 3) != token_pixels(model):
        raise file.wrong("pooling_kernel_size", f"with patch_size, the {token_pixels(model)} pixels of a token")
    vision = model.vision
    tokens, most = file.count("max_soft_tokens", usual), getattr(vision, "table", 0) // getattr(vision, "merge", 1)
    if tokens > most:
        raise file.wrong("max_soft_tokens", f"at most the {most} tokens in a row that config.json has positions for")
    return Filled(token_pixels(model), tokens)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    text, boxes = PictureText(open=OPEN, close=CLOSE), Grounding("json", 1000, y_first=True)
    return prompt_spec(files, model, picture=text, needed=(OPEN, CLOSE), grounding=boxes)


FAMILY = Family(
    ("gemma4",), "Gemma 4 (E2B, E4B) with pictures", read, tensor_names, image, prompt, unused,
    towers=("gemma4_vision",), decoders=("gemma4_text",),
)  # fmt: skip
