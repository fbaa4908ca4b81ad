"""A command is killed at each of its operations on files: old or new is there, whole, and all that is a user's.

The long campaign is `pytest -m heavy tests/fuzz`: 200 kills of exports over a bundle, and kills of what evaluates,
calibrates, draws and trains; and kills at system calls, writes among them, where strace is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from campaign import EXPORT, campaign, digests, export_job, scenes_job


def check(trials: list[dict[str, Any]], at_once: bool = True) -> None:
    for trial in trials:
        assert trial["code"] == -9, trial
        assert trial["lost"] == [] and trial["left"] == [], trial
        assert set(trial["after"].values()) <= {"old", "new"}, trial
        assert not at_once or trial["at_once"] == trial["after"], trial
        assert "Traceback" not in trial["said_again"], trial


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_at_every_operation(exchange: bool, tmp_path: Path) -> None:
    first, trials = campaign(tmp_path / "place", **scenes_job(1000, exchange))
    assert len(trials) == first["operations"] > 15
    check(trials, at_once=exchange)
    states = [trial["after"]["out"] for trial in trials]
    assert states == sorted(states, key=["old", "new"].index) and set(states) == {"old", "new"}
    missing = [trial for trial in trials if trial["at_once"]["out"] == "other"]
    assert len(missing) == (0 if exchange else 1), "one operation lies between the two renames"
    assert all("'out' is back: a stopped run had moved it aside." in trial["said_again"] for trial in missing)


def test_killed_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, trials = campaign(tmp_path / "place", **export_job(tiny_checkpoint, 5, exchange=True))
    assert first["operations"] > 30
    check(trials)
    assert "Removed what a stopped run had left of 'out'" in trials[2]["said_again"]


# --- the long campaign -------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("target", ["onnx", "gguf", "coreml"])
def test_two_hundred_killed_exports(target: str, exchange: bool, gguf_checkpoint: Path, tmp_path: Path) -> None:
    """Every operation of an export over an existing bundle, to each target, with and without an exchange."""
    _, trials = campaign(tmp_path / "place", **export_job(gguf_checkpoint, 1000, exchange, target))
    check(trials, at_once=exchange)
    assert {trial["after"]["out"] for trial in trials} == {"old", "new"}


@pytest.mark.heavy
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


@pytest.mark.heavy
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
        skip="manifest.json",  # which has the time that it took
    )
    check(trials)


@pytest.mark.heavy
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
        counts=40,
        how="kill",
        skip="training/",  # logs have times in them
    )
    check(trials, at_once=False)
    assert {trial["after"]["model"] for trial in trials} == {"new"}
    assert {trial["at_once"]["model"] for trial in trials} == {"old", "new"}


CALLS = {"rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat,rmdir", "write": "write,pwrite64,ftruncate"}


@pytest.mark.heavy
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
    lines = [line for line in log.read_text().splitlines() if f"{CALLS[calls].split(',')[0]}" in line]
    inside = [number for number, line in enumerate(lines, 1) if str(place) in line or "out.edgevlm" in line]
    assert inside
    for number in inside[:: max(1, len(inside) // 12)]:
        shutil.rmtree(place)
        shutil.copytree(old, place)
        inject = [*trace[:-1], f"inject={CALLS[calls]}:signal=KILL:when={number}"]
        assert run(place, "int8", "--force", trace=inject).returncode != 0
        assert digests(place / "out") in states, number
        run(place, "int8")
        assert digests(place / "out") in states and (place / "mine.txt").read_text() == "mine", number
        assert sorted(path.name for path in place.iterdir()) == ["mine.txt", "out"], number
