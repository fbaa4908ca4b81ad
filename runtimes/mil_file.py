"""Read a CoreML `.mlpackage` (an ML program) without CoreML, coremltools or protobuf.

Two formats lie inside: protobuf (https://protobuf.dev/programming-guides/encoding) with the messages of
Apple's Model.proto and MIL.proto (https://github.com/apple/coremltools/tree/9.0/mlmodel/format), and the
weight file in MIL blob storage version 2 (mlmodel/src/MILBlob/Blob/StorageFormat.hpp in the same place).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError

Array = npt.NDArray[Any]
Dim = int | None  # None: flexible

MAX_MODEL_BYTES = (
    256 << 20
)  # a program of some thousand operations takes about 1 MB; the weights lie elsewhere
MAX_ELEMENTS = 1 << 33
_TYPES = {1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32",
          24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4",
          36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3"}  # fmt: skip
_NUMPY = {"bool": "?", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "int8": "i1", "int16": "<i2",
          "int32": "<i4", "int64": "<i8", "uint8": "u1", "uint16": "<u2", "uint32": "<u4",
          "uint64": "<u8"}  # fmt: skip
_BLOB_TYPES = {1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1",
               10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32"}  # fmt: skip
_SUB_BYTE = {"int4": 4, "uint6": 6, "uint4": 4, "uint3": 3, "uint2": 2, "uint1": 1}
_BLOB_SENTINEL = 0xDEADBEEF


@dataclass(frozen=True)
class TensorType:
    dtype: str  # "fp16", "int4", "string", ...
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Blob:
    """A tensor in the weight file; `offset` points at its 64-byte record."""

    offset: int
    type: TensorType


@dataclass(frozen=True)
class MilOp:
    """One operation. An input is a tuple of value names and literal values (several for `concat`)."""

    type: str
    name: str
    inputs: dict[str, tuple[Any, ...]]  # str: the name of a value; otherwise an array, a Blob or a Text
    outputs: tuple[tuple[str, TensorType], ...]
    attributes: dict[str, Any]


class Text(str):
    """A literal string, told from a value's name by its type."""


@dataclass(frozen=True)
class MilFunction:
    name: str
    inputs: dict[str, TensorType]
    states: dict[str, TensorType]
    outputs: tuple[str, ...]
    ops: tuple[MilOp, ...]
    ranges: dict[str, tuple[tuple[int, int], ...]] = field(
        default_factory=dict
    )  # flexible inputs: bounds per axis


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
        """The stored values; sub-byte codes come widened to int8 or uint8. Raises EdgeVLMError for a damaged
        file."""
        if self.weight_file is None:
            raise _broken(self.folder, "it refers to a weight file that it lacks")
        return _read_blob(self.weight_file, blob)

    def find(self, function: str, op: str) -> MilOp:
        """The operation named `op`; KeyError when there is none."""
        for candidate in self.functions[function].ops:
            if candidate.name == op:
                return candidate
        raise KeyError(op)


def open_package(folder: Path) -> MilPackage:
    """Parse the `.mlpackage` at `folder`. Raises EdgeVLMError when it is missing, damaged, or no ML
    program."""
    try:
        model = _root_model(folder)
        if model.stat().st_size > MAX_MODEL_BYTES:
            raise _broken(folder, f"its program is larger than {MAX_MODEL_BYTES} bytes")
        data = model.read_bytes()
    except OSError as error:
        raise EdgeVLMError(f"{folder} cannot be read ({error.strerror}): export the bundle again.") from None
    weights = model.parent / "weights" / "weight.bin"
    try:
        return _read_model(folder, data, weights if weights.is_file() else None)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise _broken(folder, f"its program cannot be parsed ({str(error)[:120]})") from None


