"""Merge a LoRA adapter (a folder that `peft` saved) into a checkpoint's tensors as they are read, torch-free.

W + scale * B @ A, as peft's merge_and_unload does, but in float32 whatever type the checkpoint stores.
LoRA: arXiv 2106.09685, rsLoRA: arXiv 2312.03732, DoRA: arXiv 2402.09353.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.checkpoint.safetensors import SafetensorsFile
from edgevlm.errors import EdgeVLMError
from edgevlm.io.json import read_object
from edgevlm.types import F32

_EMBED, _HEAD = "text_model.embed_tokens.weight", "lm_head.weight"
_ROOT = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
# Options of peft's LoraConfig that make the result something else than W + scale * B @ A.
_UNSUPPORTED = (
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "megatron_config",
)
# These only choose how A and B start; PiSSA, OLoRA, CorDA, LoftQ and others also change the base weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_ROWS = 4096


@dataclass(frozen=True)
class _Update:
    """What changes one weight: the names of A and B in the adapter's file, and the factor of B @ A."""

    a: str
    b: str
    scale: float
    embedding: bool = False  # an embedding's table is (vocab, hidden) and its update is stored transposed
    magnitude: str | None = None  # DoRA: the norm of each row


class LoraAdapter:
    """The changes that an adapter folder makes to a model whose tensors have the given names and shapes.

    tied: whether embedding and head are one table. Raises EdgeVLMError when the folder is no LoRA adapter that can be
    merged exactly, or does not fit the model.
    """

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]], *, tied: bool) -> None:
        self._folder = folder
        self._config = read_object(
            folder / "adapter_config.json",
            "download it again",
            missing=f"{folder} has no adapter_config.json: give a folder that PEFT's save_pretrained wrote.",
        )
        self._check_config()
        if not (folder / "adapter_model.safetensors").exists():
            raise EdgeVLMError(
                f"{folder} has no adapter_model.safetensors (weights as pickle, adapter_model.bin, are not "
                "read): save the adapter with save_pretrained(..., safe_serialization=True)."
            )
        self._file = SafetensorsFile(folder / "adapter_model.safetensors")
        self._shapes = shapes
        self._replaced: dict[str, str] = {}
        self._updates: dict[str, _Update] = {}
        self._match()
        changed_embedding = [name for name in self._updates if name.endswith(_EMBED)]
        changed_embedding += [name for name in self._replaced if name.endswith(_EMBED) and _HEAD not in self._replaced]
        if tied and (changed_embedding or _HEAD in self._updates):
            raise EdgeVLMError(
                f"{folder} changes '{(changed_embedding or [_HEAD])[0]}' of a model that uses one table for "
                "embedding and head, so what the other becomes is not defined: merge it with peft's "
                "merge_and_unload(), save the model and export that."
            )

    def added(self) -> dict[str, tuple[int, ...]]:
        """Tensors that the adapter brings and the model's files lack: at most an own head."""
        return {
            name: self._file.tensors[source].shape
            for name, source in self._replaced.items()
            if name not in self._shapes
        }

    def changes(self, name: str) -> bool:
        """Whether the adapter changes the tensor `name`."""
        return name in self._replaced or name in self._updates

    def files(self) -> list[Path]:
        """The files that decide what the adapter does."""
        return [self._folder / "adapter_config.json", self._file.path]

    def apply(self, name: str, stored: Callable[[], F32]) -> F32:
        """The tensor `name` after the merge; `stored` reads it as the model's files hold it."""
        tensor = self._file.read(self._replaced[name]) if name in self._replaced else stored()
        update = self._updates.get(name)
        if update is None:
            return tensor
        a, b = self._file.read(update.a), self._file.read(update.b)
        left, right = (a.T, b.T) if update.embedding else (b, a)
        for start in range(0, len(tensor), _ROWS):  # by rows: the whole product would double the memory
            rows = slice(start, start + _ROWS)
            tensor[rows] += (left[rows] @ right) * np.float32(update.scale)
        if update.magnitude is not None:
            magnitude = self._file.read(update.magnitude).reshape(-1, 1)
            tensor *= magnitude / np.linalg.norm(tensor, axis=1, keepdims=True)
        return tensor

    def _check_config(self) -> None:
        config = self._config
        if config.get("peft_type") != "LORA":
            raise EdgeVLMError(
                f"{self._folder} is an adapter of the type {str(config.get('peft_type'))!r}: edgevlm merges "
                "LORA; merge it with peft's merge_and_unload(), save the model and export that."
            )
        for option in _UNSUPPORTED:
            if config.get(option):
                raise self._unsupported(f"{option}={str(config[option])[:80]}")
        if config.get("init_lora_weights") not in _PLAIN_STARTS:
            raise self._unsupported(f"init_lora_weights={str(config['init_lora_weights'])[:80]}")
        for option in ("rank_pattern", "alpha_pattern"):
            patterns = config.get(option) or {}
            if not isinstance(patterns, dict) or not all(_is_positive(value) for value in patterns.values()):
                raise self._wrong(f"{option} should map module names to numbers")
            try:
                for pattern in patterns:
                    re.compile(pattern)
            except re.error:
                raise self._wrong(f"{option} holds {pattern[:80]!r}, which is no regular expression") from None
        if not _is_positive(config.get("r", 8)) or not _is_positive(config.get("lora_alpha", 8)):
            raise self._wrong("r and lora_alpha should be positive numbers")

    def _match(self) -> None:
        """Sort the adapter's tensors into replacements and updates, and check their shapes."""
        parts: dict[str, dict[str, str]] = {}
        for key in self._file.tensors:
            if match := _PART.fullmatch(key):
                parts.setdefault(match[1], {})[match[2]] = key
                continue
            name = self._base_name(key.replace(".base_layer.", "."), key)
            expected = self._shapes.get(name, self._file.tensors[key].shape)
            self._expect(key, expected)
            self._replaced[name] = key
        for module, tensors in parts.items():
            first = next(iter(tensors.values()))
            name = self._base_name(f"{module}.weight", first)
            self._updates[name] = self._update(module, name, tensors)
        if not parts and not self._replaced:
            raise self._wrong("adapter_model.safetensors holds no tensors")

    def _update(self, module: str, name: str, tensors: dict[str, str]) -> _Update:
        embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        allowed = {*names, *(() if embedding else ("lora_magnitude_vector",))}
        if missing := [part for part in names if part not in tensors]:
            raise self._wrong(f"'{module}' lacks {missing[0]}")
        if unknown := sorted(tensors.keys() - allowed):
            raise self._unsupported(f"{unknown[0]} of '{module}'")
        shape = self._shapes.get(name, ())
        if not shape:
            raise self._unsupported(f"LoRA on '{name}' of a model whose head is its embedding table")
        if len(shape) != 2:
            raise self._unsupported(f"LoRA on '{name}' of shape {list(shape)}")
        path = module.removeprefix(_ROOT)
        rank = self._value("rank_pattern", path, "r")
        rows, columns = shape[::-1] if embedding else shape
        self._expect(tensors[names[0]], (int(rank), columns))
        self._expect(tensors[names[1]], (rows, int(rank)))
        magnitude = tensors.get("lora_magnitude_vector")
        if bool(self._config.get("use_dora")) != (magnitude is not None):
            raise self._unsupported(f"use_dora={self._config.get('use_dora')} with the tensors of '{module}'")
        if magnitude is not None:
            self._expect(magnitude, (rows,))
        divisor = math.sqrt(rank) if self._config.get("use_rslora") else rank
        scale = self._value("alpha_pattern", path, "lora_alpha") / divisor
        return _Update(tensors[names[0]], tensors[names[1]], scale, embedding, magnitude)

    def _value(self, patterns: str, path: str, default: str) -> float:
        """peft's rule: the first pattern that matches the module's path or its end, else the default."""
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return float(value)
        return float(self._config.get(default, 8))

    def _base_name(self, name: str, key: str) -> str:
        """The model's tensor that the adapter's `key` belongs to; models have "model." in front or not."""
        short = name.removeprefix(_ROOT)
        for candidate in (short, f"model.{short}", short.removeprefix("model.")):
            if candidate in self._shapes or candidate == _HEAD:
                return candidate
        raise EdgeVLMError(
            f"{self._folder} holds '{key[:200]}', which matches nothing in the model: give the base model "
            f"that the adapter was trained on ({str(self._config.get('base_model_name_or_path'))[:200]})."
        )

    def _expect(self, key: str, shape: tuple[int, ...]) -> None:
        found = self._file.tensors[key].shape
        if found != shape:
            raise EdgeVLMError(
                f"{self._folder} holds '{key}' with the shape {list(found)} where {list(shape)} fits: give "
                "the base model that the adapter was trained on "
                f"({str(self._config.get('base_model_name_or_path'))[:200]})."
            )

    def _unsupported(self, what: str) -> EdgeVLMError:
        return EdgeVLMError(
            f"{self._folder} uses {what}, which edgevlm cannot merge exactly: merge it with peft's "
            "merge_and_unload(), save the model and export that."
        )

    def _wrong(self, problem: str) -> EdgeVLMError:
        return EdgeVLMError(f"{self._folder} is not a valid LoRA adapter: {problem}; save or download it again.")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
