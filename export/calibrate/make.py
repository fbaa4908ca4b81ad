"""Pictures and questions to a batch: preprocessed, tokenized, and answered by the model where no answer is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.batch import Batch, Group
from edgevlm.export.calibrate.data import Example
from edgevlm.export.calibrate.play import SequenceOps, encode_batch
from edgevlm.inputs.decode import decode_image
from edgevlm.inputs.layout import Layout, decoder_inputs, merge, split_features
from edgevlm.inputs.preprocess import Prepared, normalize, plan, prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import decoder, embed_tokens
from edgevlm.models.eager import EagerOps, attend
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.spec import Attention
from edgevlm.models.states import States
from edgevlm.models.work import encoding
from edgevlm.types import F32, I64, U8

WIDEST = 128 << 20  # bytes that the widest activation of the vision encoder may take: more pictures are left out
FEWEST = 4  # pictures, whatever they take
TILED = 5  # tiles of those pictures that are split, where the model splits
MAX_ANSWER = 48  # tokens of an answer that are looked at
GENERATED = 24  # tokens of an answer that the model makes itself


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
    views: list[list[U8]] = []
    prompts: list[list[tuple[I64, Layout]]] = []
    answers: list[list[I64 | None]] = []
    whole = spec.decoder.mask == "prompt"  # which sees itself: questions about a picture then share no beginning
    for part, examples in _preprocess(spec, image_spec, pictures, share):
        encoded = [(prompter.encode(e.question, [part.tokens]), e) for e in examples[: 1 if whole else None]]
        if fitting := [(prompt, e) for prompt, e in encoded if len(prompt[0]) <= longest]:
            views.append(part.views)
            prompts.append([prompt for prompt, _ in fitting])
            answers.append([_answer_ids(prompter, e) for _, e in fitting])
    if not views:
        raise EdgeVLMError(
            f"No prompt of the calibration fits the model's context of {spec.decoder.context_length} positions: "
            "ask shorter questions."
        )
    feeds = spec.vision.join([spec.vision.feeds(normalize(view, image_spec)) for own in views for view in own])
    if any(ids is None for row in answers for ids in row):
        features = encode_batch(spec, weights, replace(_NO_TEXT, feeds=feeds))
        missing = [(i, j) for i, row in enumerate(answers) for j, ids in enumerate(row) if ids is None]
        starts = np.cumsum([0] + [sum(sum(span.features) for span in rows[0][1].spans) for rows in prompts])
        for k in range(0, len(missing), 16):  # as many caches in memory at once
            some = missing[k : k + 16]
            own = [features[starts[i] : starts[i + 1]] for i, _ in some]
            made = _greedy(spec, weights, [prompts[i][j] for i, j in some], own, prompter)
            for (i, j), ids in zip(some, made, strict=True):
                answers[i][j] = ids
    sequences = [
        [(*p, a) for p, a in zip(*rows, strict=True) if a is not None] for rows in zip(prompts, answers, strict=True)
    ]
    return _pack(feeds, sequences, prompter.image_token_id, whole)


_EMPTY = np.empty(0, np.int64)
_NO_TEXT = Batch({}, (), _EMPTY, (), _EMPTY, _EMPTY, -1)


def _preprocess(
    spec: ModelSpec, image_spec: ImageSpec, pictures: Sequence[Sequence[Example]], share: float
) -> Iterator[tuple[Prepared, Sequence[Example]]]:
    room = int(share * WIDEST) // 4  # float32 numbers
    for number, examples in enumerate(pictures):
        picture = decode_image(examples[0].image)
        (width, height) = plan(*picture.size, image_spec, max_tiles=1)[0].size
        split = number % 4 == 0 and room >= TILED * encoding(spec, height, width).widest
        part = prepare(picture, image_spec, max_tiles=TILED if split else 1)
        room -= sum(encoding(spec, *view.shape[:2]).widest for view in part.views)
        if room < 0 and number >= FEWEST:
            return
        yield part, examples


def _answer_ids(prompter: Prompter, example: Example) -> I64 | None:
    """The answer as a chat holds it, up to and with the token that ends it."""
    if example.answer is None:
        return None
    if "assistant" not in prompter.spec.chat.roles:  # no chat: the answer's own tokens, and the end
        text = prompter.tokenizer.encode(example.answer, add_special_tokens=False).ids
        return np.array([*text, prompter.spec.stop_ids[0]], np.int64)[:MAX_ANSWER]
    messages = [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
    with_answer, _ = prompter.encode(messages, add_generation_prompt=False)
    without, _ = prompter.encode(messages[:1])
    ids = with_answer[len(without) :]
    stops = np.flatnonzero(np.isin(ids, prompter.spec.stop_ids))
    return ids[: stops[0] + 1 if len(stops) else None][:MAX_ANSWER]


def _greedy(
    spec: ModelSpec,
    weights: Weights,
    prompts: list[tuple[I64, Layout]],
    features: list[F32],
    prompter: Prompter,
) -> list[I64]:
    """Up to `GENERATED` tokens after each prompt, all prompts in step."""
    d, held, past = spec.decoder, [States() for _ in prompts], [0] * len(prompts)
    embeds = [
        merge(embed_tokens(EagerOps(weights), ids, d), layout, split_features(own, layout))
        for (ids, layout), own in zip(prompts, features, strict=True)
    ]
    layouts = [layout for _, layout in prompts]
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(GENERATED):
        calls = [decoder_inputs(d, *call) for call in zip(layouts, past, map(len, embeds), strict=True)]
        tokens = decoder(_StepOps(weights, held, calls), np.concatenate(embeds), d).argmax(-1)
        past = [n + len(x) for n, x in zip(past, embeds, strict=True)]
        for answer, token in zip(out, tokens, strict=True):
            if not answer or answer[-1] not in prompter.spec.stop_ids:
                answer.append(int(token))
        if all(answer[-1] in prompter.spec.stop_ids for answer in out):
            break
        embeds = list(embed_tokens(EagerOps(weights), tokens.astype(np.int64), d)[:, None])
    return [np.array(answer, np.int64) for answer in out]


class _StepOps(SequenceOps):
    """`EagerOps` over the new rows of several sequences, each with states of its own."""

    def __init__(self, weights: Weights, held: list[States], calls: list[dict[str, npt.NDArray[Any]]]) -> None:
        """calls: each sequence's inputs; RoPE rows stand one behind the other, masks stay apart."""
        rows = {
            name: np.concatenate([call[name] for call in calls]) for name in calls[0] if not name.startswith("mask")
        }
        super().__init__(weights, inputs=rows)
        self._held, self._calls = held, calls
        some = next(name for name in calls[0] if name.startswith("mask"))
        ends = np.cumsum([0] + [len(call[some]) for call in calls])
        self._rows = [slice(a, b) for a, b in pairwise(ends)]

    def append(self, state: str, x: F32) -> list[F32]:  # type: ignore[override]
        return [held.append(state, x[:, rows]) for held, rows in zip(self._held, self._rows, strict=True)]

    def grown(self, state: str) -> list[F32]:  # type: ignore[override]
        return [held.growing[state] for held in self._held]

    def _each(self, call: Callable[[Any], F32]) -> list[F32]:
        found = []
        for held, rows in zip(self._held, self._rows, strict=True):
            self.states = held
            found.append(call(rows))
        return found

    def attend(self, q: F32, k: Any, v: Any, a: Attention, mask: str | None) -> F32:
        assert mask is not None
        parts = zip(self._rows, k, v, (call[mask] for call in self._calls), strict=True)
        return np.concatenate([attend(q[:, rows], keys, values, a, seen) for rows, keys, values, seen in parts], axis=1)

    def last(self, x: F32) -> F32:
        return x[[rows.stop - 1 for rows in self._rows]]


