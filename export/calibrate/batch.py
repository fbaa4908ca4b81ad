"""Many prompts through the eager backend at once, layer by layer, so that each weight is read once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.data import Example
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import preprocess
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.eager import EagerOps, KVCache
from edgevlm.models.llama import decoder, embed_tokens, head_name
from edgevlm.models.ops import Weights
from edgevlm.models.projector import projector
from edgevlm.models.siglip import vision_tower
from edgevlm.models.spec import ModelSpec
from edgevlm.types import F32, I64

WIDEST = 128 << 20  # bytes that the widest activation of the vision encoder may take: more pictures are left out
TILED = 5  # tiles of those pictures that are split, where the model splits
MAX_ANSWER = 48  # tokens of an answer that are looked at
GENERATED = 24  # tokens of an answer that the model makes itself
_ROWS = 1024


@dataclass(frozen=True)
class Group:
    """Sequences about one picture: what they have in common (S tokens), then each one's own rest."""

    prefix: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Prompts and answers, one behind the other in `ids`, a picture's common part once."""

    tiles: F32  # (T, 3, S, S)
    ids: I64  # (S,)
    groups: tuple[Group, ...]
    predicting: I64  # rows of `ids` whose next token belongs to an answer
    answers: I64  # ... and that token
    image_token_id: int

    def token_weights(self, image: float, text: float, answer: float) -> F32:
        """(S,) weights of mean 1 that give image tokens, other prompt tokens and answers these shares of the whole."""
        kinds = np.where(self.ids == self.image_token_id, 0, 1)
        kinds[self.predicting] = 2
        counts = np.bincount(kinds, minlength=3)
        shares = np.array([image, text, answer]) * (counts > 0)
        each = np.asarray(shares / shares.sum() / np.maximum(counts, 1) * len(kinds), dtype=np.float32)
        return each[kinds]


class PackedOps(EagerOps):
    """`EagerOps` over the rows of all groups; attention stays inside a sequence."""

    def __init__(self, weights: Weights, spec: ModelSpec, batch: Batch, *, head: bool = True) -> None:
        """head: compute logits; otherwise the last operation gives the states that the head would take."""
        super().__init__(weights)
        self.spec, self.batch, self.head = spec, batch, head

    def cached_attention(self, qkv: F32, layer: int) -> F32:
        out = np.empty((len(qkv), self.spec.decoder.num_heads * self.spec.decoder.head_dim), np.float32)
        row = 0
        for group in self.batch.groups:
            self.cache = KVCache(self.spec.decoder)
            for length in (group.prefix, *group.branches):
                self.cache.truncate(group.prefix)
                if length:
                    out[row : row + length] = super().cached_attention(qkv[row : row + length], layer)
                row += length
        return out

    def gelu(self, x: F32, kind: str) -> F32:
        """In place: the architectures use a linear map's output once, and here it is the largest array."""
        for tile in range(len(x)):
            x[tile] = super().gelu(x[tile], kind)
        return x

    def swiglu(self, x: F32) -> F32:
        parts = [super(PackedOps, self).swiglu(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)]
        return np.concatenate(parts)

    def linear(self, x: F32, *names: str) -> F32:
        if not self.head and names == (head_name(self.spec.decoder),):
            return x
        return super().linear(x, *names)

    def last_position(self, x: F32) -> F32:
        return x[self.batch.predicting]


def image_features(ops: PackedOps, spec: ModelSpec, tiles: F32) -> F32:
    """(T, n, D) of all tiles, through any backend that holds the values of `PackedOps`."""
    features: F32 = projector(ops, vision_tower(ops, tiles, spec.vision), spec.projector)
    return features


def answer_states(spec: ModelSpec, weights: Weights, batch: Batch, features: F32) -> F32:
    """(A, D): what the head takes at the rows that predict answers."""
    ops = PackedOps(weights, spec, batch, head=False)
    embeds = embed_tokens(ops, batch.ids)
    embeds[batch.ids == batch.image_token_id] = features.reshape(-1, features.shape[-1])
    states: F32 = decoder(ops, embeds, spec.decoder)
    return states


