"""Phi-4-multimodal: SigLIP on tiles without their padding, rows that end in a newline, Phi-3's decoder.
Pictures ask for an adapter that its files keep apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.families.transforms import TwiceMapped
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import image_spec, processor_type, token_pixels
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.packing import Packing
from edgevlm.inputs.resample import PLAIN
from edgevlm.inputs.rules import PaddedTiles
from edgevlm.inputs.spec import ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Average, Linear
from edgevlm.models.spec import Attention
from edgevlm.models.towers.qwen_vit import QwenVit

HEAD, EMBED, ADAPTER = "lm_head", "embed_tokens.weight", "vision-lora"
USUAL: dict[str, Any] = {"inner": 8192, "vocab": 200064, "context": 131072, "hidden": 3072, "kv_heads": 8, "eps": 1e-5}
WHITE = (255, 255, 255)  # of padding; mean and deviation of 0.5 make it 1
MERGE, LAYERS = 2, 27  # patches per side of a token; of the tower


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    if checkpoint.adapter is None and (checkpoint.folder / ADAPTER).is_dir():
        raise EdgeVLMError(f"{checkpoint.folder} keeps in {ADAPTER} what it needs for pictures: give it as --adapter.")
    tied = is_tied(checkpoint, config, config, f"{HEAD}.weight", prefix_of(checkpoint, EMBED) + EMBED)
    decoder = read_decoder(config.without("model_type"), tied=tied, kind="llama", partial=True, **USUAL)
    if config.value("sliding_window") is not None and config.count("sliding_window") < decoder.context_length:
        raise config.wrong("sliding_window", f"null or at least {decoder.context_length}")
    section, width = config.section("vision_config"), decoder.hidden_size
    tower = _tower(section)
    steps = Average(MERGE, tower.hidden_size), Linear("linear_1", width), Act("gelu"), Linear("linear_2", width)
    token = section.count("image_token_id", 200010, least=0)
    return ModelSpec(checkpoint.name, TYPES[0], tower, steps, decoder, token, newline=True, separator=True)


def _tower(section: JsonFile) -> QwenVit:
    tower = read_vit(section, image_size=448, patch_size=14, hidden_size=1152, inner=4304)
    side, layers = tower.patches_per_side, section.count("num_hidden_layers", LAYERS)
    section.choice("crop_size", tower.image_size, {tower.image_size: "image_size"})
    if side % MERGE:
        raise section.wrong("image_size", "an even number of patches")
    if type(taken := section.value("feature_layer", -2)) is not int or not -layers <= taken < 0:
        raise section.wrong("feature_layer", "a layer of the tower, counted from -1")
    taken += layers + 1
    made = QwenVit(tower.patch_size, MERGE, None, tower.hidden_size, taken, (), tower.block, patch_bias=True)
    return replace(made, table=side, resample="stepped", filler=1.0)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, text, d = prefix_of(checkpoint, names.PATCHES), prefix_of(checkpoint, EMBED), spec.decoder
    (mixer,), layer, vision = d.block(0).mixers, f"{text}layers.{{i}}.", spec.vision
    width, patch = vision.hidden_size, vision.patch_size
    assert isinstance(mixer, Attention)
    rows, kv, inner = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim, d.block(0).mlp.size
    pictures = prefix_of(checkpoint, "img_projection_up.weight")
    up, down = f"{pictures}img_projection_up", f"{pictures}img_projection_down"

    def row(name: str, *ones: int) -> TwiceMapped:
        return TwiceMapped(f"{pictures}{name}_img_feature_extensor", (*ones, width), up, d.hidden_size, down)

    return {
        **names.siglip(tower),
        "vision.patch_embedding": Plain(f"{tower}embeddings.patch_embedding", (width, 3, patch, patch)),
        **{"projector.linear_1": up, "projector.linear_2": down},
        "newline": row("sub", 1, 1, 1),
        "separator": row("global", 1, 1),
        **names.llama(text, HEAD),
        **names.stacked(f"{layer}self_attn.qkv_proj", {"q": 0, "k": rows, "v": rows + kv}, rows + 2 * kv, "decoder"),
        **names.stacked(f"{layer}mlp.gate_up_proj", {"gate": 0, "up": inner}, 2 * inner, "decoder"),
    }


def unused(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """What is heard, and what of the tower lies behind the layer whose states are taken."""
    tower = prefix_of(checkpoint, names.PATCHES)
    config = JsonFile(checkpoint.folder / "config.json", checkpoint.config)
    count = config.section("vision_config").count("num_hidden_layers", LAYERS)
    behind = (f"{tower}encoder.layers.{i}." for i in range(spec.vision.num_layers, count))
    heard = tower.replace("image_embed.img_processor.", "audio_embed.")
    return f"{tower}post_layernorm.", f"{tower}head.", heard, *behind


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file, vision = files.image, model.vision
    processor_type(file, "Phi4MultimodalImageProcessor")
    side = vision.table * vision.patch_size if isinstance(vision, QwenVit) else 0
    if (file.square("size") if "size" in file.data else side, file.count("patch_size", 14)) != (
        side,
        vision.patch_size,
    ):
        raise file.wrong("size", f"with patch_size, the {side} pixels of the vision encoder in config.json")
    rule = PaddedTiles(side, vision.patch_size, token_pixels(model), file.count("dynamic_hd", 36), WHITE, PLAIN)
    spec = image_spec(files, model, rule, usual=3)
    file.choice("resample", 3, {3: "bicubic"})
    if (spec.mean, spec.std, spec.rescale_factor) != ((0.5,) * 3, (0.5,) * 3, 1 / 255):
        raise file.wrong("image_mean", "0.5 for each colour, and so image_std")
    return replace(spec, resample="bilinear", packing=Packing(whole_last=True))


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    return prompt_spec(files, model)


TYPES, TOWERS = ("phi4_multimodal",), ("phi4_multimodal_vision",)
FAMILY = Family(TYPES, "Phi-4-multimodal", read, tensor_names, image, prompt, unused, towers=TOWERS)
