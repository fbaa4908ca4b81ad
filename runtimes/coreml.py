"""The coreml/ folder of a bundle: on CoreML where there is one (macOS), elsewhere through the evaluator in
mil.py."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.io.records import from_dict
from edgevlm.models.llama import rope_tables
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.base import F32, I64
from edgevlm.runtimes.eager import context_error
from edgevlm.runtimes.mil.blob import unpack
from edgevlm.runtimes.mil.evaluator import MilEvaluator, Observer, State

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

PROMPT_ROWS = 512  # rows per call of a flexible decoder: bounds the attention scores of a long prompt
KEPT_TILES = 32
_COMPUTE_UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}


@dataclass(frozen=True)
class Span:
    """One decoder function: rows per call and positions of its cache."""

    context: int
    rows: int


@dataclass(frozen=True)
class TableInfo:
    """Where the embedding table's codes and scales lie in its file: [first byte, bytes]."""

    file: str
    kind: str
    shape: tuple[int, int]
    codes: tuple[int, int]
    scale: tuple[int, int] | None = None
    scale_shape: tuple[int, int] | None = None


class Engine(Protocol):
    """Runs the two packages; holds the decoder's state."""

    device: str

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class EvaluatorEngine:
    """The packages on numpy. `observer` sees every value before it is stored."""

    def __init__(self, vision: Path, decoder: Path, function: str, storage: str) -> None:
        self.vision, self.decoder = MilEvaluator(vision, storage), MilEvaluator(decoder, storage)
        self.state: State = self.decoder.make_state(function)
        self.observer: Observer | None = None
        self._tiles: dict[bytes, Mapping[str, Any]] = {}  # a tile takes seconds, and the gate asks for some often
        self.device = f"CPU (evaluator in numpy, {storage} storage)"

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.observer is not None:
            return self.vision.run(inputs, observer=self.observer)
        key = hashlib.sha256(np.ascontiguousarray(inputs["pixels"])).digest()
        if key not in self._tiles:
            if len(self._tiles) >= KEPT_TILES:
                self._tiles.pop(next(iter(self._tiles)))
            self._tiles[key] = self.vision.run(inputs)
        return self._tiles[key]

    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.decoder.run(inputs, self.state, function, self.observer)

    def close(self) -> None:
        self.state, self._tiles = {}, {}


class PredictEngine:
    """The packages on Apple's CoreML, through coremltools. Written from its documentation; macOS only."""

    def __init__(self, vision: Path, decoder: Path, functions: list[str], device: str) -> None:
        try:
            import coremltools as ct
        except ImportError:
            raise EdgeVLMError(
                "The CoreML runtime on macOS needs the package coremltools: pip install 'edgevlm[coreml]'."
            ) from None
        units = getattr(ct.ComputeUnit, _COMPUTE_UNITS[device])
        self._vision = ct.models.MLModel(str(vision), compute_units=units)
        self._functions = {
            name: ct.models.MLModel(
                str(decoder), compute_units=units, function_name=None if functions == ["main"] else name
            )
            for name in functions
        }
        self._state = self._functions[functions[0]].make_state()
        self.device = f"CoreML ({units.name})"

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._vision.predict(_device_arrays(inputs))
        return found

    def decode(self, function: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._functions[function].predict(_device_arrays(inputs), state=self._state)
        return found

    def close(self) -> None:
        self._functions, self._state = {}, None


def _device_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x if x.dtype == np.int32 else x.astype(np.float16) for name, x in inputs.items()}


