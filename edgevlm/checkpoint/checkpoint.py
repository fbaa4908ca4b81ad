"""A checkpoint: a folder in Hugging Face layout, read tensor by tensor without torch."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgevlm.checkpoint import hub
from edgevlm.checkpoint.upstream import upstream_files
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.hub import is_hub_id
from edgevlm.io.json import read_object
from edgevlm.io.regular import open_regular
from edgevlm.io.safetensors import SafetensorsFile, SafetensorsHeader
from edgevlm.io.text import check_place
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.checkpoint.adapter import LoraAdapter

DEFAULT = "default"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHARD = re.compile(r"[\w][\w.-]*\.safetensors")


class Weights(Protocol):
    """The weight tree of a model under edgevlm's canonical names, read one tensor at a time."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_linear(self, name: str) -> bool: ...
    def read(self, name: str) -> F32: ...
    def __contains__(self, name: object) -> bool: ...


class Checkpoint:
    """A source of tensors by Hugging Face name.

    folder: holds config.json and the weights. processor: the tokenizer and the processor's files, as a rule the same.
    name: the Hub id or the folder's name. revision: the Hub commit, or None for a plain folder.
    headers: of the weights, where these are not in the folder: then names, shapes and types are known, and no values.
    Opening reads and checks headers only. Raises EdgeVLMError for everything that is wrong with the files.
    """

    def __init__(
        self, folder: Path, *, name: str | None = None, headers: Sequence[SafetensorsHeader] | None = None
    ) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.processor = folder  # where the tokenizer and the processor's files are
        self.config = read_config(folder)
        upstream_files(folder)
        parent, own = folder.parent.name, folder.name
        self.revision = own if parent == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", own) else None
        self.adapter: LoraAdapter | None = None
        self.adapter_name: str | None = None  # as the user or its own files call it
        self._files: Mapping[str, SafetensorsHeader] = (
            _open_weights(folder) if headers is None else {name: file for file in headers for name in file.tensors}
        )
        self._hash: str | None = None

    def names(self) -> list[str]:
        """All tensor names, in the order of the files."""
        added = self.adapter.added() if self.adapter else {}
        return [*self._files, *(name for name in added if name not in self._files)]

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._files and self.adapter:
            return self.adapter.added()[name]
        return self._files[name].tensors[name].shape

    def dtype(self, name: str) -> str:
        """How the tensor is stored: "float32", "float16", "bfloat16", or the file's word for another type."""
        return self._files[name].dtype(name) if name in self._files else "float32"

    def read(self, name: str) -> F32:
        """One tensor as a new C-contiguous float32 array, an adapter merged where one is given."""

        def stored(name: str) -> F32:
            return self._files[name].read(name)

        return self.adapter.apply(name, stored) if self.adapter else stored(name)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors of one shape and type hold the same bytes; compared in pieces where they are stored."""
        if self.adapter and (self.adapter.changes(first) or self.adapter.changes(second)):
            return bool(np.array_equal(self.read(first), self.read(second)))
        one, two = self._files[first], self._files[second]
        if self.dtype(first) != self.dtype(second) or self.shape(first) != self.shape(second):
            return False
        step = 8 << 20
        return all(
            one.read_bytes(first, start, step) == two.read_bytes(second, start, step)
            for start in range(0, one.tensors[first].nbytes, step)
        )

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of all tensors by the type in which they are stored."""
        found: dict[str, int] = {}
        for name, file in self._files.items():
            found[file.dtype(name)] = found.get(file.dtype(name), 0) + file.tensors[name].nbytes
        return found

    def content_hash(self) -> str:
        """sha256 of the weights file (the figure that the Hub shows); of several, sha256 over their list.

        The list is one line "digest  name" per file, sorted by name; an adapter's files count too.
        """
        if self._hash is None:
            paths = sorted({file.path for file in self._files.values()}, key=lambda path: path.name)
            digests = [(_sha256(path), path.name) for path in paths]
            digests += [
                (_sha256(path), f"adapter/{path.name}") for path in (self.adapter.files() if self.adapter else [])
            ]
            if len(digests) == 1:
                self._hash = digests[0][0]
            else:
                lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
                self._hash = hashlib.sha256(lines.encode()).hexdigest()
        return self._hash


