"""How a decoder's growing states are packed: CoreML fixes their size at export, and holds two at most."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import State


@dataclass(frozen=True)
class Cache:
    """Where each layer's keys and values lie.

    packed: shape (layers, kv heads, positions, head size) of each CoreML state. places: by the name of a state, the
    packed one that holds it, and its row there. mask: the input whose last axis says how far the cache reaches.
    """

    packed: dict[str, tuple[int, int, int, int]]
    places: dict[str, tuple[str, int]]
    mask: str


def pack(states: tuple[State, ...], context: int, together: bool, mask: str) -> Cache:
    """Keys and values in one state each, or `together` in one, values behind keys."""
    if other := next((state for state in states if state.kind != "append"), None):
        raise EdgeVLMError(
            f"CoreML packages hold growing keys and values only, and this decoder also carries '{other.name}' "
            f"({other.kind}): choose the target onnx."
        )
    if len({state.shape for state in states}) != 1:
        raise EdgeVLMError(
            "CoreML packages hold the keys of all layers in one state, and this decoder's layers have heads of "
            "different numbers or sizes: choose the target onnx."
        )
    keys, values = ([s.name for s in states if s.name.endswith(f".{side}")] for side in ("key", "value"))
    kv, _, size = states[0].shape
    assert kv is not None and size is not None
    groups = {"kv_cache": keys + values} if together else {"key_cache": keys, "value_cache": values}
    return Cache(
        {name: (len(members), kv, context, size) for name, members in groups.items()},
        {state: (name, row) for name, members in groups.items() for row, state in enumerate(members)},
        mask,
    )
