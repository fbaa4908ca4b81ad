"""Which stored tensor an adapter means: it names modules as they are in memory, files have one of several layouts.

Versions of transformers differ in the modules that wrap a whole part of a model: a decoder's first layer may be
`language_model.model.layers.0` in transformers 4, `model.language_model.layers.0` in transformers 5, and
`model.layers.0` in an adapter of the decoder alone. Below these wrappers the names agree.
"""

from __future__ import annotations

from collections.abc import Iterable

WRAPPERS = frozenset({"model", "language_model", "vision_model"})
# What authors' files call a part that transformers names otherwise.
RENAMED = {
    "mlp_AR": "projector",
    "patchifier": "patch_embed",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
    "gate_proj": "g_proj",
    "vit": "vision_tower",
    "perceive": "patch_merger",
    "dense_h_to_4h": "fc1",
    "dense_4h_to_h": "fc2",
    "input_layernorm": "layer_norm1",
    "post_attention_layernorm": "layer_norm2",
}
NUMBERED = {"perceive.proj.0": "perceive.proj_conv", "perceive.proj.2": "perceive.proj_out"}  # in a list there


def inner_name(name: str) -> str:
    """`name` without the modules that wrap a part: what a tensor is called in every layout."""
    for old, new in NUMBERED.items():
        name = name.replace(f"{old}.", f"{new}.")
    return ".".join(RENAMED.get(part, part) for part in name.split(".") if part not in WRAPPERS)


class StoredNames:
    """The names of a checkpoint's tensors, found by the names that they have in any layout."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._by_inner: dict[str, list[str]] = {}
        for name in self._names:
            self._by_inner.setdefault(inner_name(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The stored name of the tensor that some layout calls `name`; None if there is none, or more than one."""
        if name in self._names:
            return name
        found = self._by_inner.get(inner_name(name), [])
        return found[0] if len(found) == 1 else None
