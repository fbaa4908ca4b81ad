"""What a tokenizer.json may ask for, checked before the library reads it.

It is a small program: its steps multiply text, and its expressions backtrack. A hostile one hangs on ordinary text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.expressions import is_fast
from edgevlm.io import limits
from edgevlm.io.regular import read_regular

MODELS = ("BPE", "Unigram", "WordLevel")
MOST_STEPS = 64  # of normalizers, pre-tokenizers and decoders: 5
MOST_TOKEN = 4096  # characters of a token: 128 spaces
MOST_GROWTH = 100  # characters that the normalizers may make of one: NFKC makes 18 of U+FDFA, then a space is added

# Characters that each kind may make of one; Replace, Prepend and Precompiled say it themselves.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "ByteLevel": 4, "BertNormalizer": 4}
_ADVICE = "download it again"


def read_tokenizer_file(path: Path, vocab_size: int | None) -> tuple[bytes, dict[str, int]]:
    """The bytes of a tokenizer.json that is safe to use, and the ids that it gives to its added tokens.

    vocab_size: rows of the model's embedding table, which every token's id must lie in; None leaves that open.
    EdgeVLMError for a file that is missing, damaged, too large, or asks for too much.
    """
    try:
        content = read_regular(path, limits.TOKENIZER_FILE, _ADVICE)
        data = _parse(content)
    except FileNotFoundError:
        raise EdgeVLMError(
            f"'{path}' is missing: a model needs its tokenizer.json; download or export it again."
        ) from None
    except OSError as e:
        raise EdgeVLMError(f"'{path}' cannot be read ({e.strerror}): check its permissions.") from None
    except ValueError as e:
        raise EdgeVLMError(f"'{path}' is not a tokenizer.json ({str(e)[:200]}): {_ADVICE}.") from None
    try:
        _check(path, data, vocab_size)
        return content, {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, binascii.Error) as e:
        raise EdgeVLMError(f"'{path}' is not a tokenizer.json ({type(e).__name__}: {e!s:.200}): {_ADVICE}.") from None


def _parse(content: bytes) -> Any:
    """As `parse_json`, which looks at each value for longer than the library takes to read the file."""
    if content.count(b"{") + content.count(b"[") > limits.TOKENIZER_FILE // limits.JSON_BYTES_PER_CONTAINER:
        raise ValueError("it holds too many objects and lists")
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the library may take the other one
        raise ValueError("a key occurs twice in one object")
    return found


def _check(path: Path, data: dict[str, Any], vocab_size: int | None) -> None:
    kind = data["model"].get("type", "BPE")
    if kind not in MODELS:
        raise _unsupported(path, f"has the model {str(kind)[:40]!r}, expected {', '.join(MODELS)}")
    _check_ids(path, data, limits.VOCABULARY if vocab_size is None else vocab_size)
    steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in _steps(data.get(part))]
    if len(steps) > MOST_STEPS:
        raise _unsupported(path, f"works in {len(steps)} steps, at most {MOST_STEPS} are taken")
    for step in steps:
        pattern = step.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        if expression is not None and not is_fast(expression):
            raise _unsupported(path, f"has the expression {expression[:200]!a}, which can take very long on some texts")
    for part in ("normalizer", "decoder"):
        growth = 1
        for step in _steps(data.get(part)):
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise _unsupported(path, f"can make {growth} characters of one, at most {MOST_GROWTH} are taken")


def _check_ids(path: Path, data: dict[str, Any], size: int) -> None:
    vocabulary = data["model"]["vocab"]
    added = [(token["content"], token["id"]) for token in data.get("added_tokens") or ()]
    if not isinstance(vocabulary, dict):  # Unigram's list of pieces and their scores
        added += [(piece, number) for number, (piece, _) in enumerate(vocabulary)]
        vocabulary = {}
    # A hundred thousand and more: gone through by the interpreter's own loops.
    token, number = max((*added, ("", 0)), key=_id)
    if vocabulary and (largest := max(vocabulary.values())) > number:
        token, number = next(entry for entry in vocabulary.items() if entry[1] == largest)
    if not number < size:
        raise EdgeVLMError(
            f"'{path}' gives the token {token[:40]!a} the id {number}, but the model has {size} embeddings: "
            "the tokenizer belongs to another model; download the checkpoint again."
        )
    longest = max(max(map(len, vocabulary), default=0), max((len(token) for token, _ in added), default=0))
    if longest > MOST_TOKEN:
        raise _unsupported(path, f"has a token of {longest} characters, at most {MOST_TOKEN} are taken")


def _id(entry: tuple[str, int]) -> int:
    return entry[1]


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the steps that it is made of."""
    if part is None:
        return
    inner = [part[name] for name in ("normalizers", "pretokenizers", "decoders") if part.get(name) is not None]
    if not inner:
        yield part
    for steps in inner:
        for step in steps:
            yield from _steps(step)


def _growth(step: dict[str, Any]) -> int:
    kind = step["type"]
    if kind == "Replace":
        found = step["pattern"].get("String")
        # An expression may match nothing at all, before each character.
        return max(1, -(-len(step["content"]) // len(found))) if found else 1 + len(step["content"])
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled" and step["precompiled_charsmap"]:
        table = base64.b64decode(step["precompiled_charsmap"])
        texts = table[4 + int.from_bytes(table[:4], "little") :]  # SentencePiece: a trie, then what it points at
        return max(1, *(len(text) for text in texts.split(b"\0")))
    return _GROWTH.get(kind, 1)


def _unsupported(path: Path, what: str) -> EdgeVLMError:
    return EdgeVLMError(f"'{path}' {what}: such a tokenizer is not supported; use another checkpoint.")
