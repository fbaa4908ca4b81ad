"""Processor files of a SmolVLM, Idefics3 or LLaVA checkpoint -> ImageSpec and PromptSpec.

Reads both layouts: preprocessor_config.json beside processor_config.json, and, since transformers 5,
everything nested in processor_config.json.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgevlm.checkpoint.chat_template import END, IMAGE, read_chat_format, token_text
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.prompt import load_tokenizer
from edgevlm.inputs.spec import IMAGE_SPEC_VERSION, PROMPT_SPEC_VERSION, ImageSpec, PromptSpec
from edgevlm.io.json import JsonFile, read_json_file
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.vit import Vit

IMAGE_PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
WHOLE_PICTURE = "SiglipImageProcessor"  # one tile, stretched to a square: what LLaVA has with a SigLIP tower
PROCESSORS = ("Idefics3Processor", "SmolVLMProcessor")
LLAVA = "LlavaProcessor"
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
# Constants of the processors' code, in no file of the checkpoint.
MAX_EDGE = 4096
SHORT_EDGE_MULTIPLE = 2
BACKGROUND = (255, 255, 255)

FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"


def read_image_spec(folder: Path, vision: Vit) -> ImageSpec:
    """The image rules of the checkpoint in `folder`; EdgeVLMError names the file and key that are wrong."""
    file = _image_processor(folder)
    name = file.data.get("image_processor_type")
    plain = name.removesuffix("Fast").removesuffix("Pil") if isinstance(name, str) else ""
    if plain not in (*IMAGE_PROCESSORS, WHOLE_PICTURE):
        raise file.wrong("image_processor_type", " or ".join((*IMAGE_PROCESSORS, WHOLE_PICTURE)))
    whole = plain == WHOLE_PICTURE
    side = vision.image_size
    if (file.square("size") if whole else file.edge("max_image_size")) != side:
        key = "size" if whole else "max_image_size"
        raise file.wrong(key, f"the {side} pixels of the vision encoder in config.json")
    if whole and not file.flag("do_resize"):
        raise file.wrong("do_resize", "true")
    resample = file.data.get("resample")
    if type(resample) is not int or resample not in RESAMPLE:
        raise file.wrong("resample", "1 (lanczos), 2 (bilinear) or 3 (bicubic)")
    factor = file.number("rescale_factor") if file.flag("do_rescale") else 1.0
    normalize = file.flag("do_normalize")
    mean = file.triple("image_mean") if normalize else (0.0, 0.0, 0.0)
    std = file.triple("image_std") if normalize else (1.0, 1.0, 1.0)
    if 0.0 in std:
        raise file.wrong("image_std", "three numbers other than 0")
    return ImageSpec(
        version=IMAGE_SPEC_VERSION,
        strategy="tiles_then_global",
        tile_size=side,
        longest_edge=file.edge("size") if file.flag("do_resize") and not whole else None,
        max_edge=MAX_EDGE,
        short_edge_multiple=SHORT_EDGE_MULTIPLE,
        split=not whole and file.flag("do_image_splitting"),
        resample=RESAMPLE[resample],
        background=BACKGROUND,
        rescale_factor=factor,
        mean=mean,
        std=std,
    )


def read_prompt_spec(folder: Path, model: ModelSpec) -> PromptSpec:
    """The chat format, image tokens and stop tokens of the checkpoint in `folder`."""
    processor = read_json_file(folder / "processor_config.json", required=False)
    name = processor.data.get("processor_class", PROCESSORS[0])
    llava = model.family == "llava"
    known = (LLAVA,) if llava else PROCESSORS
    if name not in known and not (llava and "processor_class" not in processor.data):
        raise processor.wrong("processor_class", " or ".join(known))
    if not llava and processor.data.get("image_seq_len", model.image_tokens) != model.image_tokens:
        raise processor.wrong("image_seq_len", f"the {model.image_tokens} image tokens per tile of config.json")
    tokenizer_config = read_json_file(folder / "tokenizer_config.json", required=False)
    names = read_json_file(folder / "special_tokens_map.json", required=False).data | tokenizer_config.data
    tokenizer_json = folder / "tokenizer.json"
    tokenizer = load_tokenizer(tokenizer_json)
    ids = _special_tokens(tokenizer_json, tokenizer, model, (IMAGE,) if llava else (IMAGE, FAKE, END))
    prefix, roles, generation = read_chat_format(folder, processor, tokenizer_config, names)
    bos = token_text(names, "bos_token")
    # transformers puts the tokenizer's special tokens around a prompt that does not start with the bos token.
    if tokenizer.encode("", add_special_tokens=True).ids and not (bos and prefix.startswith(bos)):
        raise EdgeVLMError(
            f"'{tokenizer_json}' adds special tokens to every text, expected a chat template that starts "
            "with the bos_token instead: use the tokenizer and chat template of the original model."
        )
    stops = _eos_ids(folder, model) | ({ids[END]} if END in ids else set())
    if not stops:
        raise EdgeVLMError(f"'{folder}' names no eos_token_id, expected one in generation_config.json: add it there.")
    return PromptSpec(
        version=PROMPT_SPEC_VERSION,
        prefix=prefix,
        roles=roles,
        generation=generation,
        image_token=IMAGE,
        image_token_id=ids[IMAGE],
        image_tokens=model.image_tokens,
        tile_open="" if llava else f"{FAKE}<row_{{row}}_col_{{col}}>",
        row_close="" if llava else "\n",
        global_open="" if llava else f"\n{FAKE}{GLOBAL}",
        single_open="" if llava else f"{FAKE}{GLOBAL}",
        image_close="" if llava else FAKE,
        stop_ids=tuple(sorted(stops)),
        bos_id=ids.get(bos),
        pad_id=ids.get(token_text(names, "pad_token")),
    )


def _image_processor(folder: Path) -> JsonFile:
    nested = read_json_file(folder / "processor_config.json", required=False)
    inner = nested.data.get("image_processor")
    if inner is None:
        return read_json_file(folder / "preprocessor_config.json")
    if not isinstance(inner, dict):
        raise nested.wrong("image_processor", "an object")
    return JsonFile(nested.path, inner, "image_processor.")


def _special_tokens(path: Path, tokenizer: Tokenizer, model: ModelSpec, needed: tuple[str, ...]) -> dict[str, int]:
    tokens = tokenizer.get_added_tokens_decoder()
    ids: dict[str, int] = {}
    for id_, token in tokens.items():
        if not token.special:
            continue
        if token.lstrip or token.rstrip or token.single_word:
            raise EdgeVLMError(
                f"'{path}' has the special token '{token.content}' with lstrip, rstrip or single_word set, "
                "expected none of them: use the tokenizer of the original model."
            )
        ids[token.content] = int(id_)
    for text in needed:
        if text not in ids:
            raise EdgeVLMError(
                f"'{path}' lacks the special token '{text}' among added_tokens: "
                "use a SmolVLM or Idefics3 checkpoint with its original tokenizer."
            )
    if ids[IMAGE] != model.image_token_id:
        raise EdgeVLMError(
            f"'{path}' has '{IMAGE}' as token {ids[IMAGE]}, expected {model.image_token_id} "
            "(image_token_id in config.json): use the tokenizer that belongs to the checkpoint."
        )
    return ids


def _eos_ids(folder: Path, model: ModelSpec) -> set[int]:
    """generation_config.json decides, as in transformers; without it or its key, config.json does."""
    file = read_json_file(folder / "generation_config.json", required=False)
    if file.data.get("eos_token_id") is None:
        file = read_json_file(folder / "config.json", required=False)
        text = file.data.get("text_config")
        if file.data.get("eos_token_id") is None and isinstance(text, dict):
            file = JsonFile(file.path, text, "text_config.")
    found = file.data.get("eos_token_id")
    eos = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < model.decoder.vocab_size for i in eos):
        raise file.wrong("eos_token_id", f"token ids below the vocabulary's {model.decoder.vocab_size}")
    return set(eos)
