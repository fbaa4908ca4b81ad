"""CoreMLRuntime: a bundle's CoreML packages behind the protocol of all engines."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.io.records import from_dict
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.coreml.engines import Engine, EvaluatorEngine, PredictEngine
from edgevlm.runtimes.coreml.inputs import package_inputs
from edgevlm.runtimes.coreml.table import EmbeddingTable, TableInfo
from edgevlm.runtimes.eager import context_error
from edgevlm.types import F32, I64

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

PROMPT_ROWS = 512  # rows per call of a flexible decoder: bounds the attention scores of a long prompt


@dataclass(frozen=True)
class FunctionInfo:
    """One decoder function: rows per call and positions of its cache."""

    context: int
    rows: int


class CoreMLRuntime:
    """`Runtime` over a bundle's CoreML packages.

    device: on macOS "cpu", "gpu" or "npu" choose CoreML's compute units; elsewhere the evaluator knows "cpu" alone.
    storage: the evaluator's, see runtimes/mil/evaluator.py. context: which of the exported context lengths to use; None
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
            exported = {
                name: from_dict(FunctionInfo, info, where) for name, info in target["decoder"]["functions"].items()
            }
            self._outputs = [str(name) for name in target["decoder"]["outputs"]]
            self._mask_value = float(target["decoder"]["mask_value"])
            self._vision_inputs: dict[str, list[int | str]] = dict(target["vision"]["inputs"])
            table = from_dict(TableInfo, target["embedding"], where)
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgeVLMError(f"{where} is incomplete ({error}): export the bundle again.") from None
        self._table = EmbeddingTable(bundle.path(table.file), table)
        self._functions = _of_context(exported, context)
        names = list(self._functions)
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
        self.context = self._functions[names[0]].context
        self._flexible = names == ["main"]
        self._spec: ModelSpec = bundle.manifest.spec
        self._layout, self._position = Layout(0), 0

    def encode(self, pixels: F32) -> F32:
        return np.concatenate([self._encode(view) for view in pixels]).astype(np.float32)

    def _encode(self, pixels: F32) -> Any:
        """One view (3, H, W) to features (1, tokens, D); tokens of padding come last and are dropped."""
        feeds = self._spec.vision.feeds(pixels)
        inputs = package_inputs(feeds, self._mask_value, self._vision_inputs)
        rows, columns = self._spec.token_grid(*pixels.shape[1:])
        return self.engine.encode(inputs)["image_features"][:, : rows * columns]

    def embed(self, ids: I64) -> F32:
        rows = self._table.rows(ids)
        scale = self._spec.decoder.embed_scale
        return rows if scale == 1.0 else rows * np.float32(scale)

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        total = self._position + len(embeds)
        limit = min(self.context, self._spec.decoder.context_length)
        if total > limit:
            raise context_error(total, limit)
        if len(embeds) == 0:
            raise EdgeVLMError("The prompt is empty: give at least one position.")
        if layout is not None:
            self._layout = layout
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
        """Prompt rows that one call takes without padding: `wanted` where lengths are flexible, within bounds."""
        if not self._flexible:
            return max(info.rows for info in self._functions.values())
        # A prompt whose positions see later ones is read whole.
        return max(1, min(wanted, PROMPT_ROWS)) if self._spec.decoder.mask == "causal" else wanted

    def _rows(self, left: int) -> int:
        """How many rows the next call takes: a fixed prompt function is padded, where the cache has room for it."""
        longest = self.rows_per_call(left)
        if self._flexible:
            return longest
        return min(left, longest) if left > 1 and self._position + longest <= self.context else 1

    def _call(self, rows: F32) -> F32:
        new, past = len(rows), self._position
        name, size, end = "main", new, past + new
        if not self._flexible:
            fitting = {name: info.rows for name, info in self._functions.items() if info.rows >= new}
            name = min(fitting, key=lambda name: fitting[name])
            size, end = fitting[name], self.context
        feeds = decoder_inputs(self._spec.decoder, self._layout, past, size)
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
        found = self.engine.decode(name, inputs)
        return np.concatenate([np.asarray(found[output], np.float32).reshape(-1) for output in self._outputs])

    @property
    def position(self) -> int:
        return self._position

    def truncate(self, length: int) -> None:
        """Positions behind `length` stay in the state until they are overwritten; the mask hides them."""
        self._position = max(0, min(self._position, length))
        if self._position == 0:
            self._layout = Layout(0)

    def close(self) -> None:
        self.engine.close()
        self._position = 0


def _package(bundle: Bundle, file: str) -> Path:
    return bundle.path(f"{file}/Manifest.json").parent


def _of_context(exported: dict[str, FunctionInfo], context: int | None) -> dict[str, FunctionInfo]:
    lengths = sorted({info.context for info in exported.values()})
    wanted = lengths[-1] if context is None else context
    if wanted not in lengths:
        raise EdgeVLMError(
            f"The CoreML decoder has no context length {wanted}: choose one of {', '.join(map(str, lengths))}."
        )
    return {name: info for name, info in exported.items() if info.context == wanted}
