"""Compare a CoreML package with the eager reference operation by operation, and name the first that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.decoder import decoder
from edgevlm.models.model import image_features
from edgevlm.models.ops import Weights
from edgevlm.models.states import States
from edgevlm.models.trace import TracingOps
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.mil.file import MilOp
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


class PackageTrace:
    """An observer for `MilEvaluator.run` that keeps the values which the reference names, (rows, channels)."""

    def __init__(self, reference: Mapping[str, F32]) -> None:
        self._names = {name.replace(".", "_"): name for name in reference}
        self._channels = {name: value.shape[-1] for name, value in reference.items()}
        self.values: dict[str, F32] = {}

    def __call__(self, op: MilOp, output: str, value: npt.NDArray[Any]) -> None:
        name = self._names.get(output)
        if name is not None:
            # (1, C, 1, S), the Neural Engine's layout; heads are (1, H, S, d) in both
            if value.ndim == 4 and value.shape[2] == 1 and value.shape[1] == self._channels[name]:
                value = value[:, :, 0].transpose(0, 2, 1)
            self.values[name] = np.array(value, np.float32).reshape(-1, value.shape[-1])


BOUND = 0.05  # largest difference over RMS; fp16 norms, biases and tables alone give about 0.005


@dataclass(frozen=True)
class Divergence:
    """A named operation whose result is not the reference's. error: largest difference over the reference's RMS."""

    name: str
    error: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: differs from the reference by {self.error:.3g} of its RMS (bound {self.bound:g})"


def first_divergence(reference: dict[str, F32], package: dict[str, F32], bound: float = BOUND) -> Divergence | None:
    """The first value, in the reference's order, that the package lacks or holds with another shape or an error.

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
    bundle: Bundle,
    weights: Weights,
    pixels: F32,
    embeds: F32,
    bound: float = BOUND,
    context: int | None = None,
    layout: Layout | None = None,
) -> Divergence | None:
    """Compare a bundle's CoreML packages with `weights` in the eager reference, operation by operation.

    pixels: one view (3, H, W); embeds: at least two positions (S, D), given in two calls so that what the first
    leaves in the state counts. context: whose functions to call; None is the longest. layout: of the positions; None is
    a prompt without pictures. Returns the first operation that differs, or None.
    """
    from edgevlm.runtimes.coreml.engines import EvaluatedDecoder, EvaluatedVision
    from edgevlm.runtimes.coreml.runtime import CoreMLDecoder, CoreMLEncoder

    spec, options = bundle.manifest.spec, EngineOptions(storage="fp32")
    encoder = CoreMLEncoder(bundle, options, evaluate=True)
    runtime = CoreMLDecoder(bundle, options, context=context, evaluate=True)
    assert isinstance(encoder.engine, EvaluatedVision) and isinstance(runtime.engine, EvaluatedDecoder)
    engines = encoder.engine, runtime.engine

    def compare(ops: TracingOps, call: Callable[[], object], prefix: str) -> Divergence | None:
        trace = PackageTrace(ops.values)
        for engine in engines:
            engine.observer = trace
        call()
        found = first_divergence(ops.values, trace.values, bound)
        return found and replace(found, name=prefix + found.name)

    feeds = spec.vision.feeds(pixels)
    ops = TracingOps(weights, inputs=feeds)
    image_features(ops, spec, feeds)
    found = compare(ops, lambda: encoder.encode_pixels(pixels), "")
    held, rows, given = States(), runtime.rows_per_call(len(embeds) // 2), layout or Layout(0)
    embeds = np.resize(embeds, (2 * rows, embeds.shape[1]))
    for start, prefix in ((0, ""), (rows, "second call, ")):
        if found is None:
            part = embeds[start : start + rows]
            ops = TracingOps(weights, held, decoder_inputs(spec.decoder, given, start, rows))
            decoder(ops, part, spec.decoder)
            found = compare(ops, lambda part=part: runtime.forward(part, given), prefix)  # type: ignore[misc]
    return found
