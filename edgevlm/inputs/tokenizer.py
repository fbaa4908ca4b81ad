"""tokenizer.json: text to ids piece by piece, and ids to text as they come."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgevlm.errors import EdgeVLMError

# What byte-level BPE and SentencePiece's kinds are made of. Others (WordPiece) change text that was shown already.
DECODERS = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json that reads special tokens in its input as text; never cuts or pads it."""
    if not path.is_file():
        raise EdgeVLMError(f"'{path}' is missing: a model needs its tokenizer.json; download or export it again.")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())  # its own reader takes no names that are not UTF-8
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the binding raises bare Exception, and of Rust's panics a BaseException
        raise EdgeVLMError(f"'{path}' is not a tokenizer.json ({e}): download it again.") from e
    for kind in _decoders(tokenizer):
        if kind not in DECODERS:
            raise EdgeVLMError(
                f"'{path}' has the decoder {kind}, expected byte-level BPE or SentencePiece's kinds "
                f"({', '.join(DECODERS)}): such a tokenizer is not supported; use another checkpoint."
            )
    # Files saved after training often keep these two; a prompt is never cut or padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _decoders(tokenizer: Tokenizer) -> list[str]:
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {"type": "none"}
    return [part["type"] for part in decoder.get("decoders", [decoder])]


def inner_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The same for text that does not stand at the prompt's beginning.

    Metaspace with prepend_scheme "first" puts a space before a text only where it stands at the beginning of all.
    """
    before = tokenizer.pre_tokenizer
    rules: dict[str, Any] = json.loads(before.__getstate__()) if before else {}
    parts = rules.get("pretokenizers", [rules])
    if not any(part.get("prepend_scheme") == "first" for part in parts):
        return tokenizer
    text = json.loads(tokenizer.to_str())
    for part in text["pre_tokenizer"].get("pretokenizers", [text["pre_tokenizer"]]):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    inner = Tokenizer.from_str(json.dumps(text))
    inner.encode_special_tokens = True
    return inner


class StreamDecoder:
    """Text as tokens come. The pieces join to the text of all ids; none holds half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._silent = {int(id_) for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._stream = DecodeStream(skip_special_tokens=True)
        self._has_bytes = "ByteFallback" in _decoders(tokenizer)
        self._bytes: list[int] = []  # of a run of SentencePiece's byte tokens, which are valid UTF-8 together or not
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty, and always for special and unknown tokens."""
        token_id = int(token_id)
        token = None if token_id < 0 or token_id in self._silent else self._tokenizer.id_to_token(token_id)
        if token is None:
            return ""
        self._ids.append(token_id)
        self._bytes.append(token_id)
        if self._has_bytes and _BYTE.fullmatch(token):
            return ""
        text = self._stream.step(self._tokenizer, self._bytes) or ""
        self._bytes = []
        self._shown += len(text)
        return text

    def finish(self) -> str:
        """The rest: U+FFFD if the answer stopped inside a character, and usually nothing."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._shown :]
