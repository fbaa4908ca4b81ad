"""Merge a LoRA adapter (a folder that `peft` saved) into a checkpoint's tensors as they are read, torch-free.

W + scale * B @ A, as peft's merge_and_unload does, but in float32 whatever type the checkpoint stores.
LoRA: arXiv 2106.09685, rsLoRA: arXiv 2312.03732, DoRA: arXiv 2402.09353.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm.checkpoint.adapter_config import FILE, read_adapter_config
from edgevlm.checkpoint.module_names import StoredNames
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.safetensors import SafetensorsFile
from edgevlm.types import F32

WEIGHTS = "adapter_model.safetensors"
_ROOT = "base_model.model."
_PART = re.compile(
    rf"(.{{1,{limits.PATTERN}}})\.(lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_ROWS = 4096
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Base:
    """The model that an adapter is merged into: its tensors, and which of them are embedding and head.

    tied: whether the two are one table; then the files may hold either name, or both.
    """

    name: str
    shapes: Mapping[str, Shape]
    embed: str
    head: str
    tied: bool


@dataclass(frozen=True)
class _Update:
    """What changes one weight: the names of A and B in the adapter's file, and the factor of B @ A."""

    a: str
    b: str
    scale: float
    embedding: bool  # an embedding's table is (vocab, hidden) and its update is stored transposed
    magnitude: str | None  # DoRA: the norm of each output's weights


