"""The default model before training: a fresh encoder, a fresh decoder and a tokenizer of Scenes' words, composed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    set_seed,
)

from edgevlm.io.console import note
from edgevlm.io.files import change_json
from edgevlm.io.folders import replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.scenes import ask, phrases, scenes
from edgevlm.scenes.catalogue import COLOUR_NAMES, NOUNS, SIGN
from edgevlm.scenes.question import LOC_BINS
from edgevlm.train.compose import ComposeOptions, compose

ROLES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 2048
_SPACE = "\u0120"  # how byte-level BPE writes a space


@dataclass(frozen=True)
class Shape:
    """Widths and depths of the default model."""

    vision_width: int = 256
    vision_layers: int = 6
    vision_mlp: int = 640
    width: int = 256
    layers: int = 4
    mlp: int = 640
    tile: int = 160  # pixels
    patch: int = 10
    scale: int = 2  # patches per side of an image token


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each word of Scenes' questions is one token and any other is spelled.

    Merges only ever lengthen the start of a known word, so that the letters of a sign's text come one by one.
    """
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found = {piece for text in _texts() for piece, _ in splitter.pre_tokenize_str(text)}
    # A merge inside a word would break the chains that start at its space.
    pieces = {piece for piece in found if not piece[0].islower()}
    vocabulary = [*ROLES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(vocabulary)
    merges = []
    for piece in sorted(pieces, key=lambda piece: (piece[0] != _SPACE, piece)):
        for end in range(2, len(piece) + 1):
            if piece[:end] not in known:
                known.add(piece[:end])
                vocabulary.append(piece[:end])
                merges.append((piece[: end - 1], piece[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ROLES])
    tokenizer.add_tokens([AddedToken(f"<loc_{n}>", special=False, normalized=False) for n in range(LOC_BINS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def _texts() -> Iterable[str]:
    """Every question form, every name with a space before it, and the words of answers."""
    yield from ("User:", "Assistant:", "System:", " User:", "\n", "\n\n")
    for value in vars(phrases).values():
        forms = value.values() if isinstance(value, dict) else [value]
        for form in forms:
            yield from form if isinstance(form, tuple) else ()
    names = [name for noun in (*NOUNS, SIGN) for name in (noun.name, noun.plural)]
    yield from (f" {word}" for word in (*names, *COLOUR_NAMES, *phrases.NUMBERS, *phrases.ON_SIDE.values()))
    yield from (f" {word}" for word in ("yes", "no", "left", "right", "above", "below", "top", "bottom", "a", "an"))
    yield from (" the, and, that says.", " say", " two signs", " in the top left corner")
    for scene in scenes("train", 0, 300):
        yield from (f"{q.question} {q.answer}" for q in ask(scene) if q.skill not in ("text", "caption", "grounding"))


def build(out: Path, shape: Shape, seed: int = 0) -> Path:
    """Write the untrained checkpoint, and beside it its encoder and its decoder."""
    tokenizer = build_tokenizer()
    set_seed(seed)
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=shape.vision_width,
            intermediate_size=shape.vision_mlp,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_width // 64,
            image_size=shape.tile,
            patch_size=shape.patch,
            vision_use_head=False,
        )
    )
    positions = encoder.get_submodule("embeddings" if hasattr(encoder, "embeddings") else "vision_model.embeddings")
    with torch.no_grad():
        weight = positions.position_embedding.weight
        weight.copy_(0.5 * plane_waves(shape.tile // shape.patch, weight.shape[1]))
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.width // 64,
            num_key_value_heads=shape.width // 128,
            head_dim=64,
            initializer_range=0.05,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    halves = out.with_name(out.name + "-encoder"), out.with_name(out.name + "-decoder")
    places = tokenizer.convert_tokens_to_ids([f"<loc_{n}>" for n in range(LOC_BINS)])
    with torch.no_grad():
        decoder.get_input_embeddings().weight[places] = 0.07 * waves(LOC_BINS, shape.width)
    for half, parts in zip(halves, ([encoder], [decoder, tokenizer]), strict=True):
        with replacing(half, CHECKPOINT, force=True) as output:
            for part in parts:
                part.save_pretrained(output.new)
            output.publish()
    options = ComposeOptions(
        str(halves[0]), str(halves[1]), "pixel-shuffle", out, scale_factor=shape.scale, tiles=0, seed=seed, force=True
    )
    # --tiles cuts 2 x 2; one tile keeps the short side sharp
    edge = {"size": {"longest_edge": 2 * shape.tile}}
    return compose(options, note, lambda folder: change_json(folder / "preprocessor_config.json", edge))


def plane_waves(side: int, width: int) -> Tensor:
    """(side * side, width): waves of the row, then of the column.

    From such positions attention to neighbours is soon learnt.
    """
    line = waves(side, width // 2, 80)
    return torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], 1)


def waves(places: int, width: int, longest: float = 2 * LOC_BINS) -> Tensor:
    """(places, width): sines, then cosines, of wavelengths from 4 places up: near places have like rows.

    So what a model learns about one <loc> word applies to its neighbours, too.
    """
    count = width // 2
    phase = torch.arange(places)[:, None] * 2 * math.pi / 4 / (longest / 4) ** (torch.arange(count) / (count - 1))
    return torch.cat([phase.sin(), phase.cos()], 1)
