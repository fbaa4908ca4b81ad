"""Small tokenizers of the two kinds that published models have: byte-level BPE, and SentencePiece's BPE with bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = """What is in the picture? The picture shows a red circle and two blue squares. How many shapes are there?
There are three green triangles. What colour is the square? It is yellow. Describe the image. A photo of a cat on the
table, a cup of coffee and an open book. Can you read the sign? The answer is 42. Which object is the largest?
USER: ASSISTANT: system user assistant You are a helpful assistant. The quick brown fox jumps over the lazy dog; it
didn't stop, and we've seen it before (twice!). Prices: 10, 25, 730 and 8961. Where is the left-most box? At [1, 340]"""

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_PATTERN = QWEN_PATTERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
LFM2_PATTERN = QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")  # Llama 3's, too
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# DeepSeek-LLM's: line ends, words of alphabets with capitals, punctuation, spaces at the end, ideographs.
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
DEEPSEEK_CUTS = (
    "[\r\n]",
    rf"\s?[{DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
)
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
QWEN_WORDS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")


def _train(model: models.BPE, split: pre_tokenizers.PreTokenizer, size: int, alphabet: Sequence[str]) -> Any:
    """{"vocab": token to id, "merges": pairs} of a BPE of `size` tokens, trained on TEXT."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    return json.loads(tokenizer.to_str())["model"]


def qwen(
    specials: Sequence[str] = (*QWEN_SPECIALS, *QWEN_WORDS), words: int = 340, pattern: str = QWEN_PATTERN
) -> Tokenizer:
    """Qwen2's byte-level BPE of `words` tokens, then the added tokens; QWEN_WORDS are not special, as there."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained = _train(models.BPE(), split, words, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(trained["vocab"], [tuple(pair) for pair in trained["merges"]]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name in specials:
        token = AddedToken(name, special=name not in QWEN_WORDS, normalized=False)
        (tokenizer.add_tokens if name in QWEN_WORDS else tokenizer.add_special_tokens)([token])
    return tokenizer


def byte_level(
    first: Sequence[str],
    added: Sequence[str],
    splits: Sequence[pre_tokenizers.PreTokenizer],
    *,
    bos: str | None = None,
    words: int = 340,
) -> Tokenizer:
    """A byte-level BPE: the special tokens `first`, `words` tokens, then the special tokens `added`.

    splits: the pre-tokenizers, ByteLevel last. bos: a token that the post-processor puts first.
    """
    split = pre_tokenizers.Sequence(list(splits))
    trained = _train(models.BPE(), split, words, sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocab = {token: index for index, token in enumerate([*first, *trained["vocab"]])}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in trained["merges"]]))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*first, *added)])
    if bos is not None:
        marks = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=marks)
    return tokenizer


def isolated(*cuts: str) -> list[pre_tokenizers.PreTokenizer]:
    """Regular expressions whose matches are words by themselves."""
    return [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in cuts]


def bytes_alone() -> pre_tokenizers.PreTokenizer:
    """The spelling of bytes, without GPT-2's own cuts."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def deepseek(added: Sequence[str], bos: str) -> Tokenizer:
    """DeepSeek-LLM's byte-level BPE, which also takes digits one by one."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return byte_level((), added, [*isolated(*DEEPSEEK_CUTS), digits, bytes_alone()], bos=bos)


def tekken(added: Sequence[str]) -> Tokenizer:
    """Mistral's byte-level BPE since 2024: a word that is a token is that token."""
    tokenizer = byte_level((), added, [*isolated(TEKKEN_PATTERN), bytes_alone()])
    tokenizer.model.ignore_merges = True
    return tokenizer


def added_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Each added token's id."""
    return {token["content"]: token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"]}


def llama(added: Sequence[str], *, form: Literal["prepend", "metaspace"] = "prepend", pieces: int = 120) -> Tokenizer:
    """Llama 1/2's SentencePiece BPE: <unk> <s> </s>, 256 bytes, `pieces` merged pieces, the characters, then `added`.

    form: the two ways that tokenizer.json says "a space before the text". "prepend", a normalizer, puts one before
    every text between special tokens (files of transformers 4); "metaspace", a pre-tokenizer, only before the first.
    """
    trained = _train(models.BPE(), pre_tokenizers.Metaspace(prepend_scheme="always"), 1000, [])
    merges = [tuple(pair) for pair in trained["merges"][:pieces]]
    letters = sorted(token for token in trained["vocab"] if len(token) == 1)
    merged = dict.fromkeys(first + second for first, second in merges)
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters]
    vocab = {token: index for index, token in enumerate(order)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if form == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *added]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def gemma(added: Sequence[str], *, bos: bool = True, pieces: int = 120) -> Tokenizer:
    """Gemma's SentencePiece BPE: no space before a text, line breaks as added tokens that are not special.

    <pad> <eos> <bos> <unk> <mask>, 256 bytes, `pieces` merged pieces, the characters, then `added`. bos: put first.
    """
    trained = _train(models.BPE(), pre_tokenizers.Metaspace(prepend_scheme="always"), 1000, [])
    merges = [tuple(pair) for pair in trained["merges"][:pieces]]
    letters = sorted(token for token in trained["vocab"] if len(token) == 1)
    merged = dict.fromkeys(first + second for first, second in merges)
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    lines = ["\n", "\n\n"]
    order = [*first, *lines, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters]
    vocab = {token: index for index, token in enumerate(order)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in lines])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*first, *added)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
        )
    return tokenizer
