"""tokenizer.json: text to ids piece by piece, and ids to text as they come."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer_file import read_tokenizer_file
from edgevlm.io.files import write_text

# What byte-level BPE and SentencePiece's kinds are made of. Others (WordPiece) change text that was shown already.
DECODERS = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
LONG = 1 << 14  # characters from which a text takes the time that others notice
SHRINKS = 16  # characters that a normalizer makes one of, at most; NFC makes one of 4
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def load_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """A tokenizer.json that reads special tokens in its input as text; never cuts or pads it, and draws no lots.

    vocab_size: rows of the model's embedding table, which each token's id must lie in; None leaves that open.
    """
    content, stated = read_tokenizer_file(path, vocab_size)
    with library_errors(f"'{path}' is not a tokenizer.json", "download it again"):
        tokenizer = Tokenizer.from_buffer(content)
    found = {token.content: int(id_) for id_, token in tokenizer.get_added_tokens_decoder().items()}
    for token, number in stated.items():
        if found.get(token) != number:  # the library counts on from the vocabulary's length, whatever the file says
            raise EdgeVLMError(
                f"'{path}' gives the added token {token[:40]!a} the id {number}, but it would be read as "
                f"{found.get(token)}, since other ids are missing or given twice: download it again."
            )
    for step in _decoders(tokenizer):
        if not _only_adds(step):
            shown = json.dumps(step)[:100] if step["type"] in DECODERS else step["type"]
            raise EdgeVLMError(
                f"'{path}' has the decoder {shown}, expected byte-level BPE or SentencePiece's kinds "
                f"({', '.join(DECODERS)}): such a tokenizer is not supported; use another checkpoint."
            )
    # Files saved after training often keep these two; a prompt is never cut or padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None) is not None:  # of BPE: merges left out at random, for training
        tokenizer.model.dropout = None
    return tokenizer


def settle_tokenizer(path: Path) -> None:
    """Write a tokenizer.json without dropout in its place: other programs that read it would draw lots."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["model"].get("dropout") is not None:
        data["model"]["dropout"] = None
        write_text(path, json.dumps(data, ensure_ascii=False, indent=2), force=True)


@contextmanager
def library_errors(what: str, advice: str) -> Iterator[None]:
    """What the library raises, as one EdgeVLMError: bare Exceptions, and of Rust's panics a BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, EdgeVLMError):
        raise
    except BaseException as e:
        said = str(e)[:200]
        raise EdgeVLMError(f"{what} ({said if said.isprintable() else ascii(said)}): {advice}.") from e


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The ids of a text."""
    with library_errors("The tokenizer fails on this text", "ask in other words, or export the bundle again"):
        if len(text) < LONG:
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        # The library lets other threads of Python go on in this call alone.
        (found,) = tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(found.ids)


def longest_token(tokenizer: Tokenizer) -> float:
    """Characters that one token stands for, at most."""
    model = tokenizer.model
    if getattr(model, "fuse_unk", False) and not getattr(model, "byte_fallback", False):
        return math.inf  # any number of unknown characters is one token
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    return longest if tokenizer.normalizer is None else SHRINKS * longest


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of ids; special tokens are left out, or spelled."""
    with library_errors(*_UNREADABLE):
        return str(tokenizer.decode(ids, skip_special_tokens=not special))


_UNREADABLE = "The tokenizer fails on the model's answer", "download the model and export it again"


def _decoders(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {"type": "none"}
    return list(decoder.get("decoders", [decoder]))


def _only_adds(decoder: dict[str, Any]) -> bool:
    """Whether a further token only adds to the text: what a stream has shown stays."""
    if decoder["type"] == "Replace":
        return len(decoder["pattern"].get("String", "")) == 1
    if decoder["type"] == "Strip":  # of one space, which SentencePiece begins a text with
        return bool(decoder["start"] <= 1 and decoder["stop"] == 0)
    return decoder["type"] in DECODERS


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
        self._has_bytes = any(step["type"] == "ByteFallback" for step in _decoders(tokenizer))
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
        with library_errors(*_UNREADABLE):
            text = self._stream.step(self._tokenizer, self._bytes) or ""
        self._bytes = []
        self._shown += len(text)
        return text

    def finish(self) -> str:
        """The rest: U+FFFD if the answer stopped inside a character, and usually nothing."""
        return decode(self._tokenizer, self._ids)[self._shown :]
