"""Read a CoreML `.mlpackage` (an ML program) without CoreML, coremltools or protobuf.

Two formats lie inside: protobuf with the messages of Apple's Model.proto and MIL.proto
(https://github.com/apple/coremltools/tree/9.0/mlmodel/format), and the weight file (blob.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import read_json
from edgevlm.io.regular import read_regular
from edgevlm.runtimes.mil.blob import NUMPY, Array, Blob, Dim, TensorType, broken, read_blob
from edgevlm.runtimes.protobuf import Message, fields, pairs, signed, text, varint, whole

_TYPES = {1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32",
          24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4",
          36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3"}  # fmt: skip


@dataclass(frozen=True)
class MilOp:
    """One operation. An input is a tuple of value names and literal values (several for `concat`)."""

    type: str
    name: str
    inputs: dict[str, tuple[Any, ...]]  # str: the name of a value; otherwise an array, a Blob or a Text
    outputs: tuple[tuple[str, TensorType], ...]
    attributes: dict[str, Any]


class Text(str):
    """A literal string, distinguished from a value's name by its type."""


@dataclass(frozen=True)
class MilFunction:
    name: str
    inputs: dict[str, TensorType]
    states: dict[str, TensorType]
    outputs: tuple[str, ...]
    ops: tuple[MilOp, ...]
    ranges: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)  # flexible inputs: bounds per axis


@dataclass(frozen=True)
class MilPackage:
    """A package's program; weights stay on disk until `read_blob`."""

    folder: Path
    specification_version: int
    default_function: str
    functions: dict[str, MilFunction]
    weight_file: Path | None

    @property
    def size(self) -> int:
        """Bytes of the package's files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def read_blob(self, blob: Blob) -> Array:
        """The stored values; sub-byte codes come widened to int8 or uint8. EdgeVLMError for a damaged file."""
        if self.weight_file is None:
            raise broken(self.folder, "it refers to a weight file that it lacks")
        return read_blob(self.weight_file, blob)

    def find(self, function: str, op: str) -> MilOp:
        """The operation named `op`; KeyError when there is none."""
        for candidate in self.functions[function].ops:
            if candidate.name == op:
                return candidate
        raise KeyError(op)


def open_package(folder: Path) -> MilPackage:
    """Parse the `.mlpackage` at `folder`. Raises EdgeVLMError when it is missing, damaged, or no ML program."""
    try:
        model = _root_model(folder)
        data = read_regular(model, limits.GRAPH_FILE, "export the bundle again")
    except OSError as error:
        raise EdgeVLMError(f"{folder} cannot be read ({error.strerror}): export the bundle again.") from None
    weights = model.parent / "weights" / "weight.bin"
    if not weights.resolve().is_relative_to(folder.resolve()):
        raise broken(folder, "its weight file is a link to the outside")
    try:
        return _read_model(folder, Message(data), weights if weights.is_file() else None)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise broken(folder, f"its program cannot be parsed ({str(error)[:120]})") from None


def _root_model(folder: Path) -> Path:
    missing = f"{folder} is no CoreML package: Manifest.json is missing; export the bundle again."
    manifest = read_json(folder / "Manifest.json", "export the bundle again", missing=missing, largest=limits.SPEC_FILE)
    try:
        path = str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
        model = folder / "Data" / path
        inside = model.resolve().is_relative_to(folder.resolve())
    except (LookupError, TypeError, ValueError, OSError):
        raise broken(folder, "its Manifest.json names no root model") from None
    if not inside:
        raise broken(folder, f"its Manifest.json points outside the package ({path[:100]!r})")
    return model


# Model.proto and MIL.proto


def _read_model(folder: Path, data: Message, weight_file: Path | None) -> MilPackage:
    version, program, description = 0, None, Message(b"")
    for number, value in fields(data):
        if number == 1:
            version = whole(value)
        elif number == 2:
            description = value
        elif number == 502:
            program = value
    if program is None:
        raise broken(folder, "it holds no ML program")
    default, ranges = _read_description(description)
    functions = {}
    for number, value in fields(program):
        if number == 2:
            name, body = pairs(value)
            functions[name] = _read_function(name, body, ranges.get(name, {}))
    if default not in functions:
        raise broken(folder, f"it lacks its default function '{default}'")
    return MilPackage(folder, version, default, functions, weight_file)


Ranges = dict[str, tuple[tuple[int, int], ...]]


def _read_description(data: Message) -> tuple[str, dict[str, Ranges]]:
    """The default function's name, and the bounds of flexible inputs by function and input."""
    default, main, ranges = "main", {}, {}
    for number, value in fields(data):
        if number == 21:
            default = text(value)
        elif number == 1:
            main.update(_read_feature(value))
        elif number == 20:
            name, inputs = "", {}
            for inner, item in fields(value):
                if inner == 1:
                    name = text(item)
                elif inner == 2:
                    inputs.update(_read_feature(item))
            ranges[name] = inputs
    return default, ranges or {default: main}


def _read_feature(data: Message) -> Ranges:
    name, bounds = "", []
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 3:  # type -> multiArrayType -> shapeRange -> sizeRanges
            for size_range in _walk(value, (5, 31, 1)):
                found = {inner: item for inner, item in fields(size_range)}
                bounds.append((whole(found.get(1, 0)), signed(whole(found.get(2, 0)))))
    return {name: tuple(bounds)} if bounds else {}


