"""What is checked of an ONNX file before onnxruntime opens it, and of its graph before it runs.

A graph from a stranger is still a program: it may compute for as long, and take as much memory, as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import RuntimeFailed
from edgevlm.io import limits
from edgevlm.io.regular import check_regular, read_regular
from edgevlm.models.components import Component, components
from edgevlm.models.spec import with_cache
from edgevlm.models.tensor import Tensor
from edgevlm.runtimes.base import disagreement
from edgevlm.runtimes.protobuf import Message, fields, text

KEEP = "num_logits_to_keep"  # of a decoder: the input that need not be fed
_DEPTH = 8  # graphs inside attributes of nodes
_ADVICE = "check the bundle with `edgevlm verify`, or export it again"
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int8)": "int8", "tensor(bool)": "bool"}
# onnx.proto's numbers of fields: (what a message is, its field) -> what that field is.
_INNER = {
    ("model", 7): "graph", ("model", 25): "function", ("function", 7): "node", ("graph", 1): "node",
    ("graph", 5): "tensor", ("graph", 15): "sparse", ("sparse", 1): "tensor", ("sparse", 2): "tensor",
    ("node", 5): "attribute", ("attribute", 5): "tensor", ("attribute", 6): "graph", ("attribute", 10): "tensor",
    ("attribute", 11): "graph", ("attribute", 22): "sparse", ("attribute", 23): "sparse",
    ("function", 11): "attribute", ("tensor", 13): "entry",
}  # fmt: skip


def check_file(bundle: Bundle, relative: str) -> None:
    """The file is whole protobuf of bounded size, and its weights lie in listed files of the same folder.

    Raises EdgeVLMError otherwise.
    """
    path = bundle.path(relative)
    try:
        data = read_regular(path, limits.GRAPH_FILE, _ADVICE)
        for tensor in _tensors(Message(data), "model"):
            _check_external(bundle, relative, tensor)
    except (ValueError, IndexError) as error:
        raise RuntimeFailed(f"'{path}' is no ONNX file, or is damaged ({str(error)[:120]}): {_ADVICE}.") from None
    except OSError as error:
        raise RuntimeFailed(f"'{path}' cannot be read ({error.strerror}): {_ADVICE}.") from None


def _tensors(message: Message, kind: str, depth: int = 0) -> Iterator[dict[str, str]]:
    """Where each tensor that lies in another file says that it does: onnx.proto's keys and values."""
    if depth > 4 * _DEPTH:
        raise ValueError("its graphs are nested too deep")
    entries: dict[str, str] = {}
    for number, value in fields(message):
        inner = _INNER.get((kind, number))
        if inner is None:
            continue
        if not isinstance(value, Message):
            raise ValueError(f"a {inner} is a number")
        if inner == "entry":
            pair = dict(fields(value))
            entries[text(pair.get(1, b""))] = text(pair.get(2, b""))
        else:
            yield from _tensors(value, inner, depth + 1)
    if entries:
        yield entries


def _check_external(bundle: Bundle, relative: str, entries: dict[str, str]) -> None:
    folder, location = relative.rpartition("/")[0], entries.get("location", "")
    name = f"{folder}/{location}" if folder else location
    if "/" in location or name not in bundle.manifest.files:
        raise ValueError(f"it names the weights {location[:80]!r}, which the manifest does not list")
    offset, length = (int(entries.get(key) or 0) for key in ("offset", "length"))
    if offset < 0 or length < 0 or offset + length > check_regular(bundle.folder / name).st_size:
        raise ValueError(f"it names weights beyond the end of {location[:80]!r}")


def check_signature(session: Any, bundle: Bundle, graph: str, portable: bool = False) -> None:
    """The graph takes and gives what the manifest's model does; EdgeVLMError names the first that differs.

    Runtimes allocate and read by these shapes. portable: one of standard operators, which keep floats.
    """
    name = "decoder" if graph == "decoder_prefill" else graph
    optional = {value.name for value in session.get_overridable_initializers()}
    if optional != ({KEEP} if name == "decoder" else set()):
        raise disagreement(f"'{graph}' has the optional inputs {sorted(optional)}")
    spec = bundle.manifest.spec
    spec = replace(spec, decoder=with_cache(spec.decoder, "float32")) if portable else spec
    component = next(part for part in components(spec) if part.name == name)
    inputs = _inputs(component, bundle.manifest.spec.masked_tiles)
    for found, wanted in ((session.get_inputs(), inputs), (session.get_outputs(), _outputs(component))):
        have = {value.name: (_DTYPES.get(value.type, value.type), tuple(value.shape)) for value in found}
        for key, tensor in wanted.items():
            if key not in have:
                raise disagreement(f"'{graph}' has no '{key}'")
            if not _fits(have[key], tensor):
                raise disagreement(
                    f"'{graph}' has '{key}' as {have[key][0]} {list(have[key][1])}, expected {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
        if extra := have.keys() - wanted.keys():
            raise disagreement(f"'{graph}' also has '{min(extra)[:80]}'")


def _fits(found: tuple[str, tuple[Any, ...]], wanted: Tensor) -> bool:
    """Free axes may have any names; an axis that is fixed on one side is the same number on the other."""
    dtype, shape = found
    axes = zip(wanted.shape, shape, strict=False)
    same = all(ours == theirs or not (isinstance(ours, int) or isinstance(theirs, int)) for ours, theirs in axes)
    return dtype == wanted.dtype and len(shape) == len(wanted.shape) and same


def _inputs(component: Component, masked: bool) -> dict[str, Tensor]:
    found = dict(component.inputs)
    if (tiles := found.pop("pixels", None)) is not None:
        batch = ("batch_size", "num_images") if masked else tiles.shape[:1]
        found["pixel_values"] = Tensor("float32", (*batch, *tiles.shape[1:]))
    if tiles is not None and masked:
        found["pixel_attention_mask"] = Tensor("bool", ("batch_size", "num_images", *tiles.shape[2:]))
    if component.states:
        found["attention_mask"] = Tensor("int64", ("batch_size", "total_sequence_length"))
    return found | _states(component, "past_key_values")


def _outputs(component: Component) -> dict[str, Tensor]:
    return component.outputs | _states(component, "present")


def _states(component: Component, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}.{state.name}": Tensor(
            state.dtype, ("batch_size", *("positions" if size is None else size for size in state.shape))
        )
        for state in component.states
    }
