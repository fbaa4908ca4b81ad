"""The gate on one runtime: features and logits, then tokens, each against the reference on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.inputs.layout import Layout, merge, next_part
from edgevlm.inputs.preprocess import array_key
from edgevlm.models.model import Tower
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.base import BatchDecoder, BatchEncoder, Decoder, Encoder, Runtime, StateDecoder
from edgevlm.runtimes.ort.products import EXACT, product_errors, session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.types import F32, U8
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.report import Bound, Loss, Row, at_least, at_most, kl_divergence
from edgevlm.verify.states import lost_states

TOKENS = 64  # greedy tokens per prompt
TILE_COUNTS = (1, 2, 13)


@dataclass(frozen=True)
class Case:
    """A prompt with its views."""

    name: str
    ids: np.ndarray[Any, np.dtype[np.int64]]
    views: list[U8]  # (H, W, 3 * frames) each
    layout: Layout

    @property
    def frames(self) -> int:
        """Of each view."""
        return max((view.shape[2] // 3 for view in self.views), default=1)


def is_large(vision: Tower) -> bool:
    """Whether a tile takes seconds in numpy: 13 tiles are then two, repeated, and encoded one by one to save memory."""
    return vision.typical_patches * vision.hidden_size**2 * vision.num_layers > 10**9


PRODUCTS = "integer products, largest relative error"
STOCK_PRODUCTS = "the same in a session without options"


def check_products() -> Iterator[Row]:
    """ONNX Runtime's integer products on this CPU, as its sessions are made here, against exact integer arithmetic.

    Where that takes an option, also without it, as a program that opens the graphs by itself would get them.
    """
    ort = import_onnxruntime()
    unsigned = signed_saturates(ort)
    errors = product_errors(ort, session_options(ort, unsigned))
    worst = max(errors, key=lambda name: errors[name])
    note = "signed weights saturate on this CPU and are converted to uint8 on loading" if unsigned else ""
    row = at_most("onnx", PRODUCTS, errors[worst], EXACT, note)
    yield row if row.passed else replace(row, note=f"{worst} saturates on this CPU", where=worst)
    if unsigned:
        stock = product_errors(ort, session_options(ort, unsigned=False))
        worst = max(stock, key=lambda name: stock[name])
        yield Row("onnx", STOCK_PRODUCTS, stock[worst], None, True, "signed weights saturate", where=worst)


def check_runtime(
    bundle: Bundle,
    target: str,
    runtime: Runtime,
    reference: Reference,
    cases: list[Case],
    answers: list[int],
    vision: Bound,
    text: Bound,
    few: bool = False,
    together: bool = True,
) -> Iterator[Row]:
    """vision, text: the bounds of encoder and decoder. answers: filled with the first case's tokens if empty.

    few: fewer tiles and tokens, for a variant whose weights are checked already and which is slow.
    together: also several tiles in one call, where the runtime can.
    """
    ids = np.unique(np.concatenate([case.ids for case in cases]))
    encoder, decoder = runtime.encoder, runtime.decoder
    # Of the table's rows, before a model scales them: what is bounded is the table's own rounding.
    worst = float(np.abs(decoder.embed(ids) - reference.embed(ids)).max()) / bundle.manifest.spec.decoder.embed_scale
    yield at_most(target, "embeddings, largest error", worst, 1e-3)

    pool, known = [view for case in cases for view in case.views], _CachedEncoder(encoder)
    for count in TILE_COUNTS[:2] if few else TILE_COUNTS:
        views = [pool[i % len(pool)] for i in range(count)]
        low = lowest_cosine(known(views) if not together else encoder.encode(views), reference.features(views))
        yield at_least(target, f"features of {count} tile{'s' * (count > 1)}, cosine", low, vision.features)
    spec = bundle.manifest.spec
    if together and isinstance(spec.vision, Vit) and isinstance(encoder, BatchEncoder):
        # Proof that no tile count is baked in. Dynamic int8 then shares one range among the tiles, which costs a
        # little: runtimes encode one by one.
        count = TILE_COUNTS[1 if few or is_large(spec.vision) else 2]
        views = [pool[i % len(pool)] for i in range(count)]
        low = lowest_cosine(encoder.encode_together(views), reference.features(views))
        yield at_least(target, f"features of {count} tiles in one call, cosine", low, min(vision.features, 0.99))

    first = cases[0]
    embeds = reference.prompt(first.ids, first.layout, first.views)
    wanted = reference.logits(embeds, layout=first.layout)[-1]
    decoder.rewind(0)
    low = cosine(decoder.forward(embeds, first.layout), wanted)
    yield at_least(target, "prefill logits, cosine", low, text.logits)
    if spec.region is not None and isinstance(decoder, StateDecoder):
        low = cosine(decoder.hidden_state(), reference.hidden_state(embeds, first.layout))
        yield at_least(target, "prefill hidden state, cosine", low, text.logits)
    half = next_part(first.layout, spec.decoder.mask, 0, len(embeds), len(embeds) // 2)
    # A prompt that sees itself cannot be read in two parts. A state that is replaced may reach a few positions only.
    for start in (half, *([len(embeds) - 1] if spec.decoder.replaces else [])):
        if start < len(embeds):
            decoder.rewind(0)
            decoder.forward(embeds[:start], first.layout)
            found = decoder.forward(embeds[start:])
            row = at_least(target, f"prefill after {start} positions, cosine", cosine(found, wanted), text.logits)
            lost = [] if row.passed else lost_states(reference, embeds[:start], embeds[start:], first.layout, found)
            yield replace(row, note=f"not carried: {', '.join(lost)}", where=lost[0]) if lost else row
    if spec.decoder.is_plain and isinstance(decoder, BatchDecoder):
        rows = decoder.forward_padded([embeds, embeds[:half]])
        low = cosine(rows, np.stack([wanted, reference.logits(embeds[:half], layout=first.layout)[-1]]))
        yield at_least(target, "prefill of a padded batch, cosine", low, text.logits)

    for case in cases:
        yield from _check_tokens(target, decoder, known, reference, case, text, answers, 4 if few else TOKENS)


class _CachedEncoder:
    """An encoder's features, each view encoded once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[bytes, F32] = {}

    def __call__(self, views: Sequence[U8]) -> list[F32]:
        keys = [array_key(view) for view in views]
        for key, view in zip(keys, views, strict=True):
            if key not in self._known:
                (self._known[key],) = self._encoder.encode([view])
        return [self._known[key] for key in keys]