def _pack(
    feeds: dict[str, npt.NDArray[Any]],
    pictures: list[list[tuple[I64, Layout, I64]]],
    image: int,
    whole: bool,
) -> Batch:
    ids: list[I64] = []
    groups, layouts, predicting, answers = [], [], [], []
    row = 0
    for sequences in pictures:
        prefix = 0 if whole else _common([prompt for prompt, _, _ in sequences])
        ids.append(sequences[0][0][:prefix])
        row += prefix
        branches = []
        for prompt, _, answer in sequences:
            rest = np.concatenate([prompt[prefix:], answer[:-1]])  # the last token predicts nothing
            first = row + len(prompt) - prefix - 1
            predicting.append(np.arange(first, first + len(answer)))
            answers.append(answer)
            ids.append(rest)
            branches.append(len(rest))
            row += len(rest)
        groups.append(Group(prefix, tuple(branches)))
        # Positions after the last picture go up by one, in the prompt and in the answer, so one length serves all.
        layouts.append(sequences[0][1] if whole else replace(sequences[0][1], length=prefix + max(branches)))
    return Batch(
        feeds,
        tuple(layouts),
        np.concatenate(ids),
        tuple(groups),
        np.concatenate(predicting),
        np.concatenate(answers),
        image,
    )


def _common(prompts: list[I64]) -> int:
    """Tokens that all prompts begin with, one less than the shortest at most."""
    shortest = min(map(len, prompts))
    same = np.ones(shortest, bool)
    for prompt in prompts[1:]:
        same &= prompt[:shortest] == prompts[0][:shortest]
    return min(int(np.argmin(np.append(same, False))), shortest - 1)
