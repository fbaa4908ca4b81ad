"""The gate on a merged adapter: reference and export read the same merge, so only a witness outside it can judge it.

The witness is peft itself, on the very folders, where it is installed (`verify/peft_merge.py`). Where it is not, or
does not know the adapter, merges that peft made of small adapters are replayed (assets/merges.json, recorded by
tests/vectors/make_merges.py, which knows nothing of edgevlm).
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgevlm.types import F32
from edgevlm.verify.report import Row

CHECK = "merged tensors that differ from peft's"
_NEEDS = ("peft", "torch", "transformers", "safetensors")
_TOLERANCE = 1e-5  # of a tensor's norm; two orders of summing differ by 1e-7


@dataclass(frozen=True)
class SmallMerge:
    """A recorded adapter and the tensors that it is merged into."""

    adapter: Path
    tensors: Mapping[str, F32]
    embed: str
    head: str
    tied: bool


@dataclass(frozen=True)
class MergedAdapter:
    """What an export reads: the merged model's tensors by their names in the files of `model`.

    changed: the names of those that the adapter changes. replay: the same code on a recorded adapter; every tensor of
    the result by name.
    """

    model: Path
    adapter: Path
    names: frozenset[str]
    changed: frozenset[str]
    read: Callable[[str], F32]
    replay: Callable[[SmallMerge], dict[str, F32]]


@dataclass(frozen=True)
class PeftTensor:
    """A tensor of peft's merge. stored: its name in the model's files, or in memory where they lack it.

    partner: the stored name of the table that it is tied to, where the merged model may still have one for both.
    """

    stored: str
    values: F32
    partner: str | None = None


class PeftFailed(Exception):
    """peft is not there, or does not load the adapter; its text says why."""


def check_adapter(merged: MergedAdapter) -> Row:
    """Every tensor that the adapter changes, against peft's."""
    wrong: list[tuple[str, str]] = []
    seen: set[str] = set()
    try:
        version, tensors = ask_peft(merged.model, merged.adapter)
        for tensor in tensors:
            tied = tensor.stored not in merged.names
            name = tensor.partner if tied and tensor.partner else tensor.stored
            seen.add(name)
            if name not in merged.names:
                wrong.append((tensor.stored, "missing"))
            elif said := _difference(merged.read(name), tensor.values):
                wrong.append((tensor.stored, said))
    except PeftFailed as reason:
        return _against_records(merged, str(reason))
    wrong += [(name, "changed, and not by peft") for name in sorted(merged.changed - seen)]
    return _row(wrong, f"{len(seen)} tensors by peft {version}")


def ask_peft(model: Path, adapter: Path) -> tuple[str, Iterator[PeftTensor]]:
    """peft's version, and what it merges two folders to, from a process of its own. Raises PeftFailed, both do."""
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        raise PeftFailed(f"{missing[0]} is not installed")
    if not sys.executable or getattr(sys, "frozen", False):  # a frozen program would start itself again
        raise PeftFailed("no second Python process can be started")
    root = str(Path(__file__).parents[2])  # behind all else: a checkout that is not installed is found
    code = f"import sys; sys.path.append({root!r}); from edgevlm.verify.peft_merge import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", code, str(model.resolve()), str(adapter.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    head, _ = _receive(process)
    return str(head["peft"]), _tensors(process)


def _tensors(process: subprocess.Popen[bytes]) -> Iterator[PeftTensor]:
    try:
        while True:
            head, data = _receive(process)
            if "failed" in head:
                raise PeftFailed(f"peft does not load it ({head['failed']})")
            if "end" in head:
                return
            yield PeftTensor(head["stored"], np.frombuffer(data, np.float32).reshape(head["shape"]), head["partner"])
    finally:
        process.kill()
        process.wait()


def _receive(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], bytes]:
    """One part of the answer: a head and its data."""
    assert process.stdout is not None
    length = process.stdout.read(8)
    if len(length) < 8:
        raise PeftFailed(f"peft's process ended with code {process.wait()}")
    head: dict[str, Any] = json.loads(process.stdout.read(int.from_bytes(length, "little")))
    return head, process.stdout.read(head["bytes"])


def _against_records(merged: MergedAdapter, why: str) -> Row:
    text = (importlib.resources.files("edgevlm") / "assets" / "merges.json").read_text(encoding="utf-8")
    recorded = json.loads(text)
    wrong: list[tuple[str, str]] = []
    count = 0
    for case in recorded["cases"]:
        with TemporaryDirectory(prefix="edgevlm-") as folder:
            found = merged.replay(_small(case, Path(folder)))
        for name, values in case["merged"].items():
            count += 1
            theirs = np.array(values, np.float32)
            if said := _difference(found[name], theirs) if name in found else "missing":
                wrong.append((f"{case['name']}: {name}", said))
    return _row(wrong, f"{why}: {count} tensors that peft {recorded['peft']} merged")


def _row(wrong: list[tuple[str, str]], note: str) -> Row:
    where = wrong[0][0] if wrong else ""
    note = f"first: {where}: {wrong[0][1]}" if wrong else note
    return Row("adapter", CHECK, len(wrong), 0, not wrong, note, "numbers", where)


def _difference(ours: F32, theirs: F32) -> str:
    """How two tensors differ, in words; empty where they do not. Changes `ours`."""
    if ours.size != theirs.size:
        return f"shape {ours.shape}, expected {theirs.shape}"
    ours = ours.reshape(theirs.shape)
    ours -= theirs
    off, whole = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    return "" if off <= _TOLERANCE * whole else f"off by {off / whole if whole else off:.1e} of its norm"


def _small(case: dict[str, Any], folder: Path) -> SmallMerge:
    """A recorded adapter as files, and its base."""
    (folder / "adapter_config.json").write_text(json.dumps(case["config"]), encoding="utf-8", newline="\n")
    tensors = recorded_tensors(case["adapter"], case["seed"])
    header, data = {}, b""
    for name, tensor in tensors.items():
        place = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": place}
        data += tensor.tobytes()
    raw = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    base = recorded_tensors(case["base"], case["seed"] + 1)
    return SmallMerge(folder, base, case["embed"], case["head"], case["tied"])


def recorded_tensors(shapes: Mapping[str, list[int]], seed: int) -> dict[str, F32]:
    """Tensors of -0.5 to 0.5 that tests/vectors/README.md defines, one after another."""
    start, found = seed << 20, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        index = np.arange(start, start + count, dtype=np.uint64)
        mixed = (index * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)) >> np.uint64(8)
        values = mixed.astype(np.float32) / np.float32(1 << 24)
        found[name] = (values - np.float32(0.5)).reshape(shape)
        start += count
    return found
