"""How probable each of several answers is: their tokens put behind the prompt, which is read once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import encode
from edgevlm.types import F32, F64

if TYPE_CHECKING:
    from edgevlm.inputs.prompt import Prompter
    from edgevlm.runtimes.base import Decoder


def answer_ids(prompter: Prompter, answers: Sequence[str], thinking: bool | None = None) -> list[list[int]]:
    """The tokens with which the chat format writes each answer behind a prompt, without the one that ends it.

    thinking: as the prompt has it.
    """
    chat = prompter.spec.chat.switched(thinking)
    opening = chat.roles["assistant"].open_text if "assistant" in chat.roles else ""
    # A message that is written out may have a space where the prompt that asks for it has none yet.
    lead = opening[len(chat.generation) :] if opening.startswith(chat.generation) else ""
    control = [token.content for token in prompter.tokenizer.get_added_tokens_decoder().values() if token.special]
    before = re.split("|".join(map(re.escape, control)), chat.generation)[-1] if control else chat.generation
    prompt = encode(prompter.inner, before)
    found = []
    for answer in answers:
        whole = encode(prompter.inner, before + lead + answer)
        alone = whole[: len(prompt)] != prompt  # a token reaches over the prompt's end
        found.append(encode(prompter.inner, lead + answer) if alone else whole[len(prompt) :])
    return found


def check_scores(decoder: Decoder, replaces: bool, room: int, answers: Mapping[str, list[int]]) -> None:
    """Raise EdgeVLMError where a decoder cannot score the answers, or they cannot be compared: before it has any work.

    replaces: its states are overwritten. room: positions that its context leaves behind the prompt.
    """
    if replaces:
        raise EdgeVLMError(
            f"Scores need a model that can go back to the end of its prompt, and the states of this one, on "
            f"{decoder.name}, are overwritten at each token: leave scores out."
        )
    longest = max(map(len, answers.values()))
    if longest - 1 > room:
        raise EdgeVLMError(
            f"A choice has {longest} tokens, and the model's context leaves {room} behind the prompt: shorten it."
        )
    # What begins another stands right before one that it begins. No token at all begins any.
    for (first, ids), (second, longer) in pairwise(sorted(answers.items(), key=lambda answer: answer[1])):
        if longer[: len(ids)] == ids:
            raise EdgeVLMError(
                f"The tokens of the choice {first[:80]!r} begin those of {second[:80]!r}, so that it is never less "
                "probable and their scores cannot be compared: word them otherwise, or leave scores out."
            )


def log_probabilities(decoder: Decoder, logits: F32, answers: Sequence[list[int]]) -> F64:
    """Of each answer (N,), given that it is one of them: the sum over its tokens of the logarithm of their softmax,
    shifted so that all probabilities sum to 1.

    logits: (V,) after the prompt, which the decoder has just read, and holds alone again afterwards.
    """
    start, held, rows = decoder.position, list[int](), [_log_softmax(logits)]  # rows[i] is behind held[:i]
    totals = np.empty(len(answers))
    for place in sorted(range(len(answers)), key=lambda place: answers[place]):  # shared beginnings are computed once
        *inner, last = answers[place]
        shared = next((i for i, (old, new) in enumerate(zip(held, inner, strict=False)) if old != new), None)
        shared = min(len(held), len(inner)) if shared is None else shared
        del held[shared:], rows[shared + 1 :]
        if decoder.position > start + shared:
            decoder.rewind(start + shared)
        for token in inner[shared:]:
            rows.append(_log_softmax(decoder.step(token)))
            held.append(token)
        totals[place] = sum(row[token] for row, token in zip(rows, [*inner, last], strict=True))
    if decoder.position > start:
        decoder.rewind(start)
    return _log_softmax(totals)


def _log_softmax(scores: F32 | F64) -> F64:
    shifted = scores.astype(np.float64) - scores.max()
    result: F64 = shifted - np.log(np.exp(shifted).sum())
    return result
