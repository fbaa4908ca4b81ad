"""Core AI programs on coreai-core's runtime: on Linux its CPU backend, float32. Beta, for the second opinion alone.

VisionEncoder.aimodel takes the tower's inputs of one view, masks as numbers to add. Decoder.aimodel takes
`rows_per_call` positions per call and keeps nothing: each growing state is an input, and what the call adds to it is an
output that is written into it here.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.inputs.preprocess import normalize
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import embed_tokens
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.spec import Decoder, states
from edgevlm.runtimes.base import Stopped, context_error, never
from edgevlm.types import F32, I64, U8

VISION, DECODER = "VisionEncoder.aimodel", "Decoder.aimodel"
ROWS = 32  # positions per call of a causal decoder; shorter calls are padded at the end
MASK_VALUE = -1e4  # finite, as in the CoreML programs


def load_coreai(part: str) -> Any:
    """The module coreai.`part`; EdgeVLMError says how to install it."""
    try:
        return importlib.import_module(f"coreai.{part}")
    except ImportError:
        raise EdgeVLMError(
            "The second opinion needs the package coreai-core (1.0.0b3), which is not installed: "
            f"{install_hint('coreai')}."
        ) from None


def rows_per_call(d: Decoder, context: int) -> int:
    """Positions per call: all of the cache where some see later ones, which one call has to read together."""
    return ROWS if d.mask == "causal" else context


def state_input(name: str) -> str:
    """The decoder's input that holds a state (1, kv heads, past, head size); names are Python identifiers."""
    return f"past_{name.replace('.', '_')}"


def state_output(name: str) -> str:
    """The output that a call adds to it, (1, kv heads, rows, head size)."""
    return f"new_{name.replace('.', '_')}"


class CoreAIRuntime:
    """`Encoder` and `Decoder` over a folder of two programs; embeddings come from `weights`."""

    name = "coreai"
    device = "CPU (Core AI)"

    def __init__(self, folder: Path, spec: ModelSpec, weights: Weights, image: ImageSpec, context: int) -> None:
        """context: positions of the decoder's cache, as it was written. EdgeVLMError where a program does not load."""
        self._spec, self._weights, self._image = spec, weights, image
        self._context, self._position = context, 0
        self._rows = rows_per_call(spec.decoder, context)
        self._array = load_coreai("runtime").NDArray
        self.layout = Layout(0)
        self._states = {
            state.name: np.zeros((1, *(size or context for size in state.shape)), np.float32)
            for state in states(spec.decoder)
        }
        self._loop, self._stack, self._closed = asyncio.Runner(), AsyncExitStack(), False
        try:
            self._vision, self._decoder = (self._loop.run(self._load(folder / name)) for name in (VISION, DECODER))
        except BaseException:
            self.close()
            raise

    async def _load(self, path: Path) -> Any:
        try:
            # 1.0.0b3 aborts the process on a damaged program instead of raising.
            if hashlib.sha256((path / "main.mlirb").read_bytes()).digest() != (path / "main.hash").read_bytes():
                raise ValueError("it is damaged")
            asset = load_coreai("authoring").AIModelAsset.load(path)
            model = await self._stack.enter_async_context(asset.executable())
            return model.load_function("main")
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise EdgeVLMError(f"Core AI cannot load '{path}' ({error}): write it again.") from error

    def _call(self, function: Any, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, F32]:
        async def call() -> dict[str, F32]:
            arrays = {name: self._array(np.ascontiguousarray(value)) for name, value in inputs.items()}
            outputs = await function(arrays)
            return {name: np.array(value.numpy()) for name, value in outputs.items()}

        return self._loop.run(call())

    def encode(self, views: Sequence[U8]) -> list[F32]:
        return [self._encode(normalize(view, self._image)) for view in views]

    def _encode(self, pixels: F32) -> F32:
        """One normalized view (3, H, W), padded to what the program takes, to features (tokens, D)."""
        inputs = {}
        for name, value in self._spec.vision.feeds(pixels).items():
            shape = self._vision.desc.input_descriptor(name).shape
            inputs[name] = _fill(value, shape, MASK_VALUE if value.dtype == np.bool_ else 0)
        rows, columns = self._spec.token_grid(*pixels.shape[1:])
        return self._call(self._vision, inputs)["image_features"][0, : rows * columns]

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self._weights), ids, self._spec.decoder)
        return rows

    def forward(self, embeds: F32, layout: Layout | None = None, stopped: Callable[[], bool] = never) -> F32:
        if self._position + len(embeds) > self._context:
            raise context_error(self._position + len(embeds), self._context)
        if layout is not None:
            self.layout = layout
        for start in range(0, len(embeds), self._rows):
            if start and stopped():
                raise Stopped
            logits = self._decode(embeds[start : start + self._rows])
        return logits

    def _decode(self, embeds: F32) -> F32:
        past, count = self._position, len(embeds)
        inputs: dict[str, npt.NDArray[Any]] = {state_input(name): held for name, held in self._states.items()}
        for name, value in decoder_inputs(self._spec.decoder, self.layout, past, self._rows).items():
            if value.dtype == np.bool_:  # this call's rows lie behind the whole cache
                value = np.insert(value, [past] * (self._context - past), False, axis=1)
            inputs[name] = _fill(value, value.shape, MASK_VALUE)
        inputs["embeddings"] = _fill(embeds[None], (1, self._rows, embeds.shape[1]), 0)
        inputs["select"] = np.eye(self._rows, dtype=np.float32)[None, count - 1 : count]
        outputs = self._call(self._decoder, inputs)
        for name, held in self._states.items():
            held[:, :, past : past + count] = outputs[state_output(name)][:, :, :count]
        self._position += count
        logits: F32 = outputs["logits"][0, 0]
        return logits

    def step(self, token: int) -> F32:
        return self.forward(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._position

    def rewind(self, length: int) -> None:
        self._position = min(self._position, length)
        if self._position == 0:
            self.layout = Layout(0)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.run(self._stack.aclose())
            self._loop.close()


def _fill(value: npt.NDArray[Any], shape: Sequence[int | None], filling: float) -> npt.NDArray[Any]:
    """The value as programs take it, padded at the end of its axes; masks become numbers to add."""
    widths = [(0, (size or 0) - given) for size, given in zip(shape, value.shape, strict=True)]
    if any(width < 0 for _, width in widths):
        raise EdgeVLMError(
            f"A picture that needs the shape {list(value.shape)} is too large for a Core AI program that was written "
            f"for {list(shape)}: write it for this picture."
        )
    if value.dtype == np.bool_:
        value = np.where(value, np.float32(0), np.float32(MASK_VALUE))
    elif value.dtype == np.int64:
        value = value.astype(np.int32)
    return np.pad(value, widths, constant_values=filling)
