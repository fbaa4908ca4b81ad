"""What layers of towers and decoders share: a residual connection with its norms, and how weights are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Block


def residual(ops: Ops, x: X, block: Block, w: str, number: int, part: Callable[[X], X]) -> X:
    """x plus `part` of it, with the block's norms and gate: weights w.norm<number> and w.gate<number>."""
    norm = f"{w}.norm{number}"
    if block.places == "post":
        return ops.norm(ops.add(x, part(x)), norm, block.norm)
    h = part(ops.norm(x, norm, block.norm))
    h = ops.norm(h, f"{norm}_after", block.norm) if block.places == "sandwich" else h
    h = ops.mul(h, ops.act(ops.vector(f"{w}.gate{number}", 1), "tanh")) if block.gated else h
    return ops.add(x, h)


def mixer_name(layer: str, mixer: int) -> str:
    """What the names of a mixer's weights begin with: the layer's own name for its first one."""
    return layer if mixer == 0 else f"{layer}.mixer{mixer}"


def rope_inputs(rope: str) -> tuple[str, str]:
    """The inputs that hold this call's cos and sin rows of a RoPE, (S, size / 2) each."""
    return ("cos", "sin") if rope == "main" else (f"cos_{rope}", f"sin_{rope}")


def mask_input(window: int | None) -> str:
    """The decoder's attention mask input, (S, T) over all T positions so far."""
    return "mask" if window is None else f"mask_{window}"


def mask_apart(masks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """One mask (1, 1, S, S) for several views in one sequence, of each view's own (1, 1, 1, its states)."""
    view = np.repeat(np.arange(len(masks)), [mask.size for mask in masks])
    real = np.concatenate([mask.reshape(-1) for mask in masks])
    found: npt.NDArray[np.bool_] = ((view[:, None] == view[None]) & real[None])[None, None]
    return found
