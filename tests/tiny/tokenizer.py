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
