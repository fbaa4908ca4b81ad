"""tokenizer.json as GGUF metadata: tokens, types, merges, pre-tokenizer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from edgevlm.errors import EdgeVLMError
from edgevlm.export.gguf_.pre_tokenizers import MERGED_WORDS, SINGLE_DIGITS, WHOLE_WORDS, pre_tokenizer
from edgevlm.io import limits
from edgevlm.io.json import read_object

_SPACE = "\u2581"  # SentencePiece's
_DIGITS = re.compile("[0-9]{2}")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms: "gpt2" is byte-level BPE, "llama" SentencePiece's BPE."""

    model: str
    tokens: list[str]
    types: list[int]
    pre: str = "default"  # llama.cpp's name for the pre-tokenizer
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False  # a space is put before the text
    unknown: int | None = None

    def single(self, text: str) -> int | None:
        """The id of the token that stands for exactly `text`, as mtmd looks its markers up; None if there is none."""
        spelled = byte_level(text) if self.model == "gpt2" else text.replace(" ", _SPACE)
        for spelling in (text, spelled):
            if spelling in self.tokens:
                return self.tokens.index(spelling)
        return None


def read_vocabulary(path: Path, size: int) -> Vocabulary:
    """Read a tokenizer.json; ids that the model has and the tokenizer lacks become unused entries up to `size`.

    Raises EdgeVLMError for tokenizers that llama.cpp would read differently.
    """
    try:
        data = read_object(path, "download the checkpoint again", largest=limits.TOKENIZER_FILE)
        model, added = data["model"], data.get("added_tokens") or []
        if model.get("type", "BPE") != "BPE":
            raise _refuse(path, f"its model is {model.get('type')!r}")
        tokens = [f"[PAD{i}]" for i in range(size)]
        types = [int(TokenType.UNUSED)] * size
        for token, i in model["vocab"].items():
            _place(path, tokens, types, i, token, TokenType.NORMAL)
        for token in added:
            kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
            _place(path, tokens, types, token["id"], token["content"], kind)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        if model.get("byte_fallback") and "ByteLevel" not in _kinds(data.get("pre_tokenizer")):
            return _sentencepiece(path, data, tokens, types, merges)
        if model.get("byte_fallback") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise _refuse(path, "its BPE has byte fallback or affixes")
        pre = pre_tokenizer(_steps(data.get("pre_tokenizer"), "pretokenizers"))
        if pre is None:
            raise _refuse(path, f"its pre-tokenizer is {' + '.join(_kinds(data.get('pre_tokenizer'))) or 'missing'}")
        normalizer = _steps(data.get("normalizer"), "normalizers")
        # Qwen2's composes characters first (NFC), llama.cpp's does not: only decomposed text tells them apart.
        if normalizer and (pre not in ("qwen2", "qwen35") or normalizer != [{"type": "NFC"}]):
            raise _refuse(path, "it normalizes text")
        if bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS) and (token := _unmade(data)) is not None:
            if pre in MERGED_WORDS:
                return Vocabulary("gpt2", tokens, types, MERGED_WORDS[pre], merges)
            raise _refuse(path, f"ignore_merges is {bool(model.get('ignore_merges'))}, and no merges make {token!a}")
        joined = (merge.replace(" ", "", 1) for merge in merges)
        if pre in SINGLE_DIGITS and (merge := next(filter(_DIGITS.search, joined), None)):
            raise _refuse(path, f"its pre-tokenizer takes digits one by one, and the merge {merge!a} joins them")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdgeVLMError(
            f"{path} is no usable tokenizer.json ({repr(error)[:120]}): download the checkpoint again."
        ) from None
    return Vocabulary("gpt2", tokens, types, pre, merges)


def _sentencepiece(
    path: Path, data: dict[str, Any], tokens: list[str], types: list[int], merges: list[str]
) -> Vocabulary:
    """SentencePiece's BPE, whose merges tokenizer.json lists: scores that rank pieces as their first merges rank.

    llama.cpp joins any two pieces whose join is a piece, best score first, as SentencePiece does. Files that were
    converted from SentencePiece list all of these merges. It puts a space before each text between special tokens, as
    the normalizer Prepend does; the newer Metaspace puts none before a space, and with "first" none behind a token.
    """
    steps = _steps(data.get("normalizer"), "normalizers")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    pre = _steps(data.get("pre_tokenizer"), "pretokenizers")
    if any(step != replace and step != {"type": "Prepend", "prepend": _SPACE} for step in steps):
        raise _refuse(path, "it normalizes text")
    spaces = [step for step in pre if step.get("type") == "Split" and step.get("pattern") == {"String": " "}]
    if replace in steps and spaces == pre:
        pre = []  # at spaces, of which none is left
    if [step.get("type") for step in pre] not in ([], ["Metaspace"]) or (not pre and replace not in steps):
        raise _refuse(path, f"its pre-tokenizer is {' + '.join(_kinds(data.get('pre_tokenizer'))) or 'missing'}")
    prefixed = any(step["type"] == "Prepend" for step in steps) or any(
        step.get("prepend_scheme", "always") != "never" for step in pre
    )
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault(merge.replace(" ", "", 1), len(ranks))
    last = len(ranks)  # what no merge makes
    scores = [-float(ranks.get(token, last)) for token in tokens]
    for i, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = int(TokenType.BYTE)
        if types[i] != TokenType.NORMAL:
            scores[i] = 0.0
    unknown = tokens.index(data["model"].get("unk_token") or "<unk>")
    types[unknown] = int(TokenType.UNKNOWN)
    return Vocabulary("llama", tokens, types, scores=scores, space_prefix=prefixed, unknown=unknown)


def _steps(config: Any, key: str) -> list[Any]:
    """The steps of a normalizer or a pre-tokenizer, which may be none, one, or a sequence."""
    if not config:
        return []
    return list(config[key]) if config.get("type") == "Sequence" else [config]


def _kinds(config: Any) -> list[str]:
    return [str(step.get("type")) for step in _steps(config, "pretokenizers")]


def _place(path: Path, tokens: list[str], types: list[int], i: int, token: str, kind: TokenType) -> None:
    if not 0 <= i < len(tokens):
        raise EdgeVLMError(
            f"'{path}' gives the token {token[:40]!a} the id {i}, but the model has {len(tokens)} embeddings: "
            "the tokenizer belongs to another model; download the checkpoint again."
        )
    tokens[i], types[i] = token, int(kind)


def _unmade(data: dict[str, Any]) -> str | None:
    """A token of the model that its merges do not make: only there does `ignore_merges` matter."""
    added = {token["content"] for token in data.get("added_tokens") or []}
    bare = {"version": "1.0", "added_tokens": [], "model": data["model"] | {"ignore_merges": False}}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(bare))
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(str(error)) from None
    found = [(token, i) for token, i in data["model"]["vocab"].items() if token not in added]
    made = tokenizer.encode_batch_fast([token for token, _ in found])
    return next((token for (token, i), said in zip(found, made, strict=True) if said.ids != [i]), None)


def _refuse(path: Path, reason: str) -> EdgeVLMError:
    return EdgeVLMError(
        f"The tokenizer {path.name} has no counterpart in llama.cpp ({reason}): byte-level BPE as in SmolLM, GPT-2, "
        "Llama 3 or Qwen2 was expected, or SentencePiece's BPE as in Llama 2; use another target."
    )


def byte_level(text: str) -> str:
    """`text` in GPT-2's byte alphabet (Radford et al. 2019), in which BPE tokens are spelled."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(alphabet[byte] for byte in text.encode())
