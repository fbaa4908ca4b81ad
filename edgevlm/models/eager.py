"""The eager backend: computes in float32 numpy. Slow, plain, and what every artifact is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgevlm.models.activations import ACTS
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.ops import Ops, Weights
from edgevlm.models.primitives import RowWeights
from edgevlm.models.spec import Attention, Conv, DeltaRule, Norm
from edgevlm.models.states import States
from edgevlm.types import F32, I64

_SCORES = 1 << 20  # attention scores in work at once


class EagerOps(Ops):
    """Plays operations on arrays. Weights are read when an operation needs them and dropped after it."""

    backend = "The eager reference"

    def __init__(
        self,
        weights: Weights,
        states: States | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        keep: int = 1,
    ) -> None:
        """inputs: RoPE rows, masks and additions of this call. keep: how many of the last positions get logits."""
        self.weights, self.states, self.inputs, self.keep = weights, states, dict(inputs or {}), keep

    def _weight(self, name: str) -> F32:
        return self.weights.read(name)

    def linear(self, x: F32, *maps: tuple[str, int], bias: bool = False) -> list[F32]:
        outs = [x @ self._weight(f"{name}.weight").T for name, _ in maps]
        for out, (name, _) in zip(outs, maps, strict=True) if bias else ():
            out += self._weight(f"{name}.bias")
        return outs

    def patch_embed(self, pixels: F32, name: str, width: int, patch: int, bias: bool = True) -> F32:
        t, c, height, wide = pixels.shape
        rows, cols = height // patch, wide // patch
        pixels = pixels[:, :, : rows * patch, : cols * patch]
        patches = pixels.reshape(t, c, rows, patch, cols, patch).transpose(0, 2, 4, 1, 3, 5)
        flat = patches.reshape(t, rows * cols, -1) @ self._weight(f"{name}.weight").reshape(width, -1).T
        return flat + self._weight(f"{name}.bias") if bias else flat

    def flatten(self, pixels: F32) -> F32:
        return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).swapaxes(1, 2))

    def conv2d(self, x: F32, name: str, grid: tuple[int, int], c: Conv) -> F32:
        """A tap at a time, each a product for each group."""
        (rows, cols), (tiles, _, width) = grid, x.shape
        taps = self._weight(f"{name}.weight").reshape(c.groups, -1, width // c.groups, c.kernel, c.kernel)
        taps = np.ascontiguousarray(taps.transpose(3, 4, 0, 2, 1))
        cells = np.pad(x.reshape(tiles, rows, cols, c.groups, -1), ((0, 0), c.zeros, c.zeros, (0, 0), (0, 0)))
        cells = np.moveaxis(cells, 3, 0)
        total = np.zeros((c.groups, tiles * (rows // c.stride) * (cols // c.stride), taps.shape[-1]), np.float32)
        for i, j in np.ndindex(c.kernel, c.kernel):
            seen = cells[:, :, i : i + rows : c.stride, j : j + cols : c.stride]
            total += seen.reshape(c.groups, -1, width // c.groups) @ taps[i, j]
        out = np.moveaxis(total, 0, 1).reshape(tiles, -1, c.width)
        return out + self._weight(f"{name}.bias") if c.bias else out

    def conv_at(self, x: F32, name: str, width: int, kernel: int, places: str) -> F32:
        padded, at = np.pad(x, ((0, 0), (1, 0), (0, 0))), self.inputs[places]
        out = np.zeros_like(x)
        for number, tap in enumerate(self._weight(f"{name}.weight").T):
            out += padded[:, at[:, number]] * tap
        return out

    def mean(self, x: F32) -> F32:
        found: F32 = x.mean(1, keepdims=True)
        return found

    def mean_channels(self, x: F32) -> F32:
        found: F32 = x.mean(-1, keepdims=True)
        return found

    def plain_linear(self, x: F32, name: str, width: int, bias: bool = False) -> F32:
        out: F32 = x @ self._weight(f"{name}.weight").T
        return out + self._weight(f"{name}.bias") if bias else out

    def embed(self, ids: I64, name: str, rows: int, width: int) -> F32:
        if isinstance(self.weights, RowWeights):
            return self.weights.rows(f"{name}.weight", ids.ravel()).reshape(*ids.shape, width)
        found: F32 = self._weight(f"{name}.weight")[ids]
        return found

    def add_table(self, x: F32, name: str, rows: int, width: int) -> F32:
        return x + self._weight(name)

    def add_mixed(self, x: F32, name: str, rows: int, width: int, places: str, shares: str) -> F32:
        mixed: F32 = (self._weight(name)[self.inputs[places]] * self.inputs[shares][..., None]).sum(-2)
        return x + mixed

    def add_shares(self, x: F32, name: str, rows: int, width: int, shares: str) -> F32:
        resampled: F32 = self.inputs[shares] @ self._weight(name)
        return x + resampled

    def add_input(self, x: F32, name: str) -> F32:
        found: F32 = x + self.inputs[name]
        return found

    def ask(self, k: F32, v: F32, name: str, count: int, a: Attention, mask: str) -> F32:
        """A mask (V, 1, 1, S) of several views gives the queries of each, one view behind the other."""
        q, k, v = (self.heads(part, a.heads, a.head_dim) for part in (self._weight(name)[None], k, v))
        asked = [attend(q[0], k[0], v[0], a, seen) for seen in self.inputs[mask]]
        return np.concatenate([self.merge(each) for each in asked])[None]

    def prepend(self, x: F32, name: str, width: int) -> F32:
        first = np.broadcast_to(self._weight(name), (len(x), 1, width))
        return np.concatenate([first, x], axis=1)

    def drop_first(self, x: F32) -> F32:
        return x[:, 1:]

    def beside(self, parts: list[F32]) -> F32:
        return np.concatenate(parts, axis=-1)

    def vector(self, name: str, size: int) -> F32:
        return self._weight(name)

    def norm(self, x: F32, name: str, spec: Norm) -> F32:
        x = x - x.mean(-1, keepdims=True) if spec.kind == "layer" else x
        mean_square = np.square(x).mean(-1, keepdims=True)
        normed: F32 = x / np.sqrt(mean_square + np.float32(spec.eps))
        normed = normed * self._weight(f"{name}.weight") if spec.weight else normed
        return normed + self._weight(f"{name}.bias") if spec.kind == "layer" else normed

    def act(self, x: F32, kind: str) -> F32:
        return ACTS[kind](x)

    def add(self, x: F32, y: F32) -> F32:
        return x + y

    def mul(self, x: F32, y: F32 | float) -> F32:
        return x * (np.float32(y) if isinstance(y, float) else y)

    def mul_heads(self, x: F32, y: F32, count: int, size: int) -> F32:
        return (x.reshape(*y.shape, size) * y[..., None]).reshape(x.shape)

    def split(self, x: F32, *widths: int) -> list[F32]:
        return np.split(x, np.cumsum(widths)[:-1], axis=-1)

    def clip(self, x: F32, low: F32, high: F32) -> F32:
        return np.clip(x, low, high)

    def widen(self, x: F32, width: int) -> F32:
        return widen(x, width)

    def heads(self, x: F32, count: int, size: int) -> F32:
        return x.reshape(*x.shape[:-1], count, size).swapaxes(-2, -3)

    def merge(self, x: F32) -> F32:
        x = x.swapaxes(-2, -3)
        return np.ascontiguousarray(x).reshape(*x.shape[:-2], -1)

    def rotate(self, x: F32, rope: str, size: int, second: str | None = None) -> F32:
        cos, sin, cos_2, sin_2 = (self.inputs[name] for by in (rope, second or rope) for name in rope_inputs(by))
        half = cos.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos_2 + a * sin_2, rest], axis=-1)

    def attend(self, q: F32, k: F32, v: F32, a: Attention, mask: str | None) -> F32:
        allowed = None if mask is None else self.inputs[mask]
        if q.ndim == 3:
            return attend(q, k, v, a, allowed)
        out = np.empty_like(q)  # one tile or window at a time bounds the (heads, S, T) scores
        for i in range(len(q)):
            seen = allowed[i if len(allowed) > 1 else 0] if allowed is not None and allowed.ndim == 4 else allowed
            out[i] = attend(q[i], k[i], v[i], a, seen)
        return out

    def append(self, state: str, x: F32) -> F32:
        assert self.states is not None, "a decoder needs states"
        return self.states.append(state, x)

    def rounded(self, x: F32, name: str, count: int, size: int) -> F32:
        steps = self._weight(name).reshape(count, 1, size)
        return round8(x, steps)

    def grown(self, state: str) -> F32:
        assert self.states is not None, "a decoder needs states"
        return self.states.growing[state]

    def held(self, state: str) -> F32:
        assert self.states is not None, "a decoder needs states"
        return self.states.memory[state]

    def correct(self, x: F32, decay: F32, rate: F32, r: DeltaRule, state: str) -> F32:
        """By its definition, position by position."""
        assert self.states is not None, "a decoder needs states"
        keys = r.key_heads * r.key_dim
        q, k, v = np.split(x, [keys, 2 * keys], axis=-1)
        q, k = (_unit(part.reshape(len(x), r.key_heads, r.key_dim)) for part in (q, k))
        q, k = (np.repeat(part, r.value_heads // r.key_heads, axis=1) for part in (q * np.float32(r.key_dim**-0.5), k))
        v = v.reshape(len(x), r.value_heads, r.value_dim)
        held = self.states.replaced.get(state, np.zeros((r.value_heads, r.key_dim, r.value_dim), np.float32))
        out = np.empty_like(v)
        for i, forgets in enumerate(np.exp(decay)):
            held = held * forgets[:, None, None]
            missing = (v[i] - (k[i, :, None] @ held)[:, 0]) * rate[i, :, None]
            held = held + k[i, :, :, None] * missing[:, None]
            out[i] = (q[i, :, None] @ held)[:, 0]
        self.states.replaced[state] = held
        return out.swapaxes(0, 1)

    def causal_conv(self, x: F32, name: str, width: int, kernel: int, state: str) -> F32:
        assert self.states is not None, "a decoder needs states"
        past = self.states.replaced.get(state)
        past = np.zeros((*x.shape[:-2], kernel - 1, width), np.float32) if past is None else past
        whole = np.concatenate([past, x], axis=-2)
        self.states.replaced[state] = whole[..., whole.shape[-2] - kernel + 1 :, :]
        taps = self._weight(f"{name}.weight").T  # (kernel, D)
        shifted = [whole[..., i : i + x.shape[-2], :] * taps[i] for i in range(kernel)]
        total: F32 = np.sum(shifted, axis=0, dtype=np.float32)
        return total

    def windows(self, x: F32, size: int) -> F32:
        tiles, heads, positions, width = x.shape
        parts = x.reshape(tiles, heads, positions // size, size, width).swapaxes(1, 2)
        return parts.reshape(-1, heads, size, width)

    def unwindow(self, x: F32, count: int | None = None) -> F32:
        windows, heads, size, width = x.shape
        tiles = 1 if count is None else windows // count
        return x.reshape(tiles, -1, heads, size, width).swapaxes(1, 2).reshape(tiles, heads, -1, width)

    def apart(self, x: F32, count: int, width: int) -> F32:
        return x.reshape(len(x), -1, width)

    def pixel_unshuffle(self, x: F32, grid: tuple[int, int], scale: int, width: int) -> F32:
        rows, cols = (side // scale for side in grid)
        cells = x.reshape(len(x), rows, cols, scale, scale, width).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(len(x), -1, width)

    def pixel_shuffle(self, x: F32, grid: tuple[int, int], scale: int, width: int) -> F32:
        (rows, cols), (tiles, patches, _) = grid, x.shape
        cells = x.reshape(tiles, rows // scale, scale, cols // scale, scale, width).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(tiles, patches // scale**2, width * scale**2)

    def mean_pool(self, x: F32, grid: tuple[int, int], scale: int, width: int) -> F32:
        (rows, cols), (tiles, patches, _) = grid, x.shape
        means: F32 = x.reshape(tiles, rows // scale, scale, cols // scale, scale, width).mean((2, 4))
        return means.reshape(tiles, patches // scale**2, width)

    def group(self, x: F32, count: int, width: int) -> F32:
        return x.reshape(x.shape[0], -1, count * width)

    def take(self, x: F32, index: str) -> F32:
        return x[:, self.inputs[index]]

    def mix(self, x: F32, places: str, shares: str) -> F32:
        mixed: F32 = np.einsum("bnkd,nk->bnd", x[:, self.inputs[places]], self.inputs[shares])
        return mixed

    def input(self, name: str) -> Any:
        return self.inputs[name]

    def last(self, x: F32) -> F32:
        return x[-self.keep :]


def widen(x: F32, width: int) -> F32:
    """(..., D) to (..., width) with zeros behind."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]) if x.shape[-1] < width else x


