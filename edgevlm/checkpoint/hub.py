"""Fetch a model folder from the Hugging Face Hub, or take it from the cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.hub import COMMIT, answers, hub_client, named, reason

# Weights in safetensors, configuration, tokenizer and chat template; never pickle, never code.
SMALL = ["*.json", "*.txt", "*.jinja", "*.model"]
PATTERNS = [*SMALL, "*.safetensors"]
_BELOW = ["*/*"]  # other forms of the model, a trainer's checkpoints
_SHARDS = re.compile(r"-of-(\d+)\.safetensors$")


def fetch(model: str, *, revision: str | None = None, cache_dir: Path | None = None, weights: bool = True) -> Path:
    """The local snapshot folder of the Hub model `model` ("owner/name"), downloaded where the cache lacks it.

    weights: with the tensors, and not only the small files, by which it can be judged whether these are of use.
    Without a network the cached snapshot is used. Raises EdgeVLMError when there is none, when the model or the
    revision does not exist, or when access needs a token.
    """
    hub_errors = hub_client(model).errors
    from huggingface_hub import snapshot_download

    def snapshot(local_only: bool) -> Path:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=PATTERNS if weights else SMALL,
                ignore_patterns=_BELOW,
                local_files_only=local_only,
            )
        )

    which = named(model, revision)
    if COMMIT.fullmatch(revision or ""):  # a commit never changes: no need to ask the Hub
        try:
            if _is_whole(folder := snapshot(local_only=True)):
                return folder
        except (hub_errors.LocalEntryNotFoundError, OSError, ValueError):
            pass
    try:
        with answers(which):
            return snapshot(local_only=False)
    except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        problem = error
    try:
        return snapshot(local_only=True)
    except (hub_errors.LocalEntryNotFoundError, OSError, ValueError):
        raise EdgeVLMError(
            f"{which} is neither a local folder nor in the cache, and the Hub could not be reached "
            f"({reason(problem)}): check the network, or give a local folder."
        ) from None


def headers(model: str, *, revision: str | None) -> dict[str, dict[str, Any]]:
    """The headers of a Hub model's safetensors files, by file: of each tensor "dtype", "shape" and "data_offsets".

    Nothing but headers is fetched, by range requests. Raises EdgeVLMError as `fetch`, and where a model has no
    safetensors.
    """
    hub = hub_client(model)
    errors = hub.errors
    try:
        with answers(f"'{model}'"):
            found = hub.get_safetensors_metadata(model, revision=revision)
    except errors.NotASafetensorsRepoError:
        raise EdgeVLMError(
            f"'{model}' has no safetensors weights on the Hub: model.safetensors or its index was expected; use a "
            "model that has them."
        ) from None
    except EdgeVLMError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library through, which is one or another by version
        raise EdgeVLMError(
            f"The headers of the weights of '{model}' could not be read from the Hub ({reason(error)}): check the "
            "network, or give a local folder."
        ) from None
    return {
        file: {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": list(tensor.data_offsets)}
            for name, tensor in header.tensors.items()
        }
        for file, header in found.files_metadata.items()
    }


def _is_whole(folder: Path) -> bool:
    """Whether a cached snapshot has what a model needs; downloads of single files leave partial ones."""
    return holds_weights(folder) and all((folder / name).exists() for name in ("config.json", "tokenizer.json"))


def holds_weights(folder: Path) -> bool:
    """Whether a snapshot has all of its safetensors files."""
    weights = list(folder.glob("*.safetensors"))
    shards = max((int(match[1]) for path in weights if (match := _SHARDS.search(path.name))), default=1)
    return len(weights) >= shards
