"""What distillation compares: predictions at answers and at image tokens, states, and image features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.train.models import PLACES


@dataclass(frozen=True)
class OutputChoice:
    """Which outputs a run needs besides the predictions of answers."""

    visual: bool = False  # predictions at image tokens
    relation: bool = False  # how alike the states of a tile's image tokens are
    features: bool = False  # the projector's outputs


@dataclass(frozen=True)
class Outputs:
    """Of a batch: A answer tokens, M image tokens, T tiles of n image tokens each; in the order of the rows."""

    answers: Tensor  # logits (A, V)
    visual: Tensor | None  # logits (M, V)
    relation: Tensor | None  # cosines (T, n, n)
    features: Tensor | None  # (T, n, D)


def run_model(
    model: Any, inner: Any, batch: dict[str, Any], image_token_id: int, wanted: OutputChoice, n: int
) -> Outputs:
    """One forward pass. inner: the transformers model that `model` wraps. n: image tokens per tile."""
    inputs = dict(batch)
    answers = inputs["logits_to_keep"]
    image = inputs["input_ids"] == image_token_id
    if wanted.visual or wanted.relation:
        inputs["logits_to_keep"] = answers | image
    with _watch(inner) as seen:
        logits = model(**inputs).logits.float()
    if not (wanted.visual or wanted.relation):
        return Outputs(logits, None, None, _features(seen, wanted))
    kept = inputs["logits_to_keep"]
    is_image = image[kept]
    states = seen["states"][is_image].float()
    states = states.reshape(-1, n, states.shape[-1])
    return Outputs(
        logits[answers[kept]],
        logits[is_image] if wanted.visual else None,
        relations(states) if wanted.relation else None,
        _features(seen, wanted),
    )


def relations(states: Tensor) -> Tensor:
    """(T, n, D) to the cosine of every pair of a tile's states, (T, n, n)."""
    normed = F.normalize(states, dim=-1)
    return normed @ normed.transpose(1, 2)


def projector_of(inner: Any) -> Any:
    """The module that turns patch states into image features."""
    for name, module in inner.named_modules():
        if PLACES["projector"].search(name + ".") and not PLACES["projector"].search(name.rpartition(".")[0] + "."):
            return module
    raise AssertionError("a vision-language model has a projector")


@contextmanager
def _watch(inner: Any) -> Iterator[dict[str, Tensor]]:
    """Records the input of the head and the output of the projector."""
    seen: dict[str, Tensor] = {}

    def head(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["states"] = inputs[0]

    def projector(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["features"] = output

    handles = [
        inner.get_submodule("lm_head").register_forward_pre_hook(head),
        projector_of(inner).register_forward_hook(projector),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _features(seen: dict[str, Tensor], wanted: OutputChoice) -> Tensor | None:
    return seen["features"].float() if wanted.features and "features" in seen else None


def top_log_probs(logits: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of (M, V) at that temperature: ids int32 and log probabilities float16 (M, k)."""
    logs, ids = (logits / temperature).log_softmax(-1).topk(min(count, logits.shape[-1]), -1)
    return ids.int(), logs.half()


def top_kl(logits: Tensor, ids: Tensor, logs: Tensor, temperature: float) -> Tensor:
    """(M,) of KL(teacher, student) at that temperature, times its square (Hinton et al. 2015).

    The teacher is known by its likeliest tokens; the others count as one.
    """
    ours = (logits / temperature).log_softmax(-1).gather(-1, ids.long())
    theirs = logs.float()
    known = (theirs.exp() * (theirs - ours)).sum(-1)
    rest = (1 - theirs.exp().sum(-1)).clamp(min=0)
    # log of the student's rest, 1 - sum p, floored where rounding leaves nothing of it
    our_rest = torch.log((1 - ours.exp().sum(-1)).clamp(min=1e-7))
    other = torch.where(rest > 1e-4, rest * (rest.clamp(min=1e-7).log() - our_rest), torch.zeros_like(rest))
    kl: Tensor = (known + other) * temperature**2
    return kl
