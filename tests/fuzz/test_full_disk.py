"""A disk that is full at each operation that needs room: one sentence with the right name, and nothing lost or left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import heavy_but

sys.path.insert(0, str(Path(__file__).parent))
from campaign import campaign, digests, export_job, scenes_job


def check(place: Path, trials: list[dict[str, Any]]) -> None:
    """Where the disk was full too late to matter, the command ended well."""
    for trial in trials:
        assert trial["lost"] == [] and trial["left"] == [], trial
        if trial["code"] == 0:
            assert trial["at_once"] == {"out": "new"}, trial
            continue
        told = f"Error: The disk is full at '{place}/work/out': free some space or choose another place"
        assert trial["code"] == 2 and trial["at_once"] == {"out": "old"}, trial
        assert trial["said"].splitlines()[-1].startswith(told) and "Traceback" not in trial["said"], trial


@pytest.mark.parametrize("exchange", heavy_but([True], [True, False]), ids=["exchange", "two renames"])
def test_full_at_every_operation(exchange: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    _, trials = campaign(place, **scenes_job(1000, exchange) | {"how": "full"})
    check(place, trials)
    assert sum(trial["code"] == 2 for trial in trials) > 10


@pytest.mark.campaign
def test_a_hundred_exports_to_a_full_disk(gguf_checkpoint: Path, tmp_path: Path) -> None:
    """Every operation that needs room in an export over an existing bundle, to each target."""
    count = 0
    for target in ("onnx", "gguf", "coreml"):
        for exchange in (True, False):
            place = tmp_path / f"{target}-{exchange}"
            _, trials = campaign(place, **export_job(gguf_checkpoint, 1000, exchange, target) | {"how": "full"})
            check(place, trials)
            count += sum(trial["code"] == 2 for trial in trials)
    assert count >= 100


# --- real ones ---------------------------------------------------------------------------------------------

SIZE = 64 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


COMMANDS = {
    "export": "export default -o out --no-gate --quantize int8 --force",
    "gguf": "export default -o out --no-gate --target gguf --force",
    "coreml": "export default -o out --no-gate --target coreml --force",
    "calibrate": "export default -o out --no-gate --calibrate default --method rtn --force",
    "scenes": "scenes scenes --count 40 --force",
    "eval": "eval {bundle} --data questions --out a.jsonl --json s.json --force",
    "compose": "compose --encoder default --decoder default --projector mlp -o new --force",
    "train": "train default --data questions -o model --steps 1 --batch 1 --cpu --force",
}
OUTPUTS = {"scenes": "scenes", "eval": "a.jsonl", "compose": "new", "train": "model"}
SETUP = {
    "scenes": [["scenes", "scenes", "--count", "1"]],
    "eval": [["scenes", "questions", "--count", "1"]],
    "train": [["scenes", "questions", "--count", "1"]],
    "compose": [],
}


@pytest.mark.campaign
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_disk_of_many_sizes(verb: str, tiny_bundle: Path, small: Path) -> None:
    """From no room at all to just enough, in 14 steps: with every verb and target."""
    words = [word.replace("{bundle}", str(tiny_bundle)) for word in COMMANDS[verb].split()]
    out = small / OUTPUTS.get(verb, "out")

    def run(*line: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgevlm", *line]
        return subprocess.run(command, cwd=small, capture_output=True, text=True)

    for line in SETUP.get(verb, [["export", "default", "-o", "out", "--no-gate"]]):
        assert run(*line).returncode == 0
    (small / "mine.txt").write_text("mine")
    if verb == "eval":
        out.write_text(json.dumps({"edgevlm_eval": 1}) + "\n")
    before = digests(small)
    free = SIZE - sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
    full = 0
    for step in range(14):
        room = (8 << 10) * step if verb in ("scenes", "eval") else (1 << 20) * step
        (small / "ballast").write_bytes(b"")
        with (small / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(1 << 20)):
                    pass
            except OSError:
                pass
            ballast.truncate(max(0, ballast.tell() - room))
        done = run(*words)
        (small / "ballast").unlink()
        state = digests(small)
        if done.returncode == 0:
            break
        full += 1
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert last.startswith("Error: The disk is full at '") and out.name in last, done.stderr
        part = f"{out.name}.part"  # what a run that goes on later has done so far
        assert {k: v for k, v in state.items() if not k.startswith(part)} == before, (step, done.stderr)
        for path in small.glob(part):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert full and free > 0
