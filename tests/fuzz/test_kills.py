"""A command is killed at each of its operations on files: old or new is there, whole, and all that is a user's.

The long campaign is `make campaigns`: 200 kills of exports over a bundle, and kills of what evaluates,
calibrates, draws and trains; and kills at system calls, writes among them, where strace is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cases import heavy_but

sys.path.insert(0, str(Path(__file__).parent))
from campaign import EXPORT, campaign, digests, export_job, scenes_job


def check(trials: list[dict[str, Any]], at_once: bool = True) -> None:
    for trial in trials:
        assert trial["code"] == -9, trial
        assert trial["lost"] == [] and trial["left"] == [], trial
        assert set(trial["after"].values()) <= {"old", "new"}, trial
        assert not at_once or trial["at_once"] == trial["after"], trial
        assert "Traceback" not in trial["said_again"], trial


@pytest.mark.parametrize("exchange", heavy_but([True], [True, False]), ids=["exchange", "two renames"])
def test_killed_at_every_operation(exchange: bool, tmp_path: Path) -> None:
    first, trials = campaign(tmp_path / "place", **scenes_job(1000, exchange))
    assert len(trials) == first["operations"] > 15
    check(trials, at_once=exchange)
    states = [trial["after"]["out"] for trial in trials]
    assert states == sorted(states, key=["old", "new"].index) and set(states) == {"old", "new"}
    missing = [trial for trial in trials if trial["at_once"]["out"] == "other"]
    assert len(missing) == (0 if exchange else 1), "one operation lies between the two renames"
    assert all("'out' is back: a stopped run had moved it aside." in trial["said_again"] for trial in missing)


@pytest.mark.heavy
def test_killed_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, trials = campaign(tmp_path / "place", **export_job(tiny_checkpoint, 5, exchange=True))
    assert first["operations"] > 30
    check(trials)
    assert "Removed what a stopped run had left of 'out'" in trials[2]["said_again"]


# --- the long campaign -------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_two_hundred_killed_exports(gguf_checkpoint: Path, tmp_path: Path) -> None:
    """Every operation of an export over an existing bundle, to each target, with an exchange of folders and without."""
    count = 0
    for target in ("onnx", "gguf", "coreml"):
        for exchange in (True, False):
            job = export_job(gguf_checkpoint, 1000, exchange, target)
            _, trials = campaign(tmp_path / f"{target}-{exchange}", **job)
            check(trials, at_once=exchange)
            assert {trial["after"]["out"] for trial in trials} == {"old", "new"}
            count += len(trials)
    assert count >= 200


@pytest.mark.campaign
def test_killed_evaluations(tiny_bundle: Path, tmp_path: Path) -> None:
    """Answers that a killed run had are gone on with; the earlier ones stay until then."""
    words = ["eval", str(tiny_bundle), "--data", "{}/data", "--out", "{}/a.jsonl", "--json", "{}/s.json"]
    words += ["--max-tokens", "1", "--limit"]
    _, trials = campaign(
        tmp_path / "place",
        imports=["edgevlm.cli", "edgevlm.evaluation.runner", "edgevlm.runtimes.ort.runtime"],
        setup=[["scenes", "{}/data", "--count", "1"], [*words, "2"]],
        command=[*words, "4", "--force"],
        again=[*words, "4", "--resume"],
        outputs=["a.jsonl"],
        parts=["a.jsonl"],
        varying=["s.json"],
        counts=1000,
        how="kill",
    )
    for trial in trials:
        assert trial["at_once"]["a.jsonl"] in ("old", "new"), trial
        resumable = trial["again"] == 0 and trial["after"]["a.jsonl"] == "new"
        told = "belongs to another run" in trial["said_again"] and trial["after"]["a.jsonl"] == "old"
        assert resumable or told, trial
        assert trial["lost"] == [] and trial["left"] == [], trial


@pytest.mark.campaign
def test_killed_calibrations(tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = ["export", str(tiny_checkpoint), "-o", "{}/out", "--no-gate"]
    _, trials = campaign(
        tmp_path / "place",
        imports=EXPORT,
        setup=[["scenes", "{}/data", "--count", "2"], words],
        command=[*words, "--calibrate", "{}/data/images", "--method", "search", "--force"],
        again=words,
        outputs=["out"],
        counts=20,
        how="kill",
        skip=["manifest.json"],  # which has the time that it took
    )
    check(trials)


@pytest.mark.campaign
def test_killed_training(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """OUT is the old model or the new one; a run that was killed goes on by the same command."""
    words = ["train", str(tiny_checkpoint), "--data", "{}/data", "-o", "{}/model", "--batch", "2", "--cpu"]
    words += ["--max-tiles", "1", "--save-every", "1", "--steps", "2", "--seed"]
    _, trials = campaign(
        tmp_path / "place",
        imports=["edgevlm.cli", "edgevlm.train.run", "matplotlib.figure", "torch.utils.tensorboard"],
        setup=[["scenes", "{}/data", "--count", "2"], [*words, "0"]],
        command=[*words, "1", "--force"],
        again=[*words, "1", "--force"],
        outputs=["model"],
        parts=["model"],
        counts=10,
        how="kill",
        skip=["training/", "edgevlm.json"],  # logs have times in them, and in their names
    )
    check(trials, at_once=False)
    assert {trial["after"]["model"] for trial in trials} == {"new"}
    assert {trial["at_once"]["model"] for trial in trials} == {"old", "new"}


CALLS = {"rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat,rmdir", "write": "write,pwrite64,ftruncate"}


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("calls", CALLS)
def test_killed_at_system_calls(calls: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Where Python has no part in it: libraries' own writes, and the moment inside a call."""
    words = [sys.executable, "-m", "edgevlm", "export", str(tiny_checkpoint), "-o", "out", "--no-gate", "--quantize"]

    def run(place: Path, *more: str, trace: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*(trace or []), *words, *more], cwd=place, capture_output=True, text=True)

    old, new, place = tmp_path / "old", tmp_path / "new", tmp_path / "place"
    for folder, kind in ((old, "fp32"), (new, "int8")):
        folder.mkdir()
        assert run(folder, kind).returncode == 0
    (old / "mine.txt").write_text("mine")
    states = [digests(old / "out"), digests(new / "out")]
    log = tmp_path / "log"
    trace = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={CALLS[calls]}"]
    shutil.copytree(old, place)
    assert run(place, "int8", "--force", trace=trace).returncode == 0
    chosen = inside(log.read_text().splitlines())
    for name, number in chosen[:: max(1, len(chosen) // 12)]:
        shutil.rmtree(place)
        shutil.copytree(old, place)
        inject = [*trace[:-1], f"inject={name}:signal=KILL:when={number}"]
        assert run(place, "int8", "--force", trace=inject).returncode != 0
        assert digests(place / "out") in states, (name, number)
        run(place, "int8")
        assert digests(place / "out") in states and (place / "mine.txt").read_text() == "mine", (name, number)
        assert sorted(path.name for path in place.iterdir()) == ["mine.txt", "out"], (name, number)


def inside(lines: list[str]) -> list[tuple[str, int]]:
    """Calls from the first to the last that names the hidden folder, as strace counts them: each by its name."""
    found, counts = [], Counter[tuple[str, str]]()
    for line in lines:
        if call := re.match(r"(\d+) +(\w+)\(", line):
            counts[call.groups()] += 1
            found.append((call[2], counts[call.groups()], call[1], ".out.edgevlm" in line))
    main = found[0][2]
    named = [place for place, (*_, thread, here) in enumerate(found) if here and thread == main]
    reach = found[named[0] : named[-1] + 1] if named else found
    return [(name, number) for name, number, thread, _ in reach if thread == main]
