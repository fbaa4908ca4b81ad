"""The adapter_config.json that `peft` writes: what a LoRA adapter's tensors mean, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.patterns import BadPattern, compile_pattern, is_plain
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import read_object

FILE = "adapter_config.json"
# Options that say what was trained and how, and nothing about what the tensors mean.
_ASIDE = {
    "alora_invocation_string", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "velora_config",
    "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "model_key_mapping",  # ms-swift's
}  # fmt: skip
_READ = {"alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_dora", "use_rslora"}
# These only choose how A and B start; PiSSA, OLoRA, CorDA, LoftQ and others also change the base weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """rank, alpha: of the module with a path. base: the model that it was trained on, as its author named it."""

    folder: Path
    base: str | None
    rank: Callable[[str], int]
    alpha: Callable[[str], float]
    rslora: bool
    dora: bool

    def scale(self, path: str) -> float:
        """The factor of B @ A."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.rslora else rank)

    def wrong(self, problem: str) -> EdgeVLMError:
        return _wrong(self.folder, problem)

    def unsupported(self, what: str) -> EdgeVLMError:
        return _unsupported(self.folder, what)


def base_model(folder: Path) -> str | None:
    """What the adapter in `folder` was trained on: a folder, a Hub id, or nothing."""
    base = _read(folder).get("base_model_name_or_path")
    return base if isinstance(base, str) and base.strip() else None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises EdgeVLMError when the folder is no LoRA adapter, or one that cannot be merged exactly."""
    config = _read(folder)
    if config.get("peft_type") != "LORA":
        raise EdgeVLMError(
            f"{folder} is an adapter of the type {str(config.get('peft_type'))[:80]!r}: edgevlm merges LORA; merge it "
            "with peft's merge_and_unload(), save the model and export that."
        )
    for option, value in config.items():
        if value and option not in _ASIDE | _READ:
            raise _unsupported(folder, f"{option[:80]}={str(value)[:80]}")
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise _unsupported(folder, f"init_lora_weights={str(start)[:80]}")
    rank, alpha = _number(folder, config, "r"), _number(folder, config, "lora_alpha")
    if rank != int(rank):
        raise _wrong(folder, f"r is {rank}, expected a whole number")
    ranks, alphas = _patterns(folder, config, "rank_pattern"), _patterns(folder, config, "alpha_pattern")
    flags = [config.get(name) or False for name in ("use_rslora", "use_dora")]
    if not all(isinstance(flag, bool) for flag in flags):
        raise _wrong(folder, "use_rslora and use_dora should be true or false")
    return AdapterConfig(
        folder,
        base_model(folder),
        lambda path: int(ranks(path) or rank),
        lambda path: alphas(path) or alpha,
        *flags,
    )


def _read(folder: Path) -> dict[str, Any]:
    what = "is a model, not an adapter" if (folder / "config.json").is_file() else "is no adapter"
    missing = f"{folder} {what}: it has no {FILE}; give a folder that PEFT's save_pretrained wrote."
    return read_object(folder / FILE, "download it again", missing=missing)


def _number(folder: Path, config: dict[str, Any], key: str) -> float:
    value = config.get(key, 8)  # LoraConfig's default for both
    if not _is_positive(value):
        raise _wrong(folder, "r and lora_alpha should be positive numbers")
    return float(value)


def _patterns(folder: Path, config: dict[str, Any], key: str) -> Callable[[str], float | None]:
    """The value of the first pattern that fits a module's path."""
    found = config.get(key) or {}
    if not isinstance(found, dict) or not all(_is_positive(value) for value in found.values()):
        raise _wrong(folder, f"{key} should map module names to positive numbers")
    if key == "rank_pattern" and not all(float(value).is_integer() for value in found.values()):
        raise _wrong(folder, f"{key} should map module names to whole numbers")
    if len(found) > limits.PATTERNS or sum(not is_plain(pattern) for pattern in found) > limits.EXPRESSIONS:
        raise _wrong(
            folder,
            f"{key} holds {len(found)} patterns, where at most {limits.PATTERNS} names of modules and "
            f"{limits.EXPRESSIONS} regular expressions are read",
        )
    rules = []
    for pattern, value in found.items():
        try:
            rules.append((compile_pattern(pattern), float(value)))
        except BadPattern as problem:
            raise _wrong(folder, f"{key} holds {pattern[:80]!r}, which {problem}: name modules plainly") from None
    return lambda path: next((value for fits, value in rules if fits(path)), None)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= limits.REAL


def _unsupported(folder: Path, what: str) -> EdgeVLMError:
    return EdgeVLMError(
        f"{folder} uses {what}, which edgevlm cannot merge exactly: merge it with peft's merge_and_unload(), save the "
        "model and export that."
    )


def _wrong(folder: Path, problem: str) -> EdgeVLMError:
    return EdgeVLMError(f"{folder} is not a valid LoRA adapter: {problem}; save or download it again.")
