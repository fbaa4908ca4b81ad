"""What peft itself merges an adapter to: transformers' own class without weights, peft's layers, one tensor at a time.

Nothing here reads or names a tensor as edgevlm does: the class says what is called how in memory, transformers' loader
which stored tensor that is, the safetensors package reads it, and peft finds, scales and merges the adapter's. A family
that transformers has no class for is stood for by bare layers under the adapter's own names.

It runs in a process of its own: torch would stay in the memory that an export bounds, and print.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import nn

from edgevlm.verify.adapter import PeftTensor

_META = torch.device("meta")


@dataclass
class _Module:
    """Layers without weights. stored: the file's name of a parameter, by its name in memory. tied: pairs of these."""

    root: Any
    stored: Callable[[str], str | None]
    tied: dict[str, str] = field(default_factory=dict)


def peft_merge(model: Path, adapter: Path) -> Iterator[PeftTensor]:
    """Every tensor that peft changes, one after another. LookupError where its place in the files is not plain."""
    files = _Files(model)
    with _quiet():
        module = _in_memory(model, files)
        wrapped = None if module is None else _load(module.root, adapter)
        if module is None or wrapped is None:
            module = _bare_layers(adapter, files)
            wrapped = _load(module.root, adapter, names=True)
        if wrapped is None:
            raise LookupError("peft does not find its own layers")
        yield from _merged(module, wrapped.base_model.model, files)


def main() -> None:
    """Print the tensors of the merge of sys.argv's model and adapter, as `verify.adapter` reads them."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come into the answers

    def send(head: dict[str, Any], data: bytes = b"") -> None:
        text = json.dumps(head | {"bytes": len(data)}).encode()
        answers.write(len(text).to_bytes(8, "little") + text + data)

    send({"peft": str(peft.__version__)})
    try:
        for tensor in peft_merge(*map(Path, sys.argv[1:])):
            shape = list(tensor.values.shape)
            send({"stored": tensor.stored, "partner": tensor.partner, "shape": shape}, tensor.values.tobytes())
        send({"end": True})
    except LookupError as reason:
        send({"failed": str(reason)})
    answers.close()


def _merged(module: _Module, root: Any, files: _Files) -> Iterator[PeftTensor]:
    partners = module.tied | {head: embed for embed, head in module.tied.items()}
    changed = set()

    def tensor(name: str, values: torch.Tensor) -> PeftTensor:
        changed.add(name)
        partner = partners.get(name)
        stored = module.stored(name) or (name if partner else None)
        if stored is None:
            raise LookupError(f"no file has '{name}'")
        return PeftTensor(stored, values.detach().float().numpy(), partner and module.stored(partner))

    for name, layer in list(root.named_modules()):
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            if base.weight.is_meta:
                source = module.stored(f"{name}.weight") or module.stored(partners.get(f"{name}.weight", ""))
                base.weight = nn.Parameter(files.read(source or name), requires_grad=False)
            layer.merge(safe_merge=True)
            yield tensor(f"{name}.weight", base.weight)
            base.weight = nn.Parameter(torch.empty(0, device=_META), requires_grad=False)
            if getattr(base, "bias", None) is not None and not base.bias.is_meta:
                yield tensor(f"{name}.bias", base.bias)
        elif isinstance(layer, ModulesToSaveWrapper):
            for part, values in layer.modules_to_save["default"].named_parameters():
                yield tensor(f"{name}.{part}", values)
        elif not any(mark in name for mark in (".base_layer", ".modules_to_save", ".original_module", ".lora_")):
            for part, values in layer.named_parameters(recurse=False):
                if not values.is_meta:
                    yield tensor(f"{name}.{part}", values)
    for name, partner in partners.items():
        if partner in changed and name not in changed:
            source = module.stored(name) or module.stored(partner)
            yield tensor(name, files.read(source or name))


def _load(root: Any, adapter: Path, *, names: bool = False) -> Any:
    """`root` with peft's layers and the adapter's weights in them; None where some have no place there.

    names: every module of `root` that is a layer is adapted, whatever pattern the adapter's author gave.
    """
    config = peft.PeftConfig.from_pretrained(str(adapter))
    config.task_type, config.inference_mode, config.init_lora_weights = None, True, False
    state = {name: value.float() for name, value in peft.utils.load_peft_weights(str(adapter), device="cpu").items()}
    if names:
        ours = [name.removeprefix("base_model.model.") for name in state]
        config.target_modules = sorted({name.partition(".lora_")[0] for name in ours if ".lora_" in name})
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in ours if ".lora_" not in name}) or None
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    wrapped = peft.get_peft_model(root, config, low_cpu_mem_usage=True)
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):  # weights that peft would move to where the base layer's are: nowhere
            layer._move_adapter_to_device_of_base_layer = lambda *args, **kwargs: None
    found = peft.set_peft_model_state_dict(wrapped, state, low_cpu_mem_usage=True)
    missing = [name for name, value in wrapped.named_parameters() if "lora_" in name and value.is_meta]
    return None if missing or found.unexpected_keys else wrapped


def _in_memory(model: Path, files: _Files) -> _Module | None:
    """The model as transformers builds it; None where it knows no such family."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    try:
        config = transformers.AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        with _META:
            root = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError):
        return None
    rules = get_model_conversion_mapping(root)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known = root.state_dict()
    in_memory = {
        rename_source_key(name, renamings, converters, root.base_model_prefix, known)[0]: name for name in files.names
    }
    tied = getattr(root, "all_tied_weights_keys", None) or {}
    return _Module(root, in_memory.get, dict(tied))


