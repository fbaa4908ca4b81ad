"""GGUF files, CoreML programs and protobuf from strangers: bounded before anything is allocated by them."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from refusals import refused
from small_models import clip

from edgevlm.bundle.targets import (
    CoreMLDecoder,
    CoreMLFunction,
    CoreMLTarget,
    CoreMLVision,
    EmbeddingFile,
)
from edgevlm.io import limits
from edgevlm.runtimes.coreml.check import check_decoder, check_vision
from edgevlm.runtimes.coreml.table import EmbeddingTable
from edgevlm.runtimes.gguf import GgufFile
from edgevlm.runtimes.mil.blob import TensorType
from edgevlm.runtimes.mil.evaluator import MilEvaluator
from edgevlm.runtimes.mil.file import MilFunction, MilPackage, open_package
from edgevlm.runtimes.protobuf import Message, encode, fields, text

SEED = Path(__file__).parents[1] / "fuzz" / "seed.mlpackage"


# --- GGUF --------------------------------------------------------------------------------------------------------


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, kind, offset)


def gguf(*keys: bytes, tensors: tuple[bytes, ...] = (), pairs: int | None = None, count: int | None = None) -> bytes:
    head = struct.pack(
        "<4sIQQ", b"GGUF", 3, len(tensors) if count is None else count, len(keys) if pairs is None else pairs
    )
    return head + b"".join(keys) + b"".join(tensors) + bytes(64)


GGUF: dict[str, tuple[bytes, str]] = {
    "keys": (gguf(pairs=1 << 40), "it has 1099511627776 keys and 0 tensors"),
    "tensors": (gguf(count=1 << 40), "it has 0 keys and 1099511627776 tensors"),
    "text": (gguf(key(b"a", 8, struct.pack("<Q", 1 << 60))), "its header has no end"),
    "list": (gguf(key(b"a", 9, struct.pack("<IQ", 0, 1 << 60))), "a list of 1152921504606846976 items"),
    "lists in lists": (gguf(key(b"a", 9, struct.pack("<IQ", 9, 4))), "no GGUF file of edgevlm"),
    "twice": (gguf(key(b"a", 0, b"x"), key(b"a", 0, b"y")), "the key a occurs twice"),
    "dimensions": (gguf(tensors=(tensor(b"t", *[1] * 9),)), "t has 9 dimensions"),
    "huge": (gguf(tensors=(tensor(b"t", 1 << 62, 1 << 62),)), "t lies beyond the end"),
    "nothing": (gguf(tensors=(tensor(b"t", 4, 0),)), "t has rows of 4 values"),
    "name": (gguf(tensors=(tensor(b"t" * 2000, 1),)), "occurs twice or has too long"),
    "empty": (b"", "no GGUF file of edgevlm"),
}


@pytest.mark.parametrize("case", GGUF)
def test_a_gguf_header_is_bounded(tmp_path: Path, case: str) -> None:
    data, sentence = GGUF[case]
    (tmp_path / "m.gguf").write_bytes(data)
    refused(lambda: GgufFile(tmp_path / "m.gguf"), sentence)


def test_a_gguf_file_is_a_regular_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    refused(lambda: GgufFile(tmp_path / "m.gguf"), "is a named pipe, expected a regular file")
    refused(lambda: GgufFile(Path("/dev/zero")), "is a device, expected a regular file")


# --- protobuf ----------------------------------------------------------------------------------------------------


def test_all_messages_of_a_file_share_one_budget_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRAPH_FIELDS", 10)
    inner = b"".join(encode(1, 1) for _ in range(4))
    message = Message(encode(2, inner) + encode(2, inner) + encode(2, inner))
    with pytest.raises(ValueError, match="it has more than 10 fields"):
        for _, value in fields(message):
            list(fields(value))


def test_a_text_that_is_a_number_allocates_nothing() -> None:
    with pytest.raises(ValueError, match="a text is a number"):
        text(1 << 60)  # bytes(n) would be n zeros


# --- CoreML packages ---------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SEED, tmp_path / "p.mlpackage"))


def program(body: bytes) -> bytes:
    """A model of one function `main` with one block: Model.proto's 502, MIL.proto's maps."""
    block = encode(1, "CoreML8") + encode(2, body)
    function = encode(2, "CoreML8") + encode(3, block)
    return encode(1, 9) + encode(502, encode(2, encode(1, "main") + encode(2, function)))


def constant(shape: tuple[int, ...]) -> bytes:
    """An operation with a literal of that shape and no values."""
    dims = b"".join(encode(3, encode(1, encode(1, size))) for size in shape)
    kind = encode(1, encode(1, 11) + dims)
    value = encode(2, kind) + encode(3, encode(1, encode(1, b"")))
    return encode(3, encode(1, "const") + encode(5, encode(1, "val") + encode(2, value)))


PROGRAMS: dict[str, tuple[bytes, str]] = {
    "literal": (constant((1 << 20, 1 << 20)), "a literal has the shape (1048576, 1048576)"),
    "dimensions": (constant((1 << 60,) * 9), "a tensor has more than 8 dimensions"),
    "operations": (encode(3, encode(1, "identity")) * ((1 << 15) + 1), "a function has 32769 operations"),
    "a number for a text": (encode(3, encode(1, 1 << 50)), "a text is a number"),
    "a text for a number": (
        encode(3, encode(3, encode(2, encode(1, encode(3, encode(1, encode(1, b"x"))))))),
        "a number",
    ),
    "a number for a message": (encode(3, 7), "its program cannot be parsed"),
    "nested types": (encode(3, encode(3, encode(2, 0) * 9)), "its program cannot be parsed"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_is_bounded(package: Path, case: str) -> None:
    body, sentence = PROGRAMS[case]
    (package / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(program(body))
    refused(lambda: open_package(package), sentence)


def test_a_program_larger_than_any_is_not_read(package: Path) -> None:
    os.truncate(package / "Data" / "com.apple.CoreML" / "model.mlmodel", 1 << 40)
    refused(lambda: open_package(package), "is larger than 134217728 bytes")


def test_weights_outside_the_package_are_refused(package: Path, tmp_path: Path) -> None:
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.rename(tmp_path / "w")
    weights.symlink_to(tmp_path / "w")
    refused(lambda: open_package(package), "its weight file is a link to the outside")


def test_states_that_no_memory_holds_are_one_sentence(package: Path) -> None:
    opened = open_package(package)
    name = opened.default_function
    states = {"cache": TensorType("fp16", (1 << 40, 1 << 20))}
    hostile = MilFunction(name, {}, states, (), ())
    evaluator = MilEvaluator(MilPackage(package, 9, name, {name: hostile}, None))
    refused(evaluator.make_state, "keeps states that do not fit into memory")


def test_a_program_without_its_values_is_one_sentence(package: Path) -> None:
    opened = open_package(package)
    good = opened.functions[opened.default_function]
    inputs = {"x": np.zeros((1, 32), np.float32), "position": np.zeros(1, np.int32)}
    for bad, sentence in (
        (
            MilFunction("main", good.inputs, good.states, ("nothing",), good.ops),
            "does not compute its output 'nothing'",
        ),
        (MilFunction("main", good.inputs, good.states, good.outputs, good.ops[1:]), "failed"),
    ):
        evaluator = MilEvaluator(MilPackage(package, 9, "main", {"main": bad}, opened.weight_file))
        refused(lambda evaluator=evaluator: evaluator.run(inputs, evaluator.make_state()), sentence)


# --- a package and its manifest ----------------------------------------------------------------------------------

SPEC = clip()
SIDE = 24
STATES = {name: TensorType("fp16", (3, 2, 64, 16)) for name in ("key_cache", "value_cache")}


def target(**vision: Any) -> CoreMLTarget:
    inputs = {"pixels": (1, 3, SIDE, SIDE)} | vision
    decoder = CoreMLDecoder("D", {"main": CoreMLFunction(64, 64)}, (), (), ("logits",), -1e4, "")
    table = EmbeddingFile("e.bin", "fp16", (90, 48), (0, 8640))
    return CoreMLTarget("gpu", "ALL", "iOS18", "fp16", CoreMLVision("V", inputs, {}), decoder, table, {})


def opened(inputs: dict[str, TensorType], states: dict[str, TensorType], outputs: tuple[str, ...]) -> MilPackage:
    return MilPackage(Path("P.mlpackage"), 9, "main", {"main": MilFunction("main", inputs, states, outputs, ())}, None)


PIXELS = TensorType("fp16", (1, 3, SIDE, SIDE))
GOOD = opened({"pixels": PIXELS}, STATES, ("image_features",))


def test_a_package_of_the_manifests_model_is_taken() -> None:
    check_vision(GOOD, target(), SPEC)
    check_decoder(opened({}, STATES, ("logits",)), target(), SPEC)


@pytest.mark.parametrize(
    ("package", "vision", "sentence"),
    [
        (GOOD, {"pixels": (1, 3, 10**6, 10**6)}, "has the input 'pixels' of shape (1, 3, 24, 24)"),
        (GOOD, {"pixels": (10**9, 3, SIDE, SIDE)}, "has the input 'pixels' of shape"),
        (GOOD, {"pixels": (3, SIDE, SIDE)}, "has the input 'pixels' of shape"),
        (GOOD, {"other": (1,)}, "P.mlpackage takes pixels"),
        (opened({"x": PIXELS}, {}, ("image_features",)), {}, "P.mlpackage takes x"),
        (opened({"pixels": TensorType("fp16", (1, 3, 8, 8))}, {}, ("image_features",)), {}, "of shape (1, 3, 8, 8)"),
        (opened({"pixels": PIXELS}, {}, ("y",)), {}, "does not give image_features"),
    ],
)
def test_another_encoder_is_refused(package: MilPackage, vision: dict[str, Any], sentence: str) -> None:
    refused(
        lambda: check_vision(package, target(**vision), SPEC), f"disagree: {sentence}" if "P." in sentence else sentence
    )


def test_a_decoder_hides_positions_by_a_value_that_does() -> None:
    shown = target()
    shown = replace(shown, decoder=replace(shown.decoder, mask_value=0.0))
    refused(lambda: check_decoder(opened({}, STATES, ("logits",)), shown, SPEC), "hides positions by 0.0")


@pytest.mark.parametrize(
    ("package", "sentence"),
    [
        (
            opened({}, {"a": TensorType("fp16", (1 << 30, 1 << 30))}, ("logits",)),
            "the function 'main' keeps 1152921504606846976",
        ),
        (opened({}, {}, ("logits",)), "the function 'main' keeps 0 values"),
        (opened({}, STATES, ("y",)), "the function 'main' gives y"),
        (opened({}, STATES, ("logits", "more")), "the function 'main' gives logits, more"),
        (MilPackage(Path("P"), 9, "x", {}, None), "P has no function 'main'"),
    ],
)
def test_another_decoder_is_refused(package: MilPackage, sentence: str) -> None:
    refused(lambda: check_decoder(package, target(), SPEC), f"disagree: {sentence}")


@pytest.mark.parametrize(
    "change",
    [
        {"codes": (0, 10)},
        {"codes": (-8, 8640)},
        {"codes": (1 << 60, 8640)},
        {"shape": (1 << 40, 1 << 40)},
        {"scale": (0, 180), "scale_shape": (90, 1), "kind": "fp16", "shape": (45, 96)},
        {"scale": (0, 90 * 7 * 2), "scale_shape": (90, 7)},
    ],
)
def test_an_embedding_table_is_what_its_file_holds(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "e.bin").write_bytes(bytes(8640))
    info = EmbeddingFile(**{"file": "e.bin", "kind": "fp16", "shape": (90, 48), "codes": (0, 8640)} | change)
    refused(lambda: EmbeddingTable(tmp_path / "e.bin", info), "does not hold the table that the manifest describes")


@pytest.mark.parametrize(
    "change",
    [
        {"codes": (7, 4320)},  # found by damaged manifests: rows of another place were read as the table
        {"scale": (4320, 180)},
        {"scale": (4416, 180)},
        {"scale": None},
        {"scale_shape": None},
        {"scale": None, "scale_shape": None},
        {"kind": "int4", "codes": (0, 2160)},
        {"shape": (89, 48), "codes": (0, 4272)},
    ],
)
def test_a_quantized_table_fills_its_file(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "e.bin").write_bytes(bytes(4352 + 180))
    entry: dict[str, Any] = {"file": "e.bin", "kind": "int8", "shape": (90, 48), "codes": (0, 4320)}
    entry |= {"scale": (4352, 180), "scale_shape": (90, 1)}
    EmbeddingTable(tmp_path / "e.bin", EmbeddingFile(**entry))
    info = EmbeddingFile(**entry | change)
    refused(lambda: EmbeddingTable(tmp_path / "e.bin", info), "does not hold the table that the manifest describes")