class CoreMLRuntime:
    """`Runtime` over a bundle's CoreML packages.

    device: on macOS "cpu", "gpu" or "npu" choose CoreML's compute units; elsewhere the evaluator knows "cpu"
    alone. storage: the evaluator's, see mil.py. context: which of the exported context lengths to use; None
    is the longest. evaluate: use the evaluator on macOS too, as the reference for CoreML.
    """

    name = "coreml"

    def __init__(
        self,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        *,
        storage: str = "fp16",
        context: int | None = None,
        evaluate: bool = False,
    ) -> None:
        target = bundle.manifest.targets.get("coreml")
        if target is None:
            raise EdgeVLMError(
                f"The bundle '{bundle.folder}' holds no CoreML packages: export it again with them, "
                f"`edgevlm export MODEL --target coreml -o {bundle.folder} --force`."
            )
        where = f"{bundle.folder}/manifest.json: coreml"
        try:
            vision, decoder = (_package(bundle, target[part]["file"]) for part in ("vision", "decoder"))
            spans = {name: from_dict(Span, span, where) for name, span in target["decoder"]["functions"].items()}
            self._outputs = [str(name) for name in target["decoder"]["outputs"]]
            mask_value = target["decoder"]["mask_value"]
            table = from_dict(TableInfo, target["embedding"], where)
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgeVLMError(f"{where} is incomplete ({error}): export the bundle again.") from None
        self._table = EmbeddingTable(bundle.path(table.file), table)
        functions = _of_context(spans, context)
        names = list(functions)
        if platform.system() == "Darwin" and not evaluate:
            self.engine: Engine = PredictEngine(vision, decoder, names, device)
        elif device != "cpu":
            raise EdgeVLMError(
                f"Runtime 'coreml' reaches the {device.upper()} on macOS only; here its packages are "
                "evaluated in numpy: use --device cpu."
            )
        else:
            self.engine = EvaluatorEngine(vision, decoder, names[0], storage)
        self.device = self.engine.device
        self._setup(bundle.manifest.spec, functions, float(mask_value))

    def _setup(self, spec: ModelSpec, functions: dict[str, Span], mask_value: float) -> None:
        self._spec, self._functions, self._mask_value = spec, functions, mask_value
        self.context = next(iter(functions.values())).context
        self._flexible = list(functions) == ["main"]
        self._position = 0
        self._rope = rope_rows(spec, self.context)

    def encode(self, pixels: F32) -> F32:
        tiles = [self.engine.encode({"pixels": pixels[i : i + 1]})["image_features"] for i in range(len(pixels))]
        return np.concatenate(tiles).astype(np.float32)

    def embed(self, ids: I64) -> F32:
        return self._table.rows(ids)

    def prefill(self, embeds: F32) -> F32:
        total = self._position + len(embeds)
        limit = min(self.context, self._spec.decoder.context_length)
        if total > limit:
            raise context_error(total, limit)
        if len(embeds) == 0:
            raise EdgeVLMError("The prompt is empty: give at least one position.")
        start = 0
        while start < len(embeds):
            rows = embeds[start : start + self._rows(len(embeds) - start)]
            logits = self._call(rows)
            start += len(rows)
            self._position += len(rows)
        return logits

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    def rows_per_call(self, wanted: int) -> int:
        """Prompt rows that one call takes without padding: `wanted` where lengths are flexible, within
        bounds."""
        if self._flexible:
            return max(1, min(wanted, PROMPT_ROWS))
        return max(span.rows for span in self._functions.values())

    def _rows(self, left: int) -> int:
        """How many rows the next call takes: a fixed prompt function is padded, where the cache has room for
        it."""
        longest = self.rows_per_call(left)
        if self._flexible:
            return longest
        return min(left, longest) if left > 1 and self._position + longest <= self.context else 1

    def _call(self, rows: F32) -> F32:
        new, position = len(rows), self._position
        if self._flexible:
            name, size, end = "main", new, position + new
        else:
            name = min(
                (n for n, s in self._functions.items() if s.rows >= new),
                key=lambda n: self._functions[n].rows,
            )
            size, end = self._functions[name].rows, self.context
        embeds = np.zeros((1, size, rows.shape[1]), np.float32)
        embeds[0, :new] = rows
        inputs = {
            "embeddings": embeds,
            "mask": causal_mask(size, position, end, self._mask_value),
            "position": np.array([position], np.int32),
            "cos": self._rope[0][None, None, position : position + size],
            "sin": self._rope[1][None, None, position : position + size],
        }
        if not self._flexible and size > 1:
            inputs["select"] = (np.arange(size) == new - 1).astype(np.float32)[None, None, None]
        found = self.engine.decode(name, inputs)
        logits = [np.asarray(found[output], np.float32).reshape(-1) for output in self._outputs]
        return np.concatenate(logits)

    @property
    def position(self) -> int:
        return self._position

    def truncate(self, length: int) -> None:
        """Positions behind `length` stay in the state until they are overwritten; the mask hides them."""
        self._position = max(0, min(self._position, length))

    def close(self) -> None:
        self.engine.close()
        self._position = 0


