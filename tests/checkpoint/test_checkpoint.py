"""The safetensors reader against the safetensors package and torch; checkpoint folders, good and broken."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.upstream import copy_upstream
from edgevlm.errors import EdgeVLMError
from edgevlm.io.safetensors import SafetensorsFile

ROOT = Path(__file__).parents[2]


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def sparse(path: Path) -> None:
    """100 MB and more, of which nothing is on the disk."""
    os.truncate(path, 101 << 20)


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(stop - start) // 4] if shape is None else shape,
        "data_offsets": [start, stop],
    }


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_what_torch_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)  # every value of a 16-bit float
    every = bits.view(dtype) if dtype != torch.float32 else torch.randn(65536)
    tensors = {
        "every": every.reshape(256, 256),
        "large": torch.randn(2500, 2000).to(dtype),  # more than one piece
        "scalar": torch.tensor(1.5, dtype=dtype),
        "empty": torch.empty(0, 7, dtype=dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        found = file.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
        assert found.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found, tensor.float().numpy())
        assert file.dtype(name) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reading_needs_little_more_than_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(50 << 20, dtype=dtype)}, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    tracemalloc.start()
    try:
        file.read("a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (200 << 20) + (20 << 20)


MALFORMED = {
    "no length": (lambda p: p.write_bytes(b"123"), "truncated: 8 bytes were expected and 3 were found"),
    "empty file": (lambda p: p.write_bytes(b""), "truncated: 8 bytes were expected and 0 were found"),
    "header beyond the end": (lambda p: write(p, {}, length=500), "truncated: 508 bytes"),
    "huge header": (lambda p: write(p, {}, length=1 << 40), "header claims 1099511627776 bytes"),
    "pointer": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "not JSON": (lambda p: write(p, b"{'a'}"), "not valid JSON"),
    "not UTF-8": (lambda p: write(p, b'{"\xff": 1}'), "not valid JSON"),
    "deep": (lambda p: write(p, b'{"a":' * 100000), "not valid JSON"),
    "list": (lambda p: write(p, []), "not a JSON object"),
    "twice": (lambda p: write(p, b'{"a": {}, "a": {}}'), "occurs twice"),
    "entry": (lambda p: write(p, {"a": 3}), "lacks dtype, shape or data_offsets"),
    "no shape": (lambda p: write(p, {"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"), "lacks dtype"),
    "dtype": (lambda p: write(p, {"a": entry(0, 4, dtype=32)}, b"1234"), "has the dtype '32'"),
    "long dtype": (lambda p: write(p, {"a": entry(0, 4, dtype="F" * 70_000)}, b"1234"), "has the dtype 'FFFF"),
    "negative": (lambda p: write(p, {"a": entry(0, 4, [-1, -1])}, b"1234"), "has the shape [-1, -1]"),
    "fraction": (lambda p: write(p, {"a": entry(0, 4, [1.0])}, b"1234"), "has the shape [1.0]"),
    "boolean": (lambda p: write(p, {"a": entry(0, 4, [True])}, b"1234"), "has the shape [True]"),
    "backwards": (lambda p: write(p, {"a": entry(4, 0, [1])}, b"1234"), "has the offsets [4, 0]"),
    "bytes": (lambda p: write(p, {"a": entry(0, 4, [2])}, b"1234"), "needs 8 bytes and has 4"),
    "overflow": (lambda p: write(p, {"a": entry(0, 4, [1 << 62, 1 << 62])}, b"1234"), "has the shape [46116"),
    "overlap": (lambda p: write(p, {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps"),
    "same": (lambda p: write(p, {"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "hole": (lambda p: write(p, {"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "does not start where"),
    "surplus": (lambda p: write(p, {"a": entry(0, 4)}, bytes(8)), "describes"),
    "cut": (lambda p: write(p, {"a": entry(0, 40)}, bytes(39)), "bytes were expected and"),
    "missing": (lambda p: None, "cannot be read (No such file"),
    "folder": (lambda p: p.mkdir(), "is a folder, expected a regular file"),
    "pipe": (lambda p: os.mkfifo(p), "is a named pipe, expected a regular file"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    "large header": (lambda p: sparse(write(p, {}, length=100 << 20)), "header claims 104857600 bytes and at most"),
    "nested": (lambda p: write(p, b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"), "nested more than 64 deep"),
    "long number": (lambda p: write(p, b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b"]}}"), "over 308 digits"),
    "dimensions": (lambda p: write(p, {"a": entry(0, 4, [1] * 9)}, b"1234"), "has the shape [1, 1, 1"),
    "many dimensions": (lambda p: write(p, {"a": entry(0, 4, [1 << 60] * 9999)}, b"1234"), "has the shape [1152"),
    "long name": (lambda p: write(p, {"a" * 1025: entry(0, 4)}, b"1234"), "a tensor has 1025 characters"),
    "many tensors": (lambda p: write(p, {f"{i}": entry(0, 0) for i in range(41)}), "holds 41 tensors, at most 40 are"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_in_one_sentence(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.io.limits.TENSORS", 40)
    make, expected = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    make(path)
    message = refused(lambda: SafetensorsFile(path))
    assert expected in message and "model.safetensors" in message


def test_unreadable_types_are_refused_only_when_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"i": entry(0, 8, [1], "I64"), "x": entry(8, 9, [2], "F4")}, bytes(9))
    file = SafetensorsFile(path)
    assert "as I64" in refused(lambda: file.read("i"))
    assert "as F4" in refused(lambda: file.read("x"))


def test_file_cut_after_opening_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": entry(0, 400)}, bytes(400))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "became shorter" in refused(lambda: file.read("a"))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_gives_anything_but_a_sentence(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    header = {"a": entry(0, 16, [2, 2]), "b": entry(16, 22, [3], "BF16"), "__metadata__": {"format": "pt"}}
    raw = bytearray(write(path, header, bytes(range(22))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        file = SafetensorsFile(path)
        arrays = [file.read(name) for name in file.tensors]
    except EdgeVLMError as error:
        assert "damaged.safetensors" in str(error)
    else:
        assert sum(array.size for array in arrays) <= len(raw)


def test_sharded_equals_whole(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sharded = builder.build_tiny(tmp_path / "sharded", sharded=True)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    one, two = open_checkpoint(str(tiny_checkpoint)), open_checkpoint(str(sharded))
    assert sorted(one.names()) == sorted(two.names())
    for name in one.names():
        assert one.shape(name) == two.shape(name)
        np.testing.assert_array_equal(one.read(name), two.read(name))
    assert one.content_hash() == hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert two.content_hash() != one.content_hash() and len(two.content_hash()) == 64


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rename(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / to) and None


def content(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def index(shard: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.x": shard}}))

    return make


BROKEN = {
    "no config": (remove("config.json"), "has no config.json"),
    "config": (content("config.json", "{"), "config.json' is not valid JSON"),
    "config list": (content("config.json", "[]"), "holds a JSON list, expected an object"),
    "config bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json' is not valid JSON"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "bin": (rename("model.safetensors", "pytorch_model.bin"), "as pickle (pytorch_model.bin)"),
    "pt": (rename("model.safetensors", "model.pt"), "as pickle (model.pt)"),
    "ckpt": (rename("model.safetensors", "last.ckpt"), "as pickle (last.ckpt)"),
    "other name": (rename("model.safetensors", "consolidated.safetensors"), "has no weights"),
    "traversal": (index("../a.safetensors"), "'../a.safetensors'"),
    "absolute": (index("/etc/passwd"), "'/etc/passwd'"),
    "pickle shard": (index("a.bin"), "'a.bin'"),
    "shard type": (index(3), "no 'weight_map'"),
    "shard": (index("b.safetensors"), "lacks the weights file b.safetensors"),
    "tensor": (index("a.safetensors"), "lacks the tensor 'lm_head.x'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder_is_refused_in_one_sentence(folder: Path, case: str) -> None:
    make, expected = BROKEN[case]
    make(folder)
    assert expected in refused(lambda: open_checkpoint(str(folder)))


def test_a_small_file_that_is_a_link_out_of_the_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    """It would be copied into what is made of the checkpoint, and published with it."""
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / "added_tokens.json").symlink_to(secret)
    message = refused(lambda: open_checkpoint(str(folder)))
    assert "added_tokens.json' is a link to" in message and "outside of the checkpoint" in message
    with pytest.raises(EdgeVLMError, match="outside of the checkpoint"):
        copy_upstream(folder, tmp_path)
    (folder / "added_tokens.json").unlink()
    (folder / "added_tokens.json").symlink_to("tokenizer.json")
    open_checkpoint(str(folder))


def test_truncated_download_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 1000)
    message = refused(lambda: open_checkpoint(str(folder)))
    assert f"model.safetensors is truncated: {size} bytes were expected and {size - 1000} were found" in message
    assert "download it again" in message


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nowhere", "there is no folder 'nowhere'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("../up", "there is no folder"),
        ("", "there is no folder"),
        ("a\0b", "there is no folder"),
        ("x" * 5000, "not a usable path"),
        (__file__, "is a file: give the folder"),
    ],
)
def test_no_such_model(model: str, expected: str) -> None:
    assert expected in refused(lambda: open_checkpoint(model))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")


def cache_model(cache: Path, model: Path) -> None:
    """The layout of the Hub's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache"""
    repository = cache / "models--someone--tiny"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_model_works_without_network(
    no_network: None, tiny_checkpoint: Path, tmp_path: Path, revision: str | None
) -> None:
    cache_model(tmp_path, tiny_checkpoint)
    checkpoint = open_checkpoint("someone/tiny", revision=revision, cache_dir=tmp_path)
    assert checkpoint.revision == COMMIT and checkpoint.name == "someone/tiny"
    assert checkpoint.content_hash() == open_checkpoint(str(tiny_checkpoint)).content_hash()


def test_no_network_and_no_cache_is_one_sentence(no_network: None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    message = refused(lambda: open_checkpoint("someone/other", cache_dir=tmp_path))
    assert "'someone/other'" in message and "check the network" in message
    cache_model(tmp_path, tiny_checkpoint)
    assert "revision 'v2'" in refused(lambda: open_checkpoint("someone/tiny", revision="v2", cache_dir=tmp_path))


def test_a_folder_has_no_revision(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    assert checkpoint.revision is None and checkpoint.name == "tiny"


def test_reading_needs_neither_torch_nor_transformers(builder: ModuleType, tmp_path: Path) -> None:
    model = builder.build_tiny(tmp_path / "bf16", dtype="bfloat16")
    program = """
        import sys
        for name in ("torch", "transformers", "safetensors"):
            sys.modules[name] = None
        from edgevlm.checkpoint.checkpoint import open_checkpoint
        from edgevlm.checkpoint.families import read_model
        spec, weights = read_model(open_checkpoint(sys.argv[1]))
        print(spec.family, sum(weights.read(name).size for name in weights.names()))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(model)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    parameters = sum(parameter.numel() for parameter in builder.load_model(model).parameters())
    assert result.stdout.split() == ["smolvlm", str(parameters)]