def _bare_layers(adapter: Path, files: _Files) -> _Module:
    """A layer for each that the adapter changes, under the name that the adapter gives it."""
    root = nn.Module()
    state = peft.utils.load_peft_weights(str(adapter), device="cpu")
    for key, a in state.items():
        name, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        if part.startswith(("A", "embedding_A")):
            b = state[key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
            _add(root, name, _layer(part, a, b))
    for key, value in state.items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".lora_" not in name:
            module, _, part = name.rpartition(".")
            _add(root, module, nn.Module()).register_parameter(part, nn.Parameter(value.float().to(_META)))

    def stored(name: str) -> str | None:
        """The one tensor whose name ends most like `name`."""
        path = name.split(".")[::-1]
        shared: dict[int, list[str]] = {}
        for candidate in files.names:
            pairs = zip(path, candidate.split(".")[::-1], strict=False)
            count = next((i for i, (one, other) in enumerate(pairs) if one != other), len(path))
            shared.setdefault(min(count, candidate.count(".") + 1), []).append(candidate)
        best = shared[max(shared)]
        if len(best) > 1 or max(shared) < 2:
            raise LookupError(f"'{name}' has no counterpart in the files that is plain")
        return best[0]

    return _Module(root, stored)


def _layer(part: str, a: torch.Tensor, b: torch.Tensor) -> nn.Module:
    if part.startswith("embedding"):
        return nn.Embedding(a.shape[1], b.shape[0], device=_META)
    if a.ndim == 2:
        return nn.Linear(a.shape[1], b.shape[0], bias=False, device=_META)
    kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[a.ndim]
    layer: nn.Module = kind(a.shape[1], b.shape[0], tuple(a.shape[2:]), bias=False, device=_META)
    return layer


def _add(root: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put `layer` at `name`, or give the one that is there."""
    *path, last = name.split(".")
    at = root
    for part in path:
        if part not in dict(at.named_children()):
            at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    if last not in dict(at.named_children()):
        at.add_module(last, layer)
    return at.get_submodule(last)


class _Files:
    """A checkpoint's tensors by the safetensors package; a whole model.safetensors goes before an index."""

    def __init__(self, folder: Path) -> None:
        paths = [folder / "model.safetensors"]
        if not paths[0].exists():
            index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
            paths = [folder / shard for shard in sorted(set(index["weight_map"].values()))]
        self._files: dict[str, Path] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)
        self.names = list(self._files)

    def read(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name).float()
        return tensor


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of both libraries, which are about training."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
