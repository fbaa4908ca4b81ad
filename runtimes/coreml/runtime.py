"""The coreml/ folder of a bundle: on CoreML where there is one (macOS), elsewhere through the evaluator."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import CoreMLFunction, CoreMLTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, decoder_inputs, next_part
from edgevlm.inputs.preprocess import normalize
from edgevlm.models.components import HIDDEN
from edgevlm.models.eager import widen
from edgevlm.models.spec import Decoder
from edgevlm.runtimes.base import EngineOptions, Runtime, Stopped, context_error, disagreement, never, nothing, rewound
from edgevlm.runtimes.coreml.check import check_decoder, check_vision
from edgevlm.runtimes.coreml.engines import (
    DecoderEngine,
    EvaluatedDecoder,
    EvaluatedVision,
    PredictedDecoder,
    PredictedVision,
    VisionEngine,
)
from edgevlm.runtimes.coreml.inputs import most_rows, package_inputs
from edgevlm.runtimes.coreml.table import EmbeddingTable
from edgevlm.runtimes.mil.file import open_package
from edgevlm.types import F32, I64, U8

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

NAME = "coreml"
PROMPT_ROWS = 512  # rows per call of a flexible decoder: bounds the attention scores of a long prompt


def open_runtime(bundle: Bundle, options: EngineOptions, beside: Callable[[], object] = nothing) -> Runtime:
    """Off macOS, packages are evaluated in numpy."""
    beside()
    return Runtime(open_encoder(bundle, options), open_decoder(bundle, options))


def open_encoder(bundle: Bundle, options: EngineOptions) -> CoreMLEncoder:
    return CoreMLEncoder(bundle, options)


def open_decoder(bundle: Bundle, options: EngineOptions) -> CoreMLDecoder:
    return CoreMLDecoder(bundle, options)


class CoreMLEncoder:
    """`Encoder` over a bundle's VisionEncoder package.

    options.device: on macOS "cpu", "gpu" or "npu" choose CoreML's compute units; elsewhere the evaluator knows "cpu"
    alone. options.storage: the evaluator's, see runtimes/mil/evaluator.py. evaluate: use it on macOS too, as the
    reference for CoreML.
    """

    name = NAME

    def __init__(self, bundle: Bundle, options: EngineOptions, *, evaluate: bool = False) -> None:
        target = target_of(bundle, CoreMLTarget)
        package = open_package(bundle.package(target.vision.file))
        check_vision(package, target, bundle.manifest.spec)
        self._mask_value, self._inputs = target.decoder.mask_value, target.vision.inputs
        self.engine: VisionEngine
        if _on_device(options, evaluate):
            self.engine = PredictedVision(package.folder, options.device)
        else:
            self.engine = EvaluatedVision(package, options.storage)
        self.device, self._spec, self._image = self.engine.device, bundle.manifest.spec, bundle.image_spec

    def encode(self, views: Sequence[U8]) -> list[F32]:
        return [self.encode_pixels(normalize(view, self._image)) for view in views]

    def encode_pixels(self, pixels: F32) -> F32:
        """One normalized view (3, H, W) to features (tokens, D); tokens of padding come last and are dropped."""
        inputs = package_inputs(self._spec.vision.feeds(pixels), self._mask_value, self._inputs)
        rows, columns = self._spec.token_grid(*pixels.shape[1:])
        features = np.asarray(self.engine.run(inputs)["image_features"], np.float32)
        return features.reshape(-1, features.shape[-1])[: rows * columns]

    def close(self) -> None:
        self.engine.close()


class CoreMLDecoder:
    """`Decoder` over a bundle's Decoder package and its embedding table.

    context: which of the exported context lengths to use; None is the longest. Otherwise as `CoreMLEncoder`.
    """

    name = NAME

    def __init__(
        self, bundle: Bundle, options: EngineOptions, *, context: int | None = None, evaluate: bool = False
    ) -> None:
        target = target_of(bundle, CoreMLTarget)
        package = open_package(bundle.package(target.decoder.file))
        check_decoder(package, target, bundle.manifest.spec)
        self._outputs = [name for name in target.decoder.outputs if name != HIDDEN]
        self._gives_hidden, self._mask_value = HIDDEN in target.decoder.outputs, target.decoder.mask_value
        self._hidden = np.zeros(bundle.manifest.spec.decoder.hidden_size, np.float32)
        self._table = EmbeddingTable(bundle.path(target.embedding.file), target.embedding)
        second = target.per_layer_embedding
        self._second = None if second is None else EmbeddingTable(bundle.path(second.file), second)
        self._functions = _of_context(target.decoder.functions, context)
        names = list(self._functions)
        self.engine: DecoderEngine
        if _on_device(options, evaluate):
            self.engine = PredictedDecoder(package.folder, names, options.device)
        else:
            self.engine = EvaluatedDecoder(package, names[0], options.storage)
        self.device = self.engine.device
        self.context = self._functions[names[0]].context
        self._flexible = names == ["main"]
        self._spec: Decoder = bundle.manifest.spec.decoder
        self.layout, self._position = Layout(0), 0

    def embed(self, ids: I64) -> F32:
        rows = self._table.rows(ids)
        scale = self._spec.embed_scale
        rows = rows if scale == 1.0 else rows * np.float32(scale)
        if self._second is not None:
            return np.concatenate([rows, self._second.rows(ids) * np.float32(self._spec.per_layer_scale)], axis=1)
        return widen(rows, self._spec.embed_width)

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        total = self._position + len(embeds)
        limit = min(self.context, self._spec.context_length)
        if total > limit:
            raise context_error(total, limit)
        if len(embeds) == 0:
            raise EdgeVLMError("The prompt is empty: give at least one position.")
        if layout is not None:
            self.layout = layout
        start = 0
        while start < len(embeds):
            if start and stopped():
                raise Stopped
            rows = embeds[start : start + self._rows(len(embeds) - start)]
            logits = self._call(rows)
            start += len(rows)
            self._position += len(rows)
        return logits

    def step(self, token: int) -> F32:
        return self.forward(self.embed(np.array([token], np.int64)))

    def rows_per_call(self, wanted: int) -> int:
        """Prompt rows that each of two calls takes without padding: `wanted` where lengths are flexible, in bounds."""
        if not self._flexible:
            return max(info.rows for info in self._functions.values() if 2 * info.rows <= self.context)
        return max(1, min(wanted, most_rows(self._spec) or PROMPT_ROWS))

    def _rows(self, left: int) -> int:
        """How many rows the next call takes.

        A fixed prompt function is padded, where the cache has room for it. A state that is overwritten has none.
        """
        start, mask = self._position, self._spec.mask
        if self._flexible:
            return next_part(self.layout, mask, start, start + left, self.rows_per_call(left)) - start
        sizes = [info.rows for info in self._functions.values() if start + info.rows <= self.context]
        if self._spec.replaces:
            return max(sizes) if left >= max(sizes) else 1
        wanted = next_part(self.layout, mask, start, start + left, max(sizes)) - start
        if wanted > max(sizes):
            raise EdgeVLMError(
                f"{wanted} positions see each other and are read by one call, for which the {self.context} positions "
                f"of this package have no room behind {start}: use a longer context, or the profile 'gpu'."
            )
        return wanted

    def _call(self, rows: F32) -> F32:
        new, past = len(rows), self._position
        name, size, end = "main", new, past + new
        if not self._flexible:
            room = range(new, self.context - past + 1)
            fitting = {name: info.rows for name, info in self._functions.items() if info.rows in room}
            name = min(fitting, key=lambda name: fitting[name])
            size, end = fitting[name], self.context
        feeds = decoder_inputs(self._spec, self.layout, past, size)
        feeds = {
            name: np.pad(value, ((0, 0), (0, end - past - size))) if value.dtype == np.bool_ else value
            for name, value in feeds.items()
        }
        embeds = np.zeros((1, size, rows.shape[1]), np.float32)
        embeds[0, :new] = rows
        inputs = {
            "embeddings": embeds,
            "position": np.array([past], np.int32),
            **package_inputs(feeds, self._mask_value),
        }
        if not self._flexible and size > 1:
            inputs["select"] = (np.arange(size) == new - 1).astype(np.float32)[None, None, None]
        found = self.engine.run(name, inputs)
        logits = np.concatenate([np.asarray(found[output], np.float32).reshape(-1) for output in self._outputs])
        if len(logits) != self._spec.vocab_size:
            raise disagreement(f"'{name}' gives {len(logits)} logits for {self._spec.vocab_size} tokens")
        if self._gives_hidden:
            self._hidden = np.asarray(found[HIDDEN], np.float32).reshape(-1)
            if len(self._hidden) != self._spec.hidden_size:
                raise disagreement(f"'{name}' gives a hidden state of {len(self._hidden)} values")
        return logits

    def hidden_state(self) -> F32:
        return self._hidden

    @property
    def position(self) -> int:
        return self._position

    def rewind(self, length: int) -> None:
        """Positions behind `length` stay in the state until they are overwritten; the mask hides them."""
        self._position = rewound(self._spec, self._position, length)
        if self._position == 0:
            self.layout = Layout(0)
            if self._spec.replaces:
                self.engine.reset()

    def close(self) -> None:
        self.engine.close()
        self._position = 0


def _on_device(options: EngineOptions, evaluate: bool) -> bool:
    """Whether CoreML itself runs the package; EdgeVLMError for a device that only it would reach."""
    if platform.system() == "Darwin" and not evaluate:
        return True
    if options.device != "cpu":
        raise EdgeVLMError(
            f"Runtime 'coreml' reaches the {options.device.upper()} on macOS only; here its packages are "
            "evaluated in numpy: use --device cpu."
        )
    return False


def _of_context(exported: dict[str, CoreMLFunction], context: int | None) -> dict[str, CoreMLFunction]:
    lengths = sorted({info.context for info in exported.values()})
    if not lengths:
        raise EdgeVLMError("The CoreML decoder has no functions: export the bundle again.")
    wanted = lengths[-1] if context is None else context
    if wanted not in lengths:
        raise EdgeVLMError(
            f"The CoreML decoder has no context length {wanted}: choose one of {', '.join(map(str, lengths))}."
        )
    return {name: info for name, info in exported.items() if info.context == wanted}
