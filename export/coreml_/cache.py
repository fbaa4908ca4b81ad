"""How a decoder's states are packed: CoreML fixes their size at export, and holds two tensors of them at most."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import State

Size = tuple[int, int, int, int]


@dataclass(frozen=True)
class Cache:
    """Where each layer's states lie.

    packed: shape of each CoreML state: (layers, kv heads, positions, head size) of keys and values, (1, 1, rows, width)
    of the states that are replaced. places: by the name of a state, the packed one that holds it, and its first row
    there. mask: the input whose last axis says how far keys and values reach.
    """

    packed: dict[str, Size]
    places: dict[str, tuple[str, int]]
    mask: str


def pack(states: tuple[State, ...], context: int, together: bool, mask: str) -> Cache:
    """Keys and values in one state each, or `together` in one, values behind keys; all replaced states in another.

    Heads of two sizes are in two states, each of keys and values.
    """
    if other := next((state for state in states if state.kind not in ("append", "replace")), None):
        raise EdgeVLMError(
            f"CoreML packages hold states that grow or are replaced, and this decoder also carries '{other.name}' "
            f"({other.kind}): choose the target onnx."
        )
    growing, replaced = ([s for s in states if s.kind == kind] for kind in ("append", "replace"))
    shapes = list(dict.fromkeys(state.shape for state in growing))
    if not 1 <= len(shapes) <= 2 - bool(replaced):
        raise EdgeVLMError(
            "CoreML packages hold two states at most, and this decoder's layers have heads of more numbers or sizes: "
            "choose the target onnx."
        )
    one = together or bool(replaced)
    packed: dict[str, Size] = {}
    places: dict[str, tuple[str, int]] = {}
    for shape in shapes:
        kv, _, size = shape
        assert kv is not None and size is not None
        same = [s.name for s in growing if s.shape == shape]
        keys, values = ([name for name in same if name.endswith(f".{side}")] for side in ("key", "value"))
        groups = {"kv_cache": keys + values} if one else {"key_cache": keys, "value_cache": values}
        if len(shapes) > 1:
            groups = {f"kv_cache_{size}" if shapes[0][2] != shapes[1][2] else f"kv_cache_of_{kv}": keys + values}
        packed |= {name: (len(members), kv, context, size) for name, members in groups.items()}
        places |= {state: (name, row) for name, members in groups.items() for row, state in enumerate(members)}
    if replaced:
        sizes = [math.prod(size or 0 for size in state.shape) for state in replaced]
        width = math.gcd(*(state.shape[-1] or 0 for state in replaced))
        packed["replaced"] = (1, 1, sum(sizes) // width, width)
        for number, state in enumerate(replaced):
            places[state.name] = "replaced", sum(sizes[:number]) // width
    return Cache(packed, places, mask)
