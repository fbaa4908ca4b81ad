"""Core AI programs on coreai-core's runtime: on Linux its CPU backend, float32. Beta, for the second opinion alone.

VisionEncoder.aimodel: pixels (1, C, H, W) to image_features (1, n, D). Decoder.aimodel takes `ROWS` positions per call
and keeps nothing: the cache is an input, and the call's keys and values are outputs that are written into it here.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.models.eager import EagerOps
from edgevlm.models.llama import embed_tokens, rope_tables
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.runtimes.base import F32, I64
from edgevlm.runtimes.eager import context_error

VISION, DECODER = "VisionEncoder.aimodel", "Decoder.aimodel"
ROWS = 32  # positions per call; shorter calls are padded at the end
MASK_VALUE = np.float32(-1e4)  # finite, as in the CoreML programs


def load_coreai(part: str) -> Any:
    """The module coreai.`part`; EdgeVLMError says how to get it."""
    try:
        return importlib.import_module(f"coreai.{part}")
    except ImportError:
        raise EdgeVLMError(
            "The second opinion needs the package coreai-core (1.0.0b3), which is not installed: "
            "run pip install 'edgevlm[coreai]'."
        ) from None


class CoreAIRuntime:
    """`Runtime` over a folder of two programs; embeddings come from `weights`."""

    name = "coreai"
    device = "CPU (Core AI)"

    def __init__(self, folder: Path, spec: ModelSpec, weights: Weights, context: int) -> None:
        """context: positions of the decoder's cache, as it was written. EdgeVLMError where a program does not load."""
        self._spec, self._weights, self._context, self._position = spec, weights, context, 0
        self._array = load_coreai("runtime").NDArray
        text = spec.decoder
        self._keys = np.zeros((text.num_layers, text.num_kv_heads, context, text.head_dim), np.float32)
        self._values = np.zeros_like(self._keys)
        self._cos, self._sin = rope_tables(text, context)
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

    def _call(self, function: Any, inputs: dict[str, F32]) -> dict[str, F32]:
        async def call() -> dict[str, F32]:
            arrays = {name: self._array(np.ascontiguousarray(value)) for name, value in inputs.items()}
            outputs = await function(arrays)
            return {name: np.array(value.numpy()) for name, value in outputs.items()}

        return self._loop.run(call())

    def encode(self, pixels: F32) -> F32:
        tiles = [self._call(self._vision, {"pixels": tile[None]})["image_features"] for tile in pixels]
        return np.concatenate(tiles)

    def embed(self, ids: I64) -> F32:
        rows: F32 = embed_tokens(EagerOps(self._weights), ids)
        return rows

    def prefill(self, embeds: F32) -> F32:
        if self._position + len(embeds) > self._context:
            raise context_error(self._position + len(embeds), self._context)
        for start in range(0, len(embeds), ROWS):
            logits = self._decode(embeds[start : start + ROWS])
        return logits

    def _decode(self, embeds: F32) -> F32:
        past, count = self._position, len(embeds)
        mask = np.full((1, 1, ROWS, self._context + ROWS), MASK_VALUE)
        mask[..., :past] = 0
        mask[..., self._context :][..., np.tri(ROWS, dtype=bool)] = 0
        outputs = self._call(
            self._decoder,
            {
                "embeddings": _pad(embeds)[None],
                "mask": mask,
                "cos": _pad(self._cos[past : past + count])[None, None],
                "sin": _pad(self._sin[past : past + count])[None, None],
                "select": np.eye(ROWS, dtype=np.float32)[None, count - 1 : count],
                "key_cache": self._keys,
                "value_cache": self._values,
            },
        )
        self._keys[:, :, past : past + count] = outputs["keys"][:, :, :count]
        self._values[:, :, past : past + count] = outputs["values"][:, :, :count]
        self._position += count
        logits: F32 = outputs["logits"][0, 0]
        return logits

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._position

    def truncate(self, length: int) -> None:
        self._position = min(self._position, length)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.run(self._stack.aclose())
            self._loop.close()


def _pad(rows: F32) -> F32:
    return np.concatenate([rows, np.zeros((ROWS - len(rows), rows.shape[1]), np.float32)])