def causal_mask(rows: int, position: int, end: int, value: float) -> F32:
    """(1, 1, rows, end): 0 where row i, at `position` + i, may look, and `value` after it."""
    future = np.arange(end)[None] > (position + np.arange(rows))[:, None]
    return np.where(future, np.float32(value), np.float32(0))[None, None]


def rope_rows(spec: ModelSpec, length: int) -> tuple[F32, F32]:
    """cos and sin (length, head size) as the packages take them: x * cos + swapped halves of x * sin."""
    cos, sin = rope_tables(spec.decoder, length)
    return np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)


def _package(bundle: Bundle, file: str) -> Path:
    return bundle.path(f"{file}/Manifest.json").parent


def _of_context(spans: dict[str, Span], context: int | None) -> dict[str, Span]:
    lengths = sorted({span.context for span in spans.values()})
    wanted = lengths[-1] if context is None else context
    if wanted not in lengths:
        raise EdgeVLMError(
            f"The CoreML decoder has no context length {wanted}: choose one of {', '.join(map(str, lengths))}."
        )
    return {name: span for name, span in spans.items() if span.context == wanted}


class EmbeddingTable:
    """embedding.bin, mapped: only the rows that a prompt uses are read."""

    def __init__(self, path: Path, info: TableInfo) -> None:
        self._info = info
        width = info.shape[1] // 2 if info.kind == "int4" else info.shape[1]
        dtype = {"fp16": "<f2", "int8": "i1", "int4": "u1"}.get(info.kind)
        if dtype is None:
            raise EdgeVLMError(f"'{path.name}' has the unknown kind '{info.kind}': export the bundle again.")
        self._codes = _map(path, dtype, info.codes, (info.shape[0], width))
        self._scale: npt.NDArray[Any] | None = None
        if info.scale is not None and info.scale_shape is not None:
            self._scale = _map(path, "<f2", info.scale, info.scale_shape)

    def rows(self, ids: I64) -> F32:
        """Embeddings (S, D) float32 of the ids (S,)."""
        rows, width = self._info.shape
        if len(ids) and not (int(np.min(ids)) >= 0 and int(np.max(ids)) < rows):
            raise EdgeVLMError(f"A token id is outside the vocabulary of {rows}: use the bundle's own tokenizer.")
        codes = np.asarray(self._codes[ids])
        if self._info.kind == "int4":
            codes = unpack(codes.reshape(-1), "int4", len(ids) * width).reshape(len(ids), width)
        values = codes.astype(np.float32)
        if self._scale is not None:
            scale = self._scale[ids].astype(np.float32)
            values = (values.reshape(len(ids), scale.shape[1], -1) * scale[:, :, None]).reshape(len(ids), width)
        return values


def _map(path: Path, dtype: str, span: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[Any]:
    start, count = span
    fits = min(start, *shape) >= 0 and int(np.prod(shape)) * np.dtype(dtype).itemsize == count
    if not fits or start + count > path.stat().st_size:
        raise EdgeVLMError(
            f"'{path.name}' does not hold the table that the manifest describes: export the bundle again."
        )
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape)