def round8(x: F32, steps: F32) -> F32:
    """Each value at the nearest of -128 to 127 of its steps, a half to the even one."""
    held: F32 = np.clip(np.rint(x / steps), -128, 127) * steps
    return held


def attend(q: F32, k: F32, v: F32, a: Attention, allowed: Any) -> F32:
    """(H, S, d) over (kv heads, T, d); allowed: bool, broadcast to (kv heads, H / kv heads, S, T).

    A part of the scores at a time, which stays in the processor's cache.
    """
    group, rows, total = a.heads // a.kv_heads, q.shape[1], k.shape[1]
    scale = np.float32(a.head_dim**-0.5 if a.scale is None else a.scale)
    split = q.reshape(a.kv_heads, group, *q.shape[1:])
    if allowed is not None:
        allowed = np.broadcast_to(allowed, (a.kv_heads, group, rows, total))
    out = np.empty((*split.shape[:3], v.shape[-1]), np.float32)
    step = min(rows, max(1, _SCORES // (group * total)))
    heads = max(1, _SCORES // (group * total * step))
    for head, row in itertools.product(range(0, a.kv_heads, heads), range(0, rows, step)):
        part = slice(head, head + heads), slice(None), slice(row, row + step)
        scores = split[part] @ k[part[0], None].swapaxes(-1, -2)
        scores *= scale
        if a.softcap is not None:
            scores = np.float32(a.softcap) * np.tanh(scores / np.float32(a.softcap))
        if allowed is not None:
            scores[~allowed[part]] = -np.inf
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        out[part] = scores @ v[part[0], None]
        out[part] /= scores.sum(-1, keepdims=True)
    return out.reshape(*q.shape[:2], v.shape[-1])


def _unit(x: F32) -> F32:
    """Rows of length one, as transformers' l2norm."""
    found: F32 = x / np.sqrt(np.square(x).sum(-1, keepdims=True) + np.float32(1e-6))
    return found
