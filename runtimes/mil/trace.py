"""Compare a CoreML package with the eager reference operation by operation, and name the first that
differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.models.decoder import decoder
from edgevlm.models.ops import Weights
from edgevlm.models.trace import TracingOps
from edgevlm.runtimes.mil.file import MilOp
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


def value_name(kind: str, *of: Any) -> str:
    """The name that the result of a macro-operation has in traces and in MIL programs.

    ("linear", "decoder.layers.0.q", "decoder.layers.0.k") gives "decoder.layers.0.q_k".
    """
    if kind == "linear":
        parent = of[0].rpartition(".")[0]
        return f"{parent}.{'_'.join(name.rpartition('.')[2] for name in of)}"
    if kind == "attention":
        return f"vision.layers.{of[0]}.attention"
    if kind == "cached_attention":
        return f"decoder.layers.{of[0]}.attention"
    return str(of[0])


class PackageTrace:
    """An observer for `MilEvaluator.run` that keeps the values which the reference names."""

    def __init__(self, names: set[str]) -> None:
        self._names = {name.replace(".", "_"): name for name in names}
        self.values: dict[str, F32] = {}

    def __call__(self, op: MilOp, output: str, value: npt.NDArray[Any]) -> None:
        name = self._names.get(output)
        if name is not None:
            if value.ndim == 4 and value.shape[2] == 1:  # (1, C, 1, S), the Neural Engine's layout
                value = value[:, :, 0].transpose(0, 2, 1)
            self.values[name] = np.array(value, np.float32).reshape(-1, value.shape[-1])


BOUND = 0.05  # largest difference over RMS; fp16 norms, biases and tables alone give about 0.005


@dataclass(frozen=True)
class Divergence:
    """A named operation whose result is not the reference's. error: largest difference over the reference's
    RMS."""

    name: str
    error: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: differs from the reference by {self.error:.3g} of its RMS (bound {self.bound:g})"


def first_divergence(reference: dict[str, F32], package: dict[str, F32], bound: float = BOUND) -> Divergence | None:
    """The first value, in the reference's order, that the package lacks, shapes otherwise, or holds with an
    error.

    The bound is for storage="fp32", where only the fp16 of norms, biases and inputs separates the two.
    """
    for name, expected in reference.items():
        found = package.get(name)
        if found is None or found.shape != expected.shape:
            return Divergence(name, float("inf"), bound)
        scale = float(np.sqrt(np.square(expected, dtype=np.float64).mean())) or 1.0
        error = float(np.abs(found - expected).max()) / scale
        if not error <= bound:
            return Divergence(name, error, bound)
    return None


def find_divergence(
    bundle: Bundle, weights: Weights, pixels: F32, embeds: F32, bound: float = BOUND, context: int | None = None
) -> Divergence | None:
    """Compare a bundle's CoreML packages with `weights` in the eager reference, operation by operation.

    pixels: one tile (1, 3, S, S); embeds: at least two positions (S, D), given in two calls so that what the
    first leaves in the state counts. context: whose functions to call; None is the longest. Returns the first
    operation that differs, or None.
    """
    from edgevlm.runtimes.coreml import CoreMLRuntime, EvaluatorEngine

    spec = bundle.manifest.spec
    runtime = CoreMLRuntime(bundle, storage="fp32", context=context, evaluate=True)
    engine = runtime.engine
    assert isinstance(engine, EvaluatorEngine)

    def compare(ops: TracingOps, call: Callable[[], object], prefix: str) -> Divergence | None:
        trace = PackageTrace(set(ops.values))
        engine.observer = trace
        call()
        found = first_divergence(ops.values, trace.values, bound)
        return found and replace(found, name=prefix + found.name)

    ops = TracingOps(weights)
    projector(ops, vision_tower(ops, pixels, spec.vision), spec.projector)
    found = compare(ops, lambda: runtime.encode(pixels), "")
    cache, rows = KVCache(spec.decoder), runtime.rows_per_call(len(embeds) // 2)
    embeds = np.resize(embeds, (2 * rows, embeds.shape[1]))
    for part, prefix in ((embeds[:rows], ""), (embeds[rows:], "second call, ")):
        if found is None:
            ops = TracingOps(weights, cache, keep=1)
            decoder(ops, part, spec.decoder)
            found = compare(ops, lambda rows=part: runtime.prefill(rows), prefix)  # type: ignore[misc]
    return found
