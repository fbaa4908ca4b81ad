"""Names that strangers chose, held to what Windows' own rules of paths make of them."""

from __future__ import annotations

import ntpath
import warnings
from pathlib import PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.io.names import folded, is_below, unportable

PIECES = ["a", "B", ".", "..", "/", "\\", ":", " ", "con", "nul", "COM1", "lpt9", "\0", "*", "é", "e\u0301", "x.onnx"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_what_stays_below_does_so_on_windows(name: str) -> None:
    if is_below(name) and "." not in name.split("/"):
        landed = ntpath.normpath(ntpath.join("C:\\bundle", name))
        assert landed.startswith("C:\\bundle\\"), name
    if ".." in name.replace("\\", "/").split("/") or name[:1] in ("/", "\\") or ":" in name:
        assert not is_below(name)


@given(st.lists(st.sampled_from([*PIECES, "aux.txt", "conin$", "COM²"]), min_size=1, max_size=6).map("".join))
def test_what_windows_reserves_is_refused(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        reserved = any(PureWindowsPath(part).is_reserved() for part in name.split("/") if part)
    if reserved:
        assert unportable([name]) is not None, name


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["onnx/a.onnx", "onnx/A.onnx"], "is one with 'onnx/a.onnx' where case does not count"),
        (["é", "e\u0301"], "is one with"),
        (["straße", "STRASSE"], "is one with"),
        (["a."], "Windows cannot have"),
        (["a /b"], "Windows cannot have"),
        (["a//b"], "Windows cannot have"),
        (["./a"], "Windows cannot have"),
        (["onnx/NUL.onnx"], "Windows cannot have"),
        (["com1 .txt"], "Windows cannot have"),
        (["a?b"], "Windows cannot have"),
        (["a\nb"], "Windows cannot have"),
        (["\ud800"], "Windows cannot have"),
        (["é" * 128], "has a part of over 255 bytes"),
        (["a/../../b"], "is outside the bundle"),
        (["C:\\x"], "is outside the bundle"),
        (["a:stream"], "is outside the bundle"),
        ([""], "is outside the bundle"),
    ],
)
def test_what_is_refused_and_why(names: list[str], why: str) -> None:
    found = unportable(names)
    assert found is not None and found[0] == names[-1] and found[1].startswith(why)


def test_ordinary_names_are_not() -> None:
    names = ["onnx/decoder.onnx", "onnx/decoder.onnx_data", "coreml/gpu.mlpackage/Data/com.apple.CoreML/model.mlmodel",
             "tokenizer.json", "console.txt", "com10", "Bündel 🎈/ü ü", ".hidden"]  # fmt: skip
    assert unportable(names) is None
    assert folded("ÀB") == folded("àb") != folded("ab")
