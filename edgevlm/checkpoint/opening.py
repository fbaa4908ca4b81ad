"""Open what a user names as the model to export or train: a checkpoint, or a LoRA adapter, which is merged on the way.

Small things are judged first: what the folder is, and the family that its config.json names, before any weight is
fetched or read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevlm.checkpoint import hub
from edgevlm.checkpoint.adapter import LoraAdapter
from edgevlm.checkpoint.adapter_config import FILE, base_model
from edgevlm.checkpoint.checkpoint import DEFAULT, Checkpoint, find_folder, has_weights, name_of, read_config
from edgevlm.checkpoint.families import adapter_base, find_family, read_checkpoint
from edgevlm.checkpoint.upstream import upstream_files
from edgevlm.errors import EdgeVLMError
from edgevlm.io.hub import is_hub_id
from edgevlm.io.json import read_object
from edgevlm.io.safetensors import SafetensorsHeader


@dataclass(frozen=True)
class Named:
    """A model and the adapter that goes into it. said: what the user should know about how they were found."""

    model: str
    adapter: str | None = None
    said: str = ""


def resolve(
    model: str, adapter: str | None = None, *, revision: str | None = None, cache_dir: Path | None = None
) -> Named:
    """The model and adapter that are meant: an adapter's folder stands for its base model with the adapter.

    Raises EdgeVLMError for a bundle, for a second adapter, and for one whose base model cannot be found.
    """
    folder = find_folder(model, "model", revision, cache_dir, weights=False)
    if is_bundle(folder):
        raise EdgeVLMError(
            f"'{model}' is a bundle already: run it with `edgevlm run {model}`, or give the model that it was made of."
        )
    if not _is_adapter(folder, Path(model).is_dir()):
        return Named(model, adapter)
    if adapter is not None:
        raise EdgeVLMError(f"'{model}' and '{adapter}' are both adapters: give the base model, and one of them.")
    base = base_model(folder)
    if base is None:
        raise EdgeVLMError(
            f"'{model}' is a LoRA adapter, and its {FILE} names no base model: give that as MODEL, and "
            f"--adapter {model}."
        )
    if base != DEFAULT and not Path(base).is_dir() and not is_hub_id(base):
        raise EdgeVLMError(
            f"'{model}' is a LoRA adapter of '{base[:200]}', which is not here: give that model as MODEL, and "
            f"--adapter {model}."
        )
    return Named(base, model, f"'{model}' is a LoRA adapter: it is merged into its base model '{base}'.")


def open_model(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    adapter: str | Path | None = None,
    processor: str | None = None,
    judge: Callable[[Checkpoint], object] = read_checkpoint,
) -> Checkpoint:
    """Open `model`: a local folder, a Hub id "owner/name", or "default", the model that ships with edgevlm.

    revision and cache_dir matter to the Hub alone; a revision is of `model`. adapter: a LoRA folder or Hub id, merged
    tensor by tensor. processor: a folder or Hub id that the tokenizer and the processor's files are taken from, for
    weights that a trainer saved alone. judge: is shown a model of the Hub by its small files and headers, before its
    weights are fetched, and raises EdgeVLMError for what is of no use; so does this function.
    """
    named = resolve(model, None if adapter is None else str(adapter), revision=revision, cache_dir=cache_dir)
    its_revision = revision if named.model == model else None
    folder = find_folder(named.model, "model", its_revision, cache_dir, weights=False)
    name = name_of(named.model)
    find_family(read_config(folder), name or folder.resolve().name)
    if _is_remote(named.model, folder):
        judge(_with_processor(_by_headers(named.model, folder), processor, cache_dir))
        folder = find_folder(named.model, "model", its_revision, cache_dir)
    checkpoint = _with_processor(Checkpoint(folder, name=name), processor, cache_dir)
    if named.adapter is not None:
        where = find_folder(named.adapter, "adapter", revision if named.adapter == model else None, cache_dir)
        checkpoint.adapter = LoraAdapter(where, adapter_base(checkpoint))
        checkpoint.adapter_name = named.adapter
    return checkpoint


def _with_processor(checkpoint: Checkpoint, processor: str | None, cache_dir: Path | None) -> Checkpoint:
    """The checkpoint with the processor's files of elsewhere, where these are named."""
    if processor is not None:
        checkpoint.processor = find_folder(processor, "processor", None, cache_dir, weights=False)
        upstream_files(checkpoint.folder, checkpoint.processor)
    if not (checkpoint.processor / "tokenizer.json").exists():
        raise EdgeVLMError(
            f"{checkpoint.processor} has no tokenizer.json: if a trainer saved the weights alone, name the model that "
            "it began with, whose files then count: --processor BASE."
        )
    return checkpoint


def open_headers(model: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Checkpoint:
    """As `open_model`, from small files and headers alone: no weight of a Hub model is fetched, and none can be read.

    An adapter stands for its base model. Raises EdgeVLMError.
    """
    named = resolve(model, revision=revision, cache_dir=cache_dir)
    folder = find_folder(named.model, "model", revision if named.model == model else None, cache_dir, weights=False)
    name = name_of(named.model)
    find_family(read_config(folder), name or folder.resolve().name)
    return _by_headers(named.model, folder) if _is_remote(named.model, folder) else Checkpoint(folder, name=name)


def _is_remote(model: str, folder: Path) -> bool:
    """Whether the weights of a Hub model are not in the cache yet."""
    return name_of(model) is not None and model != DEFAULT and not hub.holds_weights(folder)


def _by_headers(model: str, folder: Path) -> Checkpoint:
    commit = folder.name if folder.parent.name == "snapshots" else None
    headers = hub.headers(model, revision=commit)
    return Checkpoint(
        folder, name=model, headers=[SafetensorsHeader(Path(file), header) for file, header in headers.items()]
    )


def _is_adapter(folder: Path, local: bool) -> bool:
    """Of a Hub model only the small files are here yet."""
    return (folder / FILE).exists() and not ((folder / "config.json").exists() and (has_weights(folder) or not local))


def is_bundle(folder: Path) -> bool:
    """Whether it has edgevlm's manifest and no weights of a checkpoint."""
    if has_weights(folder) or not (folder / "manifest.json").is_file():
        return False
    try:
        return {"schema", "spec", "targets"} <= read_object(folder / "manifest.json", "").keys()
    except EdgeVLMError:
        return False
