"""Muon for the matrices inside a model, AdamW for everything else, as one optimizer.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) makes every update of a matrix orthogonal; scaled to
AdamW's usual update (Liu et al. 2025, arXiv 2502.16982), both take the same rate and weight decay. Embeddings, heads,
position tables, biases and norms stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_OUTSIDE = ("embed", "lm_head", "position", "heads.")
_KIND = "kind"


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW; a group's "kind" says which updates it. Groups may be split, and their rates set, as usual."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        named = list(parameters)
        inside = [p for name, p in named if p.ndim == 2 and not any(word in name for word in _OUTSIDE)]
        chosen = {id(p) for p in inside}
        rest = [p for _, p in named if id(p) not in chosen]
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if inside:
            self._parts["muon"] = torch.optim.Muon(inside, adjust_lr_fn="match_rms_adamw", **shared)
        if rest:
            self._parts["adamw"] = torch.optim.AdamW(rest, betas=(0.9, 0.98), **shared)
        groups = [group | {_KIND: kind} for kind, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for kind, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group[_KIND] == kind]
            part.step()
        return loss
