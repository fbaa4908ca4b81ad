"""Inputs of the packages, converted from a component's: additive masks, RoPE rows of both halves, int32 indices.

Emitters read the shapes here and runtimes the values, so that the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.models.blocks import mask_input, rope_inputs
from edgevlm.models.spec import Decoder, DeltaRule
from edgevlm.models.tensor import Tensor

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]
CHUNK_ROWS = 64  # prompt rows per call at most where a state is corrected row by row: programs hold squares of them
MASK_VALUE = -1e4  # finite: the Neural Engine mishandles -inf (ml-ane-transformers, coreai-models' rules)


def decoder_tensors(d: Decoder) -> dict[str, Tensor]:
    """Inputs of the decoder beside embeddings, as `inputs.layout.decoder_inputs` computes them, and its position."""
    masks = sorted(d.windows, key=lambda window: window or 0)
    found = {mask_input(window): Tensor("bool", ("rows", "end")) for window in masks}
    found["position"] = Tensor("int32", (1,))
    for name, rope in d.ropes.items():
        found |= {part: Tensor("float32", ("rows", rope.size // 2)) for part in rope_inputs(name)}
    return found


def most_rows(d: Decoder) -> int | None:
    """The most rows that a call of a decoder may have; None leaves that to the context."""
    mixers = (mixer for block in d.blocks for mixer in block.mixers)
    return CHUNK_ROWS if any(isinstance(mixer, DeltaRule) for mixer in mixers) else None


def axis_sizes(tensors: Mapping[str, Tensor], values: Mapping[str, Array]) -> dict[str, int]:
    """What the values make of the free axes."""
    pairs = ((a, n) for name, t in tensors.items() for a, n in zip(t.shape, values[name].shape, strict=True))
    return {axis: size for axis, size in pairs if isinstance(axis, str)}


def package_tensor(name: str, tensor: Tensor) -> Tensor:
    """The package's input for a component's input `name`."""
    shape: Shape = tensor.shape
    if tensor.dtype in ("int64", "int32"):
        return Tensor("int32", shape)
    if _is_rope(name):
        assert isinstance(shape[-1], int)
        shape = (*shape[:-1], 2 * shape[-1])
    if _is_rope(name) or tensor.dtype == "bool":
        shape = (*(1,) * (4 - len(shape)), *shape)
    return Tensor("float16", shape)


def package_inputs(
    feeds: Mapping[str, Array], mask_value: float = MASK_VALUE, shapes: Mapping[str, Sequence[int | str]] | None = None
) -> dict[str, Array]:
    """The package's inputs for a component's; masks become 0 where a row may look, else `mask_value`.

    shapes: of the package's inputs, fixed axes as numbers, to which values are padded; masks hide the padding. Raises
    EdgeVLMError for a picture that is too large for them.
    """
    found = {}
    for name, value in feeds.items():
        masks, given = value.dtype == np.bool_, value
        value = _convert(name, given, mask_value)
        if shapes is not None:
            value = _pad(name, value, shapes[name], mask_value if masks else 0)
        found[name] = value
    return found


def _convert(name: str, value: Array, mask_value: float) -> Array:
    if value.dtype == np.int64:
        return value.astype(np.int32)
    if value.dtype == np.bool_:
        value = np.where(value, np.float32(0), np.float32(mask_value))
    elif _is_rope(name):
        value = np.concatenate([value, value] if name.startswith("cos") else [-value, value], axis=-1)
    else:
        return value
    return value.reshape(*(1,) * (4 - value.ndim), *value.shape)


def _pad(name: str, value: Array, shape: Sequence[int | str], filling: float) -> Array:
    room = [size if isinstance(size, int) else given for size, given in zip(shape, value.shape, strict=True)]
    widths = [(0, size - given) for size, given in zip(room, value.shape, strict=True)]
    if any(width < 0 for _, width in widths):
        raise EdgeVLMError(
            f"The picture gives the encoder's input '{name}' the shape {list(value.shape)}, and this package has room "
            f"for {room}: use a smaller picture, or export with the profile 'gpu', whose encoder takes any."
        )
    return np.pad(value, widths, constant_values=filling) if any(map(any, widths)) else value


def _is_rope(name: str) -> bool:
    return name.split("_")[0] in rope_inputs("main")
