"""Which operations of a CoreML package leave fp16's range on given inputs, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.mil.file import MilOp
from edgevlm.types import F32, I64

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

PEAK = 3e4  # just under half of fp16's largest number, 65504: the next doubling overflows
FLUSHED = 0.01  # share of non-zero values that fp16 stores as zero
_HALF_OF_SMALLEST = 2.0**-25  # below it, fp16 rounds to zero
# Their tails are meant to vanish: a share of zeros says nothing about them unless everything is lost.
_SATURATING = frozenset({"softmax", "scaled_dot_product_attention", "silu", "gelu", "sigmoid", "exp", "relu"})


@dataclass(frozen=True)
class OverflowRow:
    """One operation over all inputs. peak: largest finite |x| before storage. nonfinite: values stored as inf or NaN.

    flushed: largest share of a call's non-zero values that storage turned into zero.
    """

    name: str
    type: str
    peak: float
    nonfinite: int
    flushed: float

    @property
    def overflows(self) -> bool:
        return self.nonfinite > 0 or self.peak > PEAK

    @property
    def flushes(self) -> bool:
        return self.flushed > (0.999 if self.type in _SATURATING else FLUSHED)

    def __str__(self) -> str:
        text = f"{self.name} ({self.type}): largest value {self.peak:.4g}"
        if self.nonfinite:
            text += f", {self.nonfinite} values not finite"
        return text + (f", {self.flushed:.1%} of values flushed to zero" if self.flushed else "")


class OverflowObserver:
    """An observer for `MilEvaluator.run` with fp16 storage; `rows` are in the order of the program."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], OverflowRow] = {}
        self._prefix = ""

    def start(self, prefix: str) -> None:
        """Name what follows, such as "vision: "."""
        self._prefix = prefix

    def __call__(self, op: MilOp, output: str, value: npt.NDArray[Any]) -> None:
        kind = next((kind for name, kind in op.outputs if name == output), None)
        if kind is None or kind.dtype != "fp16" or value.dtype.kind != "f" or not value.size:
            return
        size = np.abs(value)
        finite = np.isfinite(size)
        peak = float(np.max(size, where=finite, initial=0.0))
        lost = int(size.size - np.count_nonzero(finite)) + int(np.count_nonzero(size[finite] >= 65520.0))
        nonzero = int(np.count_nonzero(size))
        small = int(np.count_nonzero(size <= _HALF_OF_SMALLEST)) - (size.size - nonzero)
        key = (self._prefix, output)
        old = self._rows.get(key, OverflowRow("", "", 0.0, 0, 0.0))
        self._rows[key] = OverflowRow(
            f"{self._prefix}{output}",
            op.type,
            max(old.peak, peak),
            old.nonfinite + lost,
            max(old.flushed, small / nonzero if nonzero else 0.0),
        )

    @property
    def rows(self) -> tuple[OverflowRow, ...]:
        return tuple(self._rows.values())

    @property
    def problems(self) -> tuple[OverflowRow, ...]:
        """The operations to look at; the first is where the trouble starts."""
        return tuple(row for row in self._rows.values() if row.overflows or row.flushes)


def overflow_report(bundle: Bundle, pictures: Iterable[Sequence[F32]], ids: I64 | None = None) -> OverflowObserver:
    """Run a bundle's CoreML packages with fp16 storage over `pictures`, normalized views (3, H, W) of each.

    The decoder reads each picture's features, and then the embeddings of `ids` where they are given.
    """
    from edgevlm.runtimes.coreml.engines import EvaluatedDecoder, EvaluatedVision
    from edgevlm.runtimes.coreml.runtime import CoreMLDecoder, CoreMLEncoder

    encoder = CoreMLEncoder(bundle, EngineOptions(), evaluate=True)
    decoder = CoreMLDecoder(bundle, EngineOptions(), evaluate=True)
    assert isinstance(encoder.engine, EvaluatedVision) and isinstance(decoder.engine, EvaluatedDecoder)
    observer = encoder.engine.observer = decoder.engine.observer = OverflowObserver()
    for views in pictures:
        observer.start("vision: ")
        features = [encoder.encode_pixels(view) for view in views]
        observer.start("decoder: ")
        decoder.rewind(0)
        rows = np.concatenate(features)
        if ids is not None:
            rows = np.concatenate([rows, decoder.embed(ids)])
        decoder.forward(rows[: decoder.context])
    return observer