def _root_model(folder: Path) -> Path:
    try:
        manifest = json.loads((folder / "Manifest.json").read_text(encoding="utf-8"))
        path = str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except FileNotFoundError:
        raise EdgeVLMError(
            f"{folder} is no CoreML package: Manifest.json is missing; export the bundle again."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _broken(folder, "its Manifest.json names no root model") from None
    model = folder / "Data" / path
    if not model.resolve().is_relative_to(folder.resolve()):
        raise _broken(folder, f"its Manifest.json points outside the package ({path[:100]!r})")
    return model


def _broken(folder: Path, problem: str) -> EdgeVLMError:
    return EdgeVLMError(f"{folder} is not a valid CoreML package: {problem}; export the bundle again.")


# Protobuf wire format


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int for numbers, a memoryview for everything with a length."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > end - at:
            raise ValueError("it is truncated")
        yield tag >> 3, data[at : at + size]
        at += size


def _text(data: Any) -> str:
    return bytes(data).decode("utf-8")


def _pairs(data: memoryview) -> tuple[str, memoryview]:
    """A protobuf map entry with a string key."""
    key, value = "", memoryview(b"")
    for number, item in _fields(data):
        if number == 1:
            key = _text(item)
        elif number == 2:
            value = item
    return key, value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# Model.proto and MIL.proto


def _read_model(folder: Path, data: bytes, weight_file: Path | None) -> MilPackage:
    version, program, description = 0, None, memoryview(b"")
    for number, value in _fields(memoryview(data)):
        if number == 1:
            version = value
        elif number == 2:
            description = value
        elif number == 502:
            program = value
    if program is None:
        raise _broken(folder, "it holds no ML program")
    default, ranges = _read_description(description)
    functions = {}
    for number, value in _fields(program):
        if number == 2:
            name, body = _pairs(value)
            functions[name] = _read_function(name, body, ranges.get(name, {}))
    if default not in functions:
        raise _broken(folder, f"it lacks its default function '{default}'")
    return MilPackage(folder, version, default, functions, weight_file)


Ranges = dict[str, tuple[tuple[int, int], ...]]


def _read_description(data: memoryview) -> tuple[str, dict[str, Ranges]]:
    """The default function's name, and the bounds of flexible inputs by function and input."""
    default, main, ranges = "main", {}, {}
    for number, value in _fields(data):
        if number == 21:
            default = _text(value)
        elif number == 1:
            main.update(_read_feature(value))
        elif number == 20:
            name, inputs = "", {}
            for inner, item in _fields(value):
                if inner == 1:
                    name = _text(item)
                elif inner == 2:
                    inputs.update(_read_feature(item))
            ranges[name] = inputs
    return default, ranges or {default: main}


def _read_feature(data: memoryview) -> Ranges:
    name, bounds = "", []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3:  # type -> multiArrayType -> shapeRange -> sizeRanges
            for size_range in _walk(value, (5, 31, 1)):
                found = {inner: item for inner, item in _fields(size_range)}
                bounds.append((int(found.get(1, 0)), _signed(int(found.get(2, 0)))))
    return {name: tuple(bounds)} if bounds else {}


def _walk(data: memoryview, path: tuple[int, ...]) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from _walk(value, path[1:])


def _read_function(name: str, data: memoryview, ranges: Ranges) -> MilFunction:
    inputs: dict[str, TensorType] = {}
    states: dict[str, TensorType] = {}
    block, blocks, opset = None, {}, ""
    for number, value in _fields(data):
        if number == 1:
            key, kind, is_state = _read_named_type(value)
            (states if is_state else inputs)[key] = kind
        elif number == 2:
            opset = _text(value)
        elif number == 3:
            key, body = _pairs(value)
            blocks[key] = body
    block = blocks.get(opset) or next(iter(blocks.values()))
    outputs, ops = [], []
    for number, value in _fields(block):
        if number == 2:
            outputs.append(_text(value))
        elif number == 3:
            ops.append(_read_op(value))
    return MilFunction(name, inputs, states, tuple(outputs), tuple(ops), ranges)


def _read_op(data: memoryview) -> MilOp:
    kind, inputs, outputs, attributes = "", {}, [], {}
    for number, value in _fields(data):
        if number == 1:
            kind = _text(value)
        elif number == 2:
            key, body = _pairs(value)
            inputs[key] = tuple(_read_binding(item) for field_, item in _fields(body) if field_ == 1)
        elif number == 3:
            name, type_, _ = _read_named_type(value)
            outputs.append((name, type_))
        elif number == 4:
            raise ValueError(f"the operation '{kind}' has nested blocks, which are not supported")
        elif number == 5:
            key, body = _pairs(value)
            attributes[key] = _read_value(body)
    label = attributes.get("name")
    return MilOp(kind, str(label) if label is not None else "", inputs, tuple(outputs), attributes)


def _read_binding(data: memoryview) -> Any:
    for number, value in _fields(data):
        if number == 1:
            return _text(value)
        if number == 2:
            return _read_value(value)
    raise ValueError("an argument is empty")


def _read_named_type(data: memoryview) -> tuple[str, TensorType, bool]:
    name, kind, is_state = "", TensorType("", ()), False
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            kind, is_state = _read_type(value)
    return name, kind, is_state


def _read_type(data: memoryview) -> tuple[TensorType, bool]:
    for number, value in _fields(data):
        if number == 1:
            return _read_tensor_type(value), False
        if number == 5:
            inner = [item for field_, item in _fields(value) if field_ == 1]
            return _read_type(inner[0])[0], True
    return TensorType("", ()), False


def _read_tensor_type(data: memoryview) -> TensorType:
    dtype, dims = "", []
    for number, value in _fields(data):
        if number == 1:
            dtype = _TYPES.get(value, f"type {value}")
        elif number == 3:
            size: Dim = None
            for inner, item in _fields(value):
                if inner == 1:
                    size = next((number_ for field_, number_ in _fields(item) if field_ == 1), 0)
            dims.append(size)
    return TensorType(dtype, tuple(dims))


def _read_value(data: memoryview) -> Any:
    """A literal array, Text, or Blob."""
    kind = TensorType("", ())
    for number, value in _fields(data):
        if number == 2:
            kind, _ = _read_type(value)
        elif number == 3:
            for inner, item in _fields(value):
                if inner == 1:
                    return _read_literal(item, kind)
        elif number == 5:
            found = {inner: item for inner, item in _fields(value)}
            if _text(found.get(1, b"")) != "@model_path/weights/weight.bin":
                raise ValueError(f"weights in another file: {_text(found.get(1, b''))[:100]!r}")
            return Blob(int(found.get(2, 0)), kind)
    return None


def _read_literal(data: memoryview, kind: TensorType) -> Any:
    shape = tuple(size or 0 for size in kind.shape)
    for number, value in _fields(data):
        items = [item for field_, item in _fields(value) if field_ == 1]
        if number == 4:
            return Text(_text(items[0])) if items else Text("")
        if kind.dtype not in _NUMPY:
            raise ValueError(f"a literal of type {kind.dtype}")
        if number in (1, 6, 7):  # floats, doubles, bytes: little-endian
            wire = {1: "<f4", 6: "<f8", 7: _NUMPY[kind.dtype]}[number]
            array: Array = np.frombuffer(b"".join(bytes(item) for item in items), wire)
        else:  # varints, packed or not
            numbers: list[int] = []
            for item in items:
                if isinstance(item, int):
                    numbers.append(_signed(item))
                    continue
                at = 0
                while at < len(item):
                    one, at = _varint(item, at)
                    numbers.append(_signed(one))
            array = np.array(numbers, np.int64)
        if array.size != math.prod(shape):
            raise ValueError(f"a literal has {array.size} values for the shape {shape}")
        return array.astype(_NUMPY[kind.dtype]).reshape(shape)
    if math.prod(shape):
        raise ValueError(f"a literal lacks its values for the shape {shape}")
    return np.zeros(shape, _NUMPY[kind.dtype])


# The weight file


def blob_span(weight_file: Path, blob: Blob) -> tuple[str, int, int]:
    """(type, first byte, bytes) of a tensor in the weight file, checked against the file's size."""
    try:
        size = weight_file.stat().st_size
        with weight_file.open("rb") as stream:
            stream.seek(blob.offset)
            record = stream.read(32)
    except (OSError, OverflowError) as error:
        raise EdgeVLMError(f"{weight_file} cannot be read ({error}): export the bundle again.") from None
    if len(record) < 32:
        raise _broken(weight_file.parents[3], "its weight file is truncated")
    sentinel, kind, count, start = struct.unpack("<IIQQ", record[:24])
    dtype = _BLOB_TYPES.get(kind, f"type {kind}")
    if sentinel != _BLOB_SENTINEL or dtype != blob.type.dtype:
        raise _broken(
            weight_file.parents[3], f"its weight file has no {blob.type.dtype} tensor at {blob.offset}"
        )
    elements = math.prod(size_ or 0 for size_ in blob.type.shape)
    bits = _SUB_BYTE.get(dtype) or 8 * np.dtype(_NUMPY[dtype]).itemsize
    if elements > MAX_ELEMENTS or (elements * bits + 7) // 8 != count or start + count > size:
        raise _broken(weight_file.parents[3], f"the tensor at {blob.offset} does not fit its weight file")
    return dtype, start, count


def _read_blob(weight_file: Path, blob: Blob) -> Array:
    dtype, start, count = blob_span(weight_file, blob)
    shape = tuple(size or 0 for size in blob.type.shape)
    with weight_file.open("rb") as stream:
        stream.seek(start)
        raw = np.fromfile(stream, np.uint8, count)
    if dtype not in _SUB_BYTE:
        return raw.view(_NUMPY[dtype]).reshape(shape)
    return unpack(raw, dtype, math.prod(shape)).reshape(shape)


def unpack(raw: npt.NDArray[np.uint8], dtype: str, count: int) -> Array:
    """Sub-byte codes, lowest bits first, to int8 ("int4": two's complement) or uint8."""
    bits = _SUB_BYTE[dtype]
    if 8 % bits:  # codes that lie across bytes
        flags = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
        return np.packbits(flags, axis=1, bitorder="little")[:, 0]
    codes = np.empty((raw.size, 8 // bits), np.uint8)
    for i in range(8 // bits):
        codes[:, i] = (raw >> (i * bits)) & ((1 << bits) - 1)
    flat = codes.reshape(-1)[:count]
    return (((flat ^ 8).astype(np.int8)) - 8) if dtype == "int4" else flat
