"""Moondream 2 in its authors' layout (github.com/vikhyat/moondream, moondream/torch), from revision 2025-06-21 on.

Its config.json leaves everything to the code there, whose values are the defaults here. Points and boxes come out of a
region head. Left out are the tasks that write places into a prompt or among words: questions about places, gaze, and
grounded reasoning. An answer there never holds the token that ends reasoning; here nothing forbids it.
"""

from __future__ import annotations

from edgevlm.checkpoint.chat_template import ChatFormat
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.moondream_parts import read_parallel, read_region, read_sheet
from edgevlm.checkpoint.families.tensors import Names, Plain, prefix_of
from edgevlm.checkpoint.families.transforms import Bare
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import make_spec
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.rules import OverlappingTiles
from edgevlm.inputs.spec import Chat, ImageSpec, RoleText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Act, Linear
from edgevlm.models.spec import Attention
from edgevlm.models.towers.sheet_vit import SheetVit

BEGIN, TASK, ASKED, ANSWER = "<|endoftext|>", "<|md_reserved_0|>", "<|md_reserved_1|>", "<|md_reserved_2|>"
CAPTIONS = {"caption_short": "short", "caption": "normal", "caption_long": "long"}
PLACES = {"detect": "boxes", "point": "points"}
LAYER = {"o": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
VISION_LAYER, TEXT_LAYER = {"norm1": "ln1", "norm2": "ln2"} | LAYER, {"norm1": "ln"} | LAYER


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    """The picture's tokens are written as the first token of every text: there is none of their own."""
    if not any(name.endswith("text.wte") for name in checkpoint.names()):
        raise EdgeVLMError(
            f"{checkpoint.folder} is a Moondream of another layout than that of 2025, whose tensors are called "
            "text.wte and the like: take revision 2025-06-21."
        )
    vision, text, region = (config.section("config").section(key) for key in ("vision", "text", "region"))
    for part in (text, region):
        if part.value("group_size") is not None:
            raise part.wrong("group_size", "null: weights that are not quantized")
    decoder = read_parallel(text)
    vision.choice("proj_out_dim", decoder.hidden_size, {decoder.hidden_size: f"{decoder.hidden_size}"})
    inner = vision.count("proj_inner_dim", 8192)
    projector = (Linear("linear_1", inner), Act("gelu_tanh"), Linear("linear_2", decoder.hidden_size))
    head = read_region(region, decoder.hidden_size, end=0)
    return ModelSpec(checkpoint.name, "moondream1", read_sheet(vision), projector, decoder, 0, region=head)


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    tower, d = spec.vision, spec.decoder
    assert isinstance(tower, SheetVit)
    text = prefix_of(checkpoint, "wte")
    vision, (attention,), width = text.removesuffix("text.") + "vision.", d.block(0).mixers, tower.hidden_size
    assert isinstance(attention, Attention)
    starts = {"q": 0, "k": d.hidden_size, "v": d.hidden_size + attention.kv_heads * attention.head_dim}
    total = d.hidden_size + 2 * attention.kv_heads * attention.head_dim
    return {
        "vision.patch_embedding": f"{vision}patch_emb",
        "vision.position_embedding": Plain(f"{vision}pos_emb", (1, tower.unit**2, width)),
        **{f"vision.layers.{{i}}.{ours}": f"{vision}blocks.{{i}}.{theirs}" for ours, theirs in VISION_LAYER.items()},
        **names.fused_qkv(f"{vision}blocks.", ".attn.qkv", width),
        "vision.post_norm": f"{vision}post_ln",
        **{f"projector.linear_{n}": f"{vision}proj_mlp.fc{n}" for n in (1, 2)},
        "decoder.embed": Bare(f"{text}wte"),
        **{f"decoder.layers.{{i}}.{ours}": f"{text}blocks.{{i}}.{theirs}" for ours, theirs in TEXT_LAYER.items()},
        **names.stacked(f"{text}blocks.{{i}}.attn.qkv", starts, total, "decoder"),
        "decoder.norm": f"{text}post_ln",
        "decoder.head": f"{text}lm_head",
        **{name: f"{text.removesuffix('text.')}{name}" for name in _stems(spec)},
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    """prepare_crops there, with Pillow's Lanczos, as it is without pyvips; pixels in float32, there in bfloat16."""
    tower, half = model.vision, (0.5, 0.5, 0.5)
    assert isinstance(tower, SheetVit)
    crops = files.config.section("config").section("vision").count("max_crops", 12, most=limits.GRID_TILES)
    rule = OverlappingTiles(tower.side, tower.margin * tower.patch_size, crops)
    return make_spec(model, rule, resample="lanczos", mean=half, std=half, tokens=tower.unit**2)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """A question about at most one picture. Other tasks are roles: captions, whose message is a picture alone, and
    places, whose message also names what is looked for."""
    if files.tokenizer.token_to_id(BEGIN) != 0 or files.tokenizer.token_to_id(TASK) != 1:
        raise EdgeVLMError(
            f"'{files.tokenizer_json}' is not the tokenizer of this model, whose own repository holds an older one "
            "that it does not use: put the tokenizer.json of moondream/starmie-v1 in its place. Revisions before "
            "2025-06-21, which have the older one, are not supported."
        )
    if files.config.section("config").section("tokenizer").data:
        raise files.config.wrong("config", "no tokenizer section: other templates than the code's")
    asks = f"{TASK}query{ASKED}"
    captions = {role: RoleText("", "", f"{TASK}caption{ASKED}{length}") for role, length in CAPTIONS.items()}
    asked = {role: f"{TASK}{role}{ASKED} " for role in PLACES}
    places = {role: RoleText(asked[role], "", "", image_after=asked[role], places=PLACES[role]) for role in PLACES}
    roles = {"user": RoleText(asks, "", ANSWER)} | captions | places
    chat = Chat(BEGIN, roles, ANSWER, images_first=True, image_after=asks, pictures=1)
    return prompt_spec(files, model, needed=(BEGIN, TASK, ASKED, ANSWER), chat=ChatFormat(chat))


def _stems(spec: ModelSpec) -> set[str]:
    """What the region head's weights are called, in the files too."""
    assert spec.region is not None
    return {n.removesuffix(".weight").removesuffix(".bias") for n in spec.region.shapes(spec.decoder.hidden_size)}


FAMILY = Family(("moondream1",), "Moondream 2", read, tensor_names, image, prompt)