def lowest_cosine(ours: Sequence[F32], theirs: Sequence[F32]) -> float:
    """Over the image tokens of all views."""
    return cosine(np.concatenate(ours), np.concatenate(theirs))


def _check_tokens(
    target: str,
    decoder: Decoder,
    encode: Callable[[Sequence[U8]], list[F32]],
    reference: Reference,
    case: Case,
    bound: Bound,
    answers: list[int],
    count: int,
) -> Iterator[Row]:
    """`count` greedy tokens of a runtime on its own features, each judged by the reference at the same prefix.

    One pass of the reference over the runtime's tokens gives its choice at every step. It equals the reference's own
    greedy answer as long as the two agree, and goes on to judge every later token after they do not.
    """
    decoder.rewind(0)
    embeds = merge(decoder.embed(case.ids), case.layout, encode(case.views))
    steps = [decoder.forward(embeds, case.layout)]
    while len(steps) < count:
        steps.append(decoder.step(int(steps[-1].argmax())))
    logits = np.stack(steps)
    tokens = [int(token) for token in logits.argmax(-1)]
    if not answers:
        answers.extend(tokens)
    prompt = reference.prompt(case.ids, case.layout, case.views)
    judged = reference.logits(prompt, reference.embed(np.array(tokens[:-1], np.int64)), case.layout)
    gaps = judged.max(-1) - judged[np.arange(count), tokens]
    agreed = int((gaps == 0).sum())
    worst = float(gaps.max())
    note = f"{agreed} of {count} tokens equal"
    if agreed < count:
        ties = int(((gaps > 0) & (gaps < bound.near_tie)).sum())
        note += f", {ties} near-tie{'s' * (ties != 1)}, first at token {int(np.flatnonzero(gaps)[0]) + 1}"
    yield at_most(target, f"{case.name}, KL divergence", kl_divergence(judged, logits), bound.kl)
    passed = worst < bound.near_tie
    yield Row(target, f"{case.name}, largest logit gap", worst, bound.near_tie, passed, note, "tokens")
    yield at_least(target, f"{case.name}, top-1 agreement", agreed / count, bound.agreement, level="tokens")


def check_loss(
    reference: Reference,
    original: Reference,
    case: Case,
    answers: list[int],
    encoder: Loss,
    whole: Loss,
) -> Iterator[Row]:
    """What the shipped weights lose against the original's, both computed by the reference.

    Each token of `answers` is judged at the same prefix. encoder, whole: the bounds of the coarsest form in the
    encoder and in the model.
    """
    low = lowest_cosine(reference.features(case.views), original.features(case.views))
    yield at_least("quantization", "features, cosine", low, encoder.features)
    tokens = reference.embed(np.array(answers[:-1], np.int64))
    logits = []
    for model in (original, reference):
        prompt = model.prompt(case.ids, case.layout, case.views)
        logits.append(model.logits(prompt, tokens, case.layout))
    yield at_least("quantization", "logits, mean cosine", cosine(*logits, lowest=False), whole.logits)
    yield at_most("quantization", "KL divergence", kl_divergence(*logits), whole.kl)
    same = float((logits[0].argmax(-1) == logits[1].argmax(-1)).mean())
    note = f"over {len(answers)} tokens" + ("" if whole.agreement is not None else ", reported only")
    yield at_least("quantization", "top-1 agreement", same, whole.agreement, note, "tokens")