def encode_tiles(spec: ModelSpec, weights: Weights, tiles: F32) -> F32:
    """(T, n, D) float32 of all tiles, each weight read once."""
    return image_features(PackedOps(weights, spec, _NO_TEXT), spec, tiles)


_NO_TEXT = Batch(np.empty((0, 3, 1, 1), np.float32), np.empty(0, np.int64), (), *(np.empty(0, np.int64),) * 2, -1)


def make_batch(
    spec: ModelSpec,
    weights: Weights,
    image_spec: ImageSpec,
    prompter: Prompter,
    pictures: Sequence[Sequence[Example]],
    share: float = 1.0,
) -> Batch:
    """Preprocess and tokenize as many pictures as fit a share of `WIDEST`; missing answers are the model's, greedy."""
    longest = spec.decoder.context_length - MAX_ANSWER
    tiled: list[F32] = []
    prompts: list[list[I64]] = []
    answers: list[list[I64 | None]] = []
    for pixels, grid, asked in _preprocess(spec, image_spec, pictures, share):
        encoded = [(prompter.encode(e.question, [grid]), e) for e in asked]
        if fitting := [(ids, e) for ids, e in encoded if len(ids) <= longest]:
            tiled.append(pixels)
            prompts.append([ids for ids, _ in fitting])
            answers.append([_answer_ids(prompter, e) for _, e in fitting])
    if not tiled:
        raise EdgeVLMError(
            f"No prompt of the calibration fits the model's context of {spec.decoder.context_length} positions: "
            "ask shorter questions."
        )
    tiles = np.concatenate(tiled)
    if any(ids is None for row in answers for ids in row):
        features = encode_tiles(spec, weights, tiles)
        missing = [(i, j) for i, row in enumerate(answers) for j, ids in enumerate(row) if ids is None]
        starts = np.cumsum([0] + [len(pixels) for pixels in tiled])
        for k in range(0, len(missing), 16):  # as many caches in memory at once
            some = missing[k : k + 16]
            own = [features[starts[i] : starts[i + 1]] for i, _ in some]
            made = _greedy(spec, weights, [prompts[i][j] for i, j in some], own, prompter)
            for (i, j), ids in zip(some, made, strict=True):
                answers[i][j] = ids
    sequences = [
        [(p, a) for p, a in zip(*rows, strict=True) if a is not None] for rows in zip(prompts, answers, strict=True)
    ]
    return _pack(tiles, sequences, prompter.image_token_id)


