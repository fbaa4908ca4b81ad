"""The tokenizer and processor files of a composed model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from edgevlm.checkpoint.families.composed import CHAT_TEMPLATE, END, IMAGE, Composed
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.io import limits
from edgevlm.io.json import read_json_file, read_object


@dataclass(frozen=True)
class Vocabulary:
    size: int
    image: int
    end: int
    pad: int
    bos: int | None


def extend_tokenizer(source: Path, out: Path, layout: Composed) -> Vocabulary:
    """Write the language model's tokenizer with the layout's tokens added and a chat template. Existing tokens stay."""
    load_tokenizer(source / "tokenizer.json")  # raises EdgeVLMError for a damaged file
    settings = read_object(source / "tokenizer.json", "download it again", largest=limits.TOKENIZER_FILE)
    settings["post_processor"] = None  # the chat template places the first token
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    sides = range(1, layout.grid + 1)
    names = [END, IMAGE, *layout.tokens, *(f"<row_{row}_col_{col}>" for row in sides for col in sides)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    config = read_json_file(source / "tokenizer_config.json", required=False).data
    bos, pad = (_text(config.get(key)) for key in ("bos_token", "pad_token"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=END,
        pad_token=pad or END,
        unk_token=_text(config.get("unk_token")),
        additional_special_tokens=names[:1] + names[1:4],
        clean_up_tokenization_spaces=False,
        chat_template=(bos or "") + CHAT_TEMPLATE,
    )
    fast.save_pretrained(out)

    def id_of(token: str) -> int:
        found = tokenizer.token_to_id(token)
        if found is None:
            raise EdgeVLMError(f"'{source}' names the token '{token}', which its tokenizer.json lacks: download it.")
        return int(found)

    return Vocabulary(
        size=tokenizer.get_vocab_size(with_added_tokens=True),
        image=id_of(IMAGE),
        end=id_of(END),
        pad=id_of(pad or END),
        bos=None if bos is None else id_of(bos),
    )


def write_processor(out: Path, layout: Composed, side: int, tokens: int, tiles: int) -> None:
    """The image processor's and the processor's settings."""
    processor = layout.processor(side, tokens, tiles)
    images = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255,
        "processor_class": processor["processor_class"], **layout.images(side, tokens, tiles),
    }  # fmt: skip
    for name, values in (("preprocessor_config.json", images), ("processor_config.json", processor)):
        (out / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def _text(token: Any) -> str | None:
    """tokenizer_config.json stores a token as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
