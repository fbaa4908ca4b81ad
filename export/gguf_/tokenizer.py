"""tokenizer.json and prompt.json as GGUF metadata: tokens, types, merges, pre-tokenizer, chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import PromptSpec

MEDIA_MARKER = "<__media__>"  # what llama.cpp puts where a message holds a picture (mtmd_default_marker)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer in llama.cpp's terms."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str  # llama.cpp's name for the pre-tokenizer

    def single(self, text: str) -> int | None:
        """The id of the token that stands for exactly `text`, as mtmd looks its markers up; None if there is none."""
        for spelling in (text, byte_level(text)):
            if spelling in self.tokens:
                return self.tokens.index(spelling)
        return None


def read_vocabulary(path: Path, size: int) -> Vocabulary:
    """Read a tokenizer.json; ids that the model has and the tokenizer lacks become unused entries up to `size`.

    Raises EdgeVLMError for tokenizers that llama.cpp would read differently.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model, added = data["model"], data.get("added_tokens") or []
        if model.get("type", "BPE") != "BPE":
            raise _refuse(path, f"its model is {model.get('type')!r}")
        if model.get("byte_fallback") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise _refuse(path, "its BPE has byte fallback or affixes")
        if data.get("normalizer") is not None:
            raise _refuse(path, "it normalizes text")
        pre = _pre_tokenizer(path, data.get("pre_tokenizer"))
        if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
            raise _refuse(path, f"ignore_merges is {bool(model.get('ignore_merges'))}")
        tokens = [f"[PAD{i}]" for i in range(size)]
        types = [int(TokenType.UNUSED)] * size
        for token, i in model["vocab"].items():
            _place(path, tokens, types, i, token, TokenType.NORMAL)
        for token in added:
            kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
            _place(path, tokens, types, token["id"], token["content"], kind)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeVLMError(f"{path} is no usable tokenizer.json ({error!r}): download the checkpoint again.") from None
    return Vocabulary(tokens, types, merges, pre)


def _place(path: Path, tokens: list[str], types: list[int], i: int, token: str, kind: TokenType) -> None:
    if not 0 <= i < len(tokens):
        raise EdgeVLMError(
            f"{path} gives '{token}' the id {i}, but the model has {len(tokens)} embeddings: "
            "the tokenizer belongs to another model; download the checkpoint again."
        )
    tokens[i], types[i] = token, int(kind)


def _pre_tokenizer(path: Path, config: Any) -> str:
    """llama.cpp knows pre-tokenizers by name only: the name whose regular expressions do what `config` does."""
    steps = (config.get("pretokenizers") if config.get("type") == "Sequence" else [config]) if config else []
    kinds = [step.get("type") for step in steps]
    last = steps[-1] if steps else {}
    if kinds[-1:] == ["ByteLevel"] and not last.get("add_prefix_space"):
        regex = last.get("use_regex", True)
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and regex:
            return "smollm"
        if kinds == ["ByteLevel"] and regex:
            return "gpt-2"
        if kinds == ["Split", "ByteLevel"] and not regex and steps[0].get("pattern", {}).get("Regex") == _LLAMA3:
            return "llama-bpe"
    raise _refuse(path, f"its pre-tokenizer is {' + '.join(map(str, kinds)) or 'missing'}")


def _refuse(path: Path, reason: str) -> EdgeVLMError:
    return EdgeVLMError(
        f"The tokenizer {path.name} has no counterpart in llama.cpp ({reason}): byte-level BPE as in SmolLM, GPT-2 "
        "or Llama 3 was expected; use another target."
    )


def byte_level(text: str) -> str:
    """`text` in GPT-2's byte alphabet (Radford et al. 2019), in which BPE tokens are spelled."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(alphabet[byte] for byte in text.encode())


def chat_template(spec: PromptSpec) -> str:
    """A Jinja template that renders what PromptSpec says, for stock llama.cpp.

    A picture reaches it as a text part with llama.cpp's media marker, so a message that begins with the marker
    begins with an image.
    """
    chat = spec.chat
    roles = "".join(
        f"{{% {'elif' if i else 'if'} message['role'] == {_quote(role)} %}}"
        f"{{% if first_image %}}{{{{ {_quote(text.open_image)} }}}}"
        f"{{% else %}}{{{{ {_quote(text.open_text)} }}}}{{% endif %}}"
        for i, (role, text) in enumerate(chat.roles.items())
    )
    closes = "".join(
        f"{{% {'elif' if i else 'if'} message['role'] == {_quote(role)} %}}{{{{ {_quote(text.close)} }}}}"
        for i, (role, text) in enumerate(chat.roles.items())
    )
    return (
        f"{{{{ {_quote(chat.prefix)} }}}}"
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ {_quote(chat.default_system)} }}}}{{% endif %}}"
        "{% for message in messages %}"
        "{% set content = message['content'] %}"
        "{% if content is string %}"
        f"{{% set first_image = content.startswith('{MEDIA_MARKER}') %}}"
        "{% else %}"
        f"{{% set first_image = content[0]['type'] != 'text' or content[0]['text'].startswith('{MEDIA_MARKER}') %}}"
        "{% endif %}"
        f"{roles}{{% else %}}{{{{ raise_exception('unknown role') }}}}{{% endif %}}"
        f"{{% if content is string %}}{{{{ content + {_quote(chat.text_close)} }}}}"
        "{% else %}{% for part in content %}"
        f"{{% if part['type'] == 'text' %}}{{{{ part['text'] + {_quote(chat.text_close)} }}}}"
        f"{{% else %}}{{{{ {_quote(spec.image_token)} }}}}{{% endif %}}"
        "{% endfor %}{% endif %}"
        f"{closes}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {_quote(chat.generation)} }}}}{{% endif %}}"
    )


def _quote(text: str) -> str:
    """A Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