def open_checkpoint(model: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Checkpoint:
    """Open `model`: a local folder, a Hub id "owner/name", or "default", the model that ships with edgevlm.

    revision and cache_dir matter to the Hub alone. What is to be exported or trained is opened by `open_model`, which
    knows families and adapters.
    """
    folder = find_folder(model, "model", revision, cache_dir)
    return Checkpoint(folder, name=name_of(model))


def name_of(model: str) -> str | None:
    """What a model is called that is no folder of the user's."""
    return None if model != DEFAULT and Path(model).is_dir() else model


def find_folder(model: str, what: str, revision: str | None, cache_dir: Path | None, *, weights: bool = True) -> Path:
    """The folder of `model`, downloaded if it is a Hub id; without `weights` only the small files are fetched."""
    if model == DEFAULT:
        return Path(str(importlib.resources.files("edgevlm"))) / "assets" / "default"
    path = Path(model)
    check_place(path)
    try:
        if model and path.is_dir():
            return path
        if model and path.exists():
            raise EdgeVLMError(f"'{model}' is a file: give the folder that holds the {what}.")
    except (OSError, ValueError):
        raise EdgeVLMError(f"'{model[:200]}' is not a usable path: give a local folder or a Hub id.") from None
    if is_hub_id(model):
        return hub.fetch(model, revision=revision, cache_dir=cache_dir, weights=weights)
    raise EdgeVLMError(f"there is no folder '{model}': give a local {what} folder or a Hub id such as 'owner/name'.")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of the checkpoint in `folder`."""
    missing = f"{folder} has no config.json: give a folder in Hugging Face layout (config.json, *.safetensors, "
    return read_object(folder / "config.json", "download it again", missing=f"{missing}tokenizer.json).", finite=False)


def has_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in (WEIGHTS, INDEX))


def _open_weights(folder: Path) -> dict[str, SafetensorsFile]:
    """Tensor name -> file. As transformers does, a whole model.safetensors goes before an index."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists():
        file = SafetensorsFile(single)
        return dict.fromkeys(file.tensors, file)
    if index.exists():
        return _open_shards(folder, index)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise EdgeVLMError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run any code when it is read: "
            "safetensors was expected; convert it once where you trust it, with "
            "AutoModelForImageTextToText.from_pretrained(...).save_pretrained(...)."
        )
    raise EdgeVLMError(f"{folder} has no weights: {WEIGHTS} or {INDEX} was expected; download it again.")


def _open_shards(folder: Path, index: Path) -> dict[str, SafetensorsFile]:
    weight_map = read_object(index, "download it again", largest=limits.INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise EdgeVLMError(f"{index} has no 'weight_map' from tensor names to file names: download it again.")
    shards: dict[str, SafetensorsFile] = {}
    count = 0
    for shard in sorted(set(weight_map.values())):
        if not _SHARD.fullmatch(shard):
            raise EdgeVLMError(
                f"{index} names the weights file {shard[:200]!r}: a *.safetensors file in the same folder "
                "was expected; do not use this checkpoint."
            )
        if not (folder / shard).exists():
            raise EdgeVLMError(f"{folder} lacks the weights file {shard} that its index names: download it again.")
        shards[shard] = SafetensorsFile(folder / shard)
        if (count := count + len(shards[shard].tensors)) > limits.TENSORS:
            raise EdgeVLMError(f"{folder} holds more than {limits.TENSORS} tensors: do not use this checkpoint.")
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise EdgeVLMError(
                f"{folder / shard} lacks the tensor '{name}' that {index.name} names: download it again."
            )
    return {name: shards[shard] for name, shard in weight_map.items()}


def _sha256(path: Path) -> str:
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EdgeVLMError(f"{path} cannot be read ({error.strerror}): check the disk.") from None
