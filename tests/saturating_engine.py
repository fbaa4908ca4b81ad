"""An onnxruntime on a CPU with AVX2 and without VNNI, as a model in numpy.

Graphs of standard operators with DynamicQuantizeMatMul are evaluated by onnx's reference, with that operator as the
kernel computes it. A session whose option turns the weights to uint8 is a real one, and so is every other graph's:
those products are exact on every CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgevlm.runtimes.ort.products import session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime

_AT_ONCE = 4096  # pairs of codes that are looked at together


def saturating_product(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """uint8 (M, K) by int8 (K, N) as VPMADDUBSW and VPMADDWD compute it: pairs of products are clipped to 16 bits.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW. K is even. A pair can only be
    clipped where its two codes have one sign and come to more than 128, since 255 * 128 < 32768: for the few such pairs
    what was clipped off is subtracted from the exact product, which is the same and hundreds of times as fast.
    """
    codes = codes.astype(np.int64)
    out = np.rint(x.astype(np.float64) @ codes).astype(np.int64)  # exact: below 2**53
    pairs, columns = np.nonzero(np.abs(codes[0::2] + codes[1::2]).T > 128)[::-1]
    x = np.ascontiguousarray(x.T).astype(np.int32)
    for i in range(0, len(pairs), _AT_ONCE):
        pair, column = pairs[i : i + _AT_ONCE] * 2, columns[i : i + _AT_ONCE]
        sums = x[pair] * codes[pair, column, None] + x[pair + 1] * codes[pair + 1, column, None]
        starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
        out[:, column[starts]] += np.add.reduceat(np.clip(sums, -32768, 32767) - sums, starts, axis=0).T
    return out


class DynamicQuantizeMatMul(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x: Any, codes: Any, scale: Any, zero: Any = None, bias: Any = None) -> tuple[np.ndarray]:
        """DynamicQuantizeLinear (ONNX), the product, and its scale."""
        assert zero is None
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        step = np.float32(high - low) / 255
        offset = int(np.rint(-low / step))
        whole = np.clip(np.rint(x / step) + offset, 0, 255).astype(np.uint8).reshape(-1, x.shape[-1])
        y = saturating_product(whole, codes) - offset * codes.sum(0, dtype=np.int64)
        out = (y * (step * scale)).astype(np.float32).reshape(*x.shape[:-1], -1)
        return (out if bias is None else out + bias,)


class MatMulNBits(OpRun):
    op_domain = "com.microsoft"

    def _run(
        self, x: Any, codes: Any, scales: Any, zero: Any = None, groups: Any = None, bias: Any = None, *,
        K: int, N: int, bits: int, block_size: int, accuracy_level: int,
    ) -> tuple[np.ndarray]:  # fmt: skip
        """By the operator's documentation, with float activations."""
        values = np.stack([codes & 15, codes >> 4], -1) if bits == 4 else codes
        blocks = values.reshape(N, K // block_size, block_size).astype(np.float32) - (1 << bits - 1)
        out = x @ (blocks * scales.reshape(N, -1, 1)).reshape(N, K).T
        return (out if bias is None else out + bias,)


class MultiHeadAttention(OpRun):
    op_domain = "com.microsoft"

    def _run(
        self, q: Any, k: Any, v: Any, bias: Any = None, padding: Any = None, scores: Any = None, *,
        num_heads: int, scale: float | None = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        """By the operator's documentation: queries, keys and values (B, S, heads * size), and a bias on the scores."""
        assert bias is None and padding is None
        q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2) for x in (q, k, v))
        weights = (q @ k.swapaxes(2, 3)) * np.float32(scale or q.shape[-1] ** -0.5)
        weights = weights if scores is None else weights + scores
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True)) @ v
        return (out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1),)


class InferenceSession:
    """onnxruntime's, on such a CPU."""

    def __init__(self, model: bytes | str, options: Any, **kwargs: Any) -> None:
        ort = import_onnxruntime()
        loaded = onnx.load(model) if isinstance(model, str) else onnx.load_from_string(model)
        try:
            turned = options.get_session_config_entry("session.x64quantprecision") == "1"
        except RuntimeError:  # not set
            turned = False
        dynamic = any(node.op_type == "DynamicQuantizeMatMul" for node in loaded.graph.node)
        self.model = None
        if dynamic and not turned:
            self.model = ReferenceEvaluator(loaded, new_ops=[DynamicQuantizeMatMul, MatMulNBits, MultiHeadAttention])
        here = session_options(ort, signed_saturates(ort))  # exact, whatever CPU the test runs on
        self.real = ort.InferenceSession(model, here if dynamic else options, **kwargs)

    def run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = self.real.run(names, feeds) if self.model is None else self.model.run(names, feeds)
        return found

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class SaturatingEngine:
    """Stands for the module onnxruntime."""

    InferenceSession = InferenceSession

    def __getattr__(self, name: str) -> Any:
        return getattr(import_onnxruntime(), name)


def use_saturating_engine(monkeypatch: Any) -> SaturatingEngine:
    """Let the runtime, its trace and the gate's own products run on such a CPU."""
    engine = SaturatingEngine()
    for module in ("edgevlm.runtimes.ort.runtime", "edgevlm.runtimes.ort.trace", "edgevlm.verify.runtime"):
        monkeypatch.setattr(f"{module}.import_onnxruntime", lambda: engine)
    return engine


def checkpoint_of_large_codes(source: Path, out: Path) -> Path:
    """A checkpoint whose encoder's weights are all of one magnitude per matrix, so that every int8 code is +-127."""
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if "vision_model.encoder" in name and tensor.ndim == 2:
            tensors[name] = np.where(tensor < 0, -1, 1).astype(tensor.dtype) * tensor.std()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
