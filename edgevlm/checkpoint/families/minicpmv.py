"""MiniCPM-V 2.6, 4.0 and 4.5 as their authors publish them: SigLIP's tower on any grid, read by learned queries."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.chat_template import read_chat_template
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import names
from edgevlm.checkpoint.families.decoders import is_tied, read_decoder
from edgevlm.checkpoint.families.family import Family
from edgevlm.checkpoint.families.tensors import Names, Plain, Transposed
from edgevlm.checkpoint.families.tokens import token_id
from edgevlm.checkpoint.families.towers import read_vit
from edgevlm.checkpoint.families.transforms import Asked, Bare, Part
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import make_spec, processor_type
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.inputs.slices import WholeThenSlices
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Resample
from edgevlm.models.spec import Norm
from edgevlm.models.towers.placed_vit import PlacedVit

LLM, TOWER, READER, PICTURE = "llm.model.", "vpm.", "resampler.", "(<image>./</image>)"


def read(checkpoint: Checkpoint, config: JsonFile) -> ModelSpec:
    if config.value("version") not in (2.6, 4.0, 4.5):  # others write pictures otherwise
        raise config.wrong("version", "2.6, 4.0 or 4.5")
    text, first = config.without("model_type"), f"{LLM}layers.0.self_attn."
    stored = {"qwen3": f"{first}q_norm.weight", "qwen2": f"{first}q_proj.bias"}
    kind = next((kind for kind, name in stored.items() if name in checkpoint.names()), "llama")
    tied = is_tied(checkpoint, config, text, "llm.lm_head.weight", f"{LLM}embed_tokens.weight")
    decoder = read_decoder(text, tied=tied, usual=kind)
    shape = read_vit(config.section("vision_config"), image_size=224, patch_size=16, hidden_size=768, heads=12)
    width, norm = decoder.hidden_size, Norm("layer", 1e-6)
    tower = PlacedVit(
        patch_size=shape.patch_size,
        merge=1,
        window=None,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers - config.flag("drop_vision_last_layer", True),
        full=(),
        block=shape.block,
        patch_bias=True,
        table=shape.patches_per_side,
        resample="bucketed",
        post_norm=True,
        places=width,
    )
    narrow = () if tower.hidden_size == width else (Linear("linear_1", width, bias=False),)
    reader = Resample(config.count("query_num", 64, most=limits.PATCHES), max(1, width // 128), width, norm)
    return ModelSpec(
        name=checkpoint.name,
        family="minicpmv",
        vision=tower,
        projector=(*narrow, reader, Linear("linear_2", width, bias=False)),
        decoder=decoder,
        image_token_id=token_id(checkpoint, "<unk>"),
    )


def tensor_names(checkpoint: Checkpoint, spec: ModelSpec) -> Names:
    kernel = (spec.vision.hidden_size, 3, *(spec.vision.patch_size,) * 2)
    return {
        **names.siglip(TOWER),
        "vision.patch_embedding": Plain(f"{TOWER}embeddings.patch_embedding", kernel),
        "projector.linear_1": f"{READER}kv_proj",
        "projector.norm": f"{READER}ln_kv",
        "projector.queries": Asked(f"{READER}query", f"{READER}ln_q", f"{READER}attn."),
        "projector.k": Part(f"{READER}attn.", 1),
        "projector.v": Part(f"{READER}attn.", 2),
        "projector.o": f"{READER}attn.out_proj",
        "projector.norm_after": f"{READER}ln_post",
        "projector.linear_2": Transposed(Bare(f"{READER}proj")),
        **names.llama(LLM, "llm.lm_head"),
    }


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file, half = files.image, (0.5, 0.5, 0.5)
    processor_type(file, "MiniCPMVImageProcessor")
    file.require(True, "slice_mode")
    if file.count("patch_size", 14) != model.vision.patch_size:
        raise file.wrong("patch_size", f"the {model.vision.patch_size} pixels of the tower in config.json")
    mean, std = (file.triple(key) if file.value(key) is not None else half for key in ("norm_mean", "norm_std"))
    rule = WholeThenSlices(
        model.vision.patch_size, file.count("scale_resolution", 448), file.count("max_slice_nums", 9)
    )
    return make_spec(model, rule, resample="bicubic", mean=mean, std=std)


def prompt(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """The authors' code puts a message's items on lines of their own, and asks for no thinking unless told to."""
    file, queries = files.image, next(step.count for step in model.projector if isinstance(step, Resample))
    if file.count("image_feature_size", 64) != queries:
        raise file.wrong("image_feature_size", f"the {queries} of query_num in config.json")
    open_, close = file.text("im_start", "<image>"), file.text("im_end", "</image>")
    tile, tile_close = file.text("slice_start", "<slice>"), file.text("slice_end", "</slice>")
    number, number_close = file.text("im_id_start", "<image_id>"), file.text("im_id_end", "</image_id>")
    text = PictureText(
        open=f"{number}{{index}}{number_close}" if file.flag("use_image_id", False) else "",
        whole=open_, alone=open_, whole_close=close, tile=tile, tile_join=tile_close, row_join="\n",
        row_close=tile_close,
    )  # fmt: skip
    found = read_chat_template(files.folder, files.processor, files.tokenizer_config, files.names, PICTURE)
    chat = replace(found.chat, join="\n", generation=found.chat.direct or found.chat.generation)
    needed = (open_, close, tile, tile_close)
    return prompt_spec(files, model, picture=text, needed=needed, chat=replace(found, chat=chat), placeholder=PICTURE)


TYPES, TITLE, TOWERS = ("minicpmv",), "MiniCPM-V 2.6, 4.0 and 4.5", ("siglip_vision_model",)
FAMILY = Family(TYPES, TITLE, read, tensor_names, image, prompt, towers=TOWERS)
