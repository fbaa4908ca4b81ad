"""The eager backend, keeping the values that other backends name alike, to find where one departs."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm.models.eager import EagerOps
from edgevlm.models.spec import Norm
from edgevlm.types import F32


def linear_name(*names: str) -> str:
    """The name of packed linear maps: "decoder.layers.0.q", "decoder.layers.0.k" give "decoder.layers.0.q_k"."""
    parent = names[0].rpartition(".")[0]
    return f"{parent}.{'_'.join(name.rpartition('.')[2] for name in names)}"


class TracingOps(EagerOps):
    """Keeps each named result as (rows, channels) in `values`; several maps of one input stand side by side.

    Of a weight that is read again, the first result has the name.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.values: dict[str, F32] = {}

    def keep_value(self, name: str, x: F32) -> F32:
        self.values.setdefault(name, x.reshape(-1, x.shape[-1]))
        return x

    def patch_embed(self, pixels: F32, name: str, width: int, patch: int, bias: bool = True) -> F32:
        return self.keep_value(name, super().patch_embed(pixels, name, width, patch, bias))

    def plain_linear(self, x: F32, name: str, width: int, bias: bool = False) -> F32:
        return self.keep_value(name, super().plain_linear(x, name, width, bias))

    def add_table(self, x: F32, name: str, rows: int, width: int) -> F32:
        return self.keep_value(name, super().add_table(x, name, rows, width))

    def norm(self, x: F32, name: str, spec: Norm) -> F32:
        out = super().norm(x, name, spec)
        return self.keep_value(name, out) if not name.endswith(("q_norm", "k_norm", "v_norm")) else out

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        outs = super().linear(x, *maps, bias=bias)
        self.keep_value(linear_name(*(name for name, _ in maps)), np.concatenate(outs, axis=-1))
        return outs

    def named(self, name: str, x: F32) -> F32:
        return self.keep_value(name, x)