def _walk(data: Message, path: tuple[int, ...]) -> Iterator[Message]:
    for number, value in fields(data):
        if number == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from _walk(value, path[1:])


def _read_function(name: str, data: Message, ranges: Ranges) -> MilFunction:
    inputs: dict[str, TensorType] = {}
    states: dict[str, TensorType] = {}
    block, blocks, opset = None, {}, ""
    for number, value in fields(data):
        if number == 1:
            key, kind, is_state = _read_named_type(value)
            (states if is_state else inputs)[key] = kind
        elif number == 2:
            opset = text(value)
        elif number == 3:
            key, body = pairs(value)
            blocks[key] = body
    if not blocks:
        raise ValueError("a function has no block")
    block = blocks.get(opset) or next(iter(blocks.values()))
    outputs, ops = [], []
    for number, value in fields(block):
        if number == 2:
            outputs.append(text(value))
        elif number == 3:
            ops.append(_read_op(value))
    if len(ops) > limits.OPERATIONS:
        raise ValueError(f"a function has {len(ops)} operations")
    return MilFunction(name, inputs, states, tuple(outputs), tuple(ops), ranges)


def _read_op(data: Message) -> MilOp:
    kind, inputs, outputs, attributes = "", {}, [], {}
    for number, value in fields(data):
        if number == 1:
            kind = text(value)
        elif number == 2:
            key, body = pairs(value)
            inputs[key] = tuple(_read_binding(item) for field_, item in fields(body) if field_ == 1)
        elif number == 3:
            name, type_, _ = _read_named_type(value)
            outputs.append((name, type_))
        elif number == 4:
            raise ValueError(f"the operation '{kind}' has nested blocks, which are not supported")
        elif number == 5:
            key, body = pairs(value)
            attributes[key] = _read_value(body)
    label = attributes.get("name")
    return MilOp(kind, str(label) if label is not None else "", inputs, tuple(outputs), attributes)


def _read_binding(data: Message) -> Any:
    for number, value in fields(data):
        if number == 1:
            return text(value)
        if number == 2:
            return _read_value(value)
    raise ValueError("an argument is empty")


def _read_named_type(data: Message) -> tuple[str, TensorType, bool]:
    name, kind, is_state = "", TensorType("", ()), False
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            kind, is_state = _read_type(value)
    return name, kind, is_state


def _read_type(data: Message) -> tuple[TensorType, bool]:
    for number, value in fields(data):
        if number == 1:
            return _read_tensor_type(value), False
        if number == 5:
            inner = [item for field_, item in fields(value) if field_ == 1]
            return _read_type(inner[0])[0], True
    return TensorType("", ()), False


def _read_tensor_type(data: Message) -> TensorType:
    dtype, dims = "", []
    for number, value in fields(data):
        if number == 1:
            dtype = _TYPES.get(whole(value), f"type {value}")
        elif number == 3:
            size: Dim = None
            for inner, item in fields(value):
                if inner == 1:
                    size = whole(next((number_ for field_, number_ in fields(item) if field_ == 1), 0))
            dims.append(size)
            if len(dims) > limits.DIMENSIONS:
                raise ValueError(f"a tensor has more than {limits.DIMENSIONS} dimensions")
    return TensorType(dtype, tuple(dims))


def _read_value(data: Message) -> Any:
    """A literal array, Text, or Blob."""
    kind = TensorType("", ())
    for number, value in fields(data):
        if number == 2:
            kind, _ = _read_type(value)
        elif number == 3:
            for inner, item in fields(value):
                if inner == 1:
                    return _read_literal(item, kind)
        elif number == 5:
            found = {inner: item for inner, item in fields(value)}
            if text(found.get(1, b"")) != "@model_path/weights/weight.bin":
                raise ValueError(f"weights in another file: {text(found.get(1, b''))[:100]!r}")
            return Blob(whole(found.get(2, 0)), kind)
    return None


def _read_literal(data: Message, kind: TensorType) -> Any:
    shape = tuple(size or 0 for size in kind.shape)
    count = math.prod(shape)
    if count > limits.LITERAL:
        raise ValueError(f"a literal has the shape {shape}")
    for number, value in fields(data):
        items = [item for field_, item in fields(value) if field_ == 1]
        if number == 4:
            return Text(text(items[0])) if items else Text("")
        if kind.dtype not in NUMPY:
            raise ValueError(f"a literal of type {kind.dtype}")
        if number in (1, 6, 7):  # floats, doubles, bytes: little-endian
            wire = {1: "<f4", 6: "<f8", 7: NUMPY[kind.dtype]}[number]
            array: Array = np.frombuffer(b"".join(bytes(item) for item in items if isinstance(item, Message)), wire)
        else:  # varints, packed or not
            numbers: list[int] = []
            for item in items:
                if isinstance(item, int):
                    numbers.append(signed(item))
                    continue
                at = 0
                while at < len(item.view):
                    one, at = varint(item.view, at)
                    numbers.append(signed(one))
                    if len(numbers) > count:
                        break
            array = np.array(numbers, np.int64)
        if array.size != count:
            raise ValueError(f"a literal has {array.size} values for the shape {shape}")
        return array.astype(NUMPY[kind.dtype]).reshape(shape)
    if count:
        raise ValueError(f"a literal lacks its values for the shape {shape}")
    return np.zeros(shape, NUMPY[kind.dtype])