class LoraAdapter:
    """The changes that an adapter folder makes to a model.

    Raises EdgeVLMError when the folder is no LoRA adapter that can be merged exactly, or does not fit the model.
    """

    def __init__(self, folder: Path, base: Base) -> None:
        self._config = read_adapter_config(folder)
        if not (folder / WEIGHTS).exists():
            raise EdgeVLMError(
                f"{folder} has no {WEIGHTS} (weights as pickle, adapter_model.bin, are not read): save the adapter "
                "with save_pretrained(..., safe_serialization=True)."
            )
        self._folder, self._base = folder, base
        self._file = SafetensorsFile(folder / WEIGHTS)
        self._names = StoredNames((*base.shapes, base.embed, base.head))
        self._replaced: dict[str, str] = {}
        self._updates: dict[str, _Update] = {}
        own = self._match()
        self._other: dict[str, str] = {}
        if base.tied:
            self._untie(own)

    def added(self) -> dict[str, Shape]:
        """Tensors that the files lack and the merged model has: an own head, or an own embedding."""
        base = self._base
        names = {*self._replaced, *self._updates, *self._other} - base.shapes.keys()
        return {name: base.shapes[self._stored(name)] for name in names}

    @property
    def changed(self) -> frozenset[str]:
        """The tensors that are trained: not those that one of a tied pair leaves behind."""
        return frozenset((*self._replaced, *self._updates))

    def changes(self, name: str) -> bool:
        """Whether the merged model has another tensor `name` than the files."""
        return name in self._replaced or name in self._updates or name in self._other

    def files(self) -> list[Path]:
        """The files that decide what the adapter does."""
        return [self._folder / FILE, self._file.path]

    @property
    def folder(self) -> Path:
        return self._folder

    def apply(self, name: str, stored: Callable[[str], F32]) -> F32:
        """The tensor `name` after the merge; `stored` reads one as the model's files hold it."""
        source = self._replaced.get(name)
        tensor = stored(self._stored(name)) if source is None else self._file.read(source)
        update = self._updates.get(name)
        if update is not None:
            with np.errstate(all="ignore"):
                tensor = self._updated(tensor, update)
        if self.changes(name) and not all(np.isfinite(part).all() for part in _pieces(tensor)):
            raise EdgeVLMError(
                f"{self._folder} makes '{name}' hold values that are infinite or no numbers: the training diverged or "
                "the file is damaged; take another checkpoint of it."
            )
        return tensor

    def _updated(self, tensor: F32, update: _Update) -> F32:
        a, b = self._file.read(update.a), self._file.read(update.b)
        left, right = (a.T, b.T) if update.embedding else (b.reshape(len(b), -1), a.reshape(len(a), -1))
        matrix = tensor.reshape(len(tensor), -1)  # a convolution's, too: one row for each output
        parts = [slice(start, start + _ROWS) for start in range(0, len(matrix), _ROWS)]
        for rows in parts:  # the whole product would double the memory
            matrix[rows] += (left[rows] @ right) * np.float32(update.scale)
        if update.magnitude is not None:
            magnitude = self._file.read(update.magnitude).reshape(-1)
            if update.embedding:  # its outputs are its columns
                matrix *= magnitude / np.sqrt(np.sum([np.square(matrix[rows]).sum(0) for rows in parts], axis=0))
            else:
                for rows in parts:
                    matrix[rows] *= (magnitude[rows] / np.linalg.norm(matrix[rows], axis=1))[:, None]
        return tensor

    def _stored(self, name: str) -> str:
        """The tensor of the files that `name` starts from: of a tied pair, the one that they hold."""
        base = self._base
        if name in base.shapes:
            return name
        return base.head if name == base.embed else base.embed

    def _match(self) -> set[str]:
        """Sort the adapter's tensors into replacements and updates; the names that a trained copy replaces."""
        parts: dict[str, dict[str, str]] = {}
        plain: list[str] = []
        for key in self._file.tensors:
            if match := _PART.fullmatch(key):
                parts.setdefault(match[1], {})[match[2]] = key
            else:
                plain.append(key)
        if not parts and not plain:
            raise self._config.wrong(f"{WEIGHTS} holds no tensors")
        wanted = [(key, key.replace(".base_layer.", ".")) for key in plain]
        wanted += [(next(iter(tensors.values())), f"{module}.weight") for module, tensors in parts.items()]
        found = dict(zip((key for key, _ in wanted), self._found(wanted), strict=True))
        for key in plain:
            name = self._once(key, found[key], self._replaced)
            self._replaced[name] = key
            self._expect(key, name, self._base.shapes[self._stored(name)])
        for module, tensors in parts.items():
            key = next(iter(tensors.values()))
            name = self._once(key, found[key], self._updates)
            self._updates[name] = self._update(module, name, tensors)
        return {found[key] for key in plain if ".base_layer." not in key}

    def _found(self, wanted: list[tuple[str, str]]) -> Iterator[str]:
        """The stored names of (key, name in memory)."""
        names = [self._names.find(name.removeprefix(_ROOT)) for _, name in wanted]
        for (key, _), name in zip(wanted, names, strict=True):
            if name is None:
                raise EdgeVLMError(
                    f"{self._folder} changes '{key[:200]}', which is no weight of {self._base.name} "
                    f"({names.count(None)} of its {len(names)} changes are to such): give the model that it was "
                    f"trained on ({self._trained_on()}); parts that were added in training cannot be exported."
                )
            yield name

    def _once(self, key: str, name: str, known: Mapping[str, object]) -> str:
        if name in known:
            raise self._config.wrong(f"'{key[:200]}' changes '{name}' a second time")
        return name

    def _update(self, module: str, name: str, tensors: dict[str, str]) -> _Update:
        embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if missing := [part for part in names if part not in tensors]:
            raise self._config.wrong(f"'{module}' lacks {missing[0]}")
        if unknown := sorted(tensors.keys() - {*names, "lora_magnitude_vector"}):
            raise self._config.unsupported(f"{unknown[0]} of '{module}'")
        shape = self._base.shapes[self._stored(name)]
        if len(shape) < 2:
            raise self._config.unsupported(f"LoRA on '{name}' of shape {list(shape)}")
        magnitude = tensors.get("lora_magnitude_vector")
        if self._config.dora != (magnitude is not None):
            raise self._config.unsupported(f"use_dora={self._config.dora} with the tensors of '{module}'")
        path = module.removeprefix(_ROOT)
        self._check_rank(path, tensors[names[0]])
        rank, ones = self._config.rank(path), (1,) * (len(shape) - 2)
        rows, columns = (shape[1], shape[:1]) if embedding else (shape[0], shape[1:])
        self._expect(tensors[names[0]], name, (rank, *columns))
        self._expect(tensors[names[1]], name, (rows, rank, *ones))
        if magnitude is not None:
            self._expect(magnitude, name, (1, rows, *ones) if ones else (rows,))
        return _Update(tensors[names[0]], tensors[names[1]], self._config.scale(path), embedding, magnitude)

    def _check_rank(self, path: str, key: str) -> None:
        shape = self._file.tensors[key].shape
        if not shape or shape[0] != self._config.rank(path):
            raise self._config.wrong(
                f"'{key}' has the shape {list(shape)} where {FILE} says rank {self._config.rank(path)}"
            )

    def _untie(self, own: set[str]) -> None:
        """One of a tied pair that is trained as a copy leaves the other as it was (peft's ModulesToSaveWrapper)."""
        base = self._base
        for name, partner in ((base.embed, base.head), (base.head, base.embed)):
            if name in self._updates and partner not in own:
                raise EdgeVLMError(
                    f"{self._folder} puts LoRA on '{name}', which {base.name} uses as embedding and as head: trained "
                    "was one use of the table, and a merge would change both; train with "
                    "modules_to_save=['embed_tokens', 'lm_head'] in place of LoRA on these."
                )
            if name in own and partner not in base.shapes and not self.changes(partner):
                self._other[partner] = name

    def _expect(self, key: str, name: str, shape: Shape) -> None:
        found = self._file.tensors[key].shape
        if found == shape:
            return
        differing = [at for at, (ours, theirs) in enumerate(zip(found, shape, strict=False)) if ours != theirs]
        tables = (self._base.embed, self._base.head)
        vocabulary = self._base.shapes[self._stored(self._base.embed)][0]
        if len(found) == len(shape) and len(differing) == 1 and name in tables and shape[differing[0]] == vocabulary:
            raise EdgeVLMError(
                f"{self._folder} was trained with a vocabulary of {found[differing[0]]} tokens where {self._base.name} "
                f"has {vocabulary}: its embedding was resized; in transformers call the base's "
                f"resize_token_embeddings({found[differing[0]]}), load the adapter with peft, merge_and_unload(), save "
                "the model with the tokenizer of the training, and export that."
            )
        raise EdgeVLMError(
            f"{self._folder} holds '{key[:200]}' with the shape {list(found)}, where {list(shape)} fits "
            f"{self._base.name}: give the model that it was trained on ({self._trained_on()})."
        )

    def _trained_on(self) -> str:
        return f"its {FILE} names {self._config.base[:200]}" if self._config.base else f"its {FILE} names none"


def _pieces(tensor: F32) -> Iterator[F32]:
    return (tensor[start : start + _ROWS] for start in range(0, len(tensor), _ROWS))