def _preprocess(
    spec: ModelSpec, image_spec: ImageSpec, pictures: Sequence[Sequence[Example]], share: float
) -> Iterator[tuple[F32, tuple[int, int], Sequence[Example]]]:
    room = max(1, int(share * WIDEST) // (4 * spec.vision.intermediate_size * spec.vision.num_patches))
    for number, asked in enumerate(pictures):
        split = image_spec.split and number % 4 == 0 and room >= TILED
        image = asked[0].image
        tiles = preprocess(open_image(image), replace(image_spec, split=split), max_tiles=TILED)
        if (room := room - len(tiles.pixels)) < 0:
            return
        yield tiles.pixels, tiles.grid, asked


def _answer_ids(prompter: Prompter, example: Example) -> I64 | None:
    """The answer as a chat holds it, up to and with the token that ends it."""
    if example.answer is None:
        return None
    told = [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
    with_answer = prompter.encode(told, add_generation_prompt=False)
    without = prompter.encode(told[:1])
    ids = with_answer[len(without) :]
    stops = np.flatnonzero(np.isin(ids, prompter.spec.stop_ids))
    return ids[: stops[0] + 1 if len(stops) else None][:MAX_ANSWER]


def _greedy(
    spec: ModelSpec, weights: Weights, prompts: list[I64], features: list[F32], prompter: Prompter
) -> list[I64]:
    """Up to `GENERATED` tokens after each prompt, all prompts in step."""
    caches = [KVCache(spec.decoder) for _ in prompts]
    embeds = []
    for ids, own in zip(prompts, features, strict=True):
        x = embed_tokens(EagerOps(weights), ids)
        x[ids == prompter.image_token_id] = own.reshape(-1, own.shape[-1])
        embeds.append(x)
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(GENERATED):
        ops = _StepOps(weights, caches, [len(x) for x in embeds])
        tokens = decoder(ops, np.concatenate(embeds), spec.decoder).argmax(-1)
        for answer, token in zip(out, tokens, strict=True):
            if not answer or answer[-1] not in prompter.spec.stop_ids:
                answer.append(int(token))
        if all(answer[-1] in prompter.spec.stop_ids for answer in out):
            break
        embeds = list(embed_tokens(EagerOps(weights), tokens.astype(np.int64))[:, None])
    return [np.array(answer, np.int64) for answer in out]


class _StepOps(EagerOps):
    """`EagerOps` over the new rows of several sequences, each with a cache of its own."""

    def __init__(self, weights: Weights, caches: list[KVCache], lengths: list[int]) -> None:
        super().__init__(weights)
        self._caches, self._lengths = caches, lengths

    def cached_attention(self, qkv: F32, layer: int) -> F32:
        parts, row = [], 0
        for cache, length in zip(self._caches, self._lengths, strict=True):
            self.cache = cache
            parts.append(super().cached_attention(qkv[row : row + length], layer))
            row += length
        return np.concatenate(parts)

    def last_position(self, x: F32) -> F32:
        newest: F32 = x[np.cumsum(self._lengths) - 1]
        return newest


def _pack(tiles: F32, pictures: list[list[tuple[I64, I64]]], image_token_id: int) -> Batch:
    ids: list[I64] = []
    groups, predicting, answers = [], [], []
    row = 0
    for sequences in pictures:
        prefix = _common([prompt for prompt, _ in sequences])
        ids.append(sequences[0][0][:prefix])
        row += prefix
        branches = []
        for prompt, answer in sequences:
            rest = np.concatenate([prompt[prefix:], answer[:-1]])  # the last token predicts nothing
            first = row + len(prompt) - prefix - 1
            predicting.append(np.arange(first, first + len(answer)))
            answers.append(answer)
            ids.append(rest)
            branches.append(len(rest))
            row += len(rest)
        groups.append(Group(prefix, tuple(branches)))
    return Batch(
        tiles, np.concatenate(ids), tuple(groups), np.concatenate(predicting), np.concatenate(answers), image_token_id
    )


def _common(prompts: list[I64]) -> int:
    """Tokens that all prompts begin with, one less than the shortest at most."""
    shortest = min(map(len, prompts))
    same = np.ones(shortest, bool)
    for prompt in prompts[1:]:
        same &= prompt[:shortest] == prompts[0][:shortest]
    return min(int(np.argmin(np.append(same, False))), shortest - 1)


def divergence(
    spec: ModelSpec, first: Weights, second: Weights, states: tuple[F32, F32]
) -> tuple[F32, npt.NDArray[np.bool_]]:
    """KL(first || second) in nats and top-1 agreement, (A,) each, of next-token distributions from head states (A, D).

    The heads are read once and played in pieces, for the logits of a large vocabulary outweigh everything else.
    """
    head = f"{head_name(spec.decoder)}.weight"
    one, two = first.read(head), second.read(head)
    kl, same = [], []
    for i in range(0, len(states[0]), 128):
        p, q = states[0][i : i + 128] @ one.T, states[1][i : i + 128] @ two.T
        same.append(p.argmax(-1) == q.argmax(-1))
        p, q = _log_softmax(p), _log_softmax(q)
        kl.append((np.exp(p) * (p - q)).sum(-1, dtype=np.float64).astype(np.float32))
    return np.concatenate(kl), np.concatenate(same)


def _log_softmax(logits: F32) -> F32:
    shifted = logits - logits.max(-1, keepdims=True)
    normed: F32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed
