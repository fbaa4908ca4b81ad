"""One optimizer against torch's two, which it is made of."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgevlm.train.muon import MuonAdamW


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = {"embed_tokens": nn.Embedding(10, 8), "up": nn.Linear(8, 16), "norm": nn.LayerNorm(16)}
    return nn.ModuleDict(parts | {"lm_head": nn.Linear(16, 10)})


def learn(model: nn.Module, *optimizers: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        ids = torch.randint(10, (6,), generator=torch.Generator().manual_seed(seed))
        hidden = model["norm"](model["up"](model["embed_tokens"](ids)))  # type: ignore[index]
        nn.functional.cross_entropy(model["lm_head"](hidden), ids).backward()  # type: ignore[index]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_it_is_muon_inside_and_adamw_outside() -> None:
    ours, theirs = network(), network()
    start = copy.deepcopy(ours)
    inside = [theirs["up"].weight]  # type: ignore[index]
    rest = [p for p in theirs.parameters() if all(p is not q for q in inside)]
    learn(ours, MuonAdamW(ours.named_parameters(), 0.01, 0.1), seeds=range(4))
    learn(
        theirs,
        torch.optim.Muon(inside, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
        seeds=range(4),
    )
    assert same(ours, theirs) and not same(ours, start)


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    straight, stopped = network(), network()
    learn(straight, MuonAdamW(straight.named_parameters(), 0.01, 0.0), seeds=range(6))
    first = MuonAdamW(stopped.named_parameters(), 0.01, 0.0)
    learn(stopped, first, seeds=range(3))
    second = MuonAdamW(stopped.named_parameters(), 0.01, 0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(stopped, second, seeds=range(3, 6))
    assert same(straight, stopped)


def test_groups_may_be_split_and_have_rates_of_their_own() -> None:
    model = network()
    before = copy.deepcopy(model)
    optimizer = MuonAdamW(model.named_parameters(), 0.01, 0.0)
    groups = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            groups.append({**group, "params": [p], "lr": 0.0 if p.ndim == 1 else group["lr"]})
    optimizer.param_groups[:] = groups
    learn(model, optimizer, seeds=range(2))
    for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, was) == (now.ndim == 1), name
