"""Killed at random moments and at every operation on files, and resumed: exactly one row for each picture."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from labelled import ROOT, answers, draw, lines, rows

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def words(bundle: Path, photos: Path, out: Path, tokens: int, *more: object) -> list[str]:
    line = ("label", bundle, photos, "-q", "What?", "-o", out, "--tiles", 1, "--max-tokens", tokens, "--threads", 1)
    return [sys.executable, "-m", "edgevlm", *map(str, (*line, *more))]


def start(command: list[str]) -> subprocess.Popen[str]:
    """With Ctrl-C as in a terminal: a shell's background jobs, of which these tests may be one, ignore it."""
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def killed_and_resumed(bundle: Path, photos: Path, out: Path, kills: int, count: int, *more: object) -> int:
    """How many runs were killed. Each goes at least some rows on, and dies within the next ones, or in its start."""
    part, done = out.with_name(f"{out.name}.partial.jsonl"), 0
    draws = random.Random(0)
    for number in range(kills):
        wanted = lines(part) + draws.randrange(count // (kills + 2)) if number % 5 else 0
        child = start(words(bundle, photos, out, 2, *more))
        try:
            deadline = time.monotonic() + 120
            while number % 5 and lines(part) <= wanted and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(draws.random() * (0.02 if number % 5 else 0.5))
            name = draws.choice(list(SIGNALS))
            child.send_signal(name)
            said = child.communicate(timeout=60)[1]
        finally:
            child.kill()
        if child.returncode == 0:
            break
        assert child.returncode in (SIGNALS[name], -name), said  # the second: before Python had begun
        assert "Traceback" not in said or child.returncode == -name, said
        assert not out.exists()
        done += 1
    finish = subprocess.run(words(bundle, photos, out, 2, *more), cwd=ROOT, capture_output=True, text=True)
    assert finish.returncode == 0 or "already exists" in finish.stderr, finish.stderr
    assert sorted(path.name for path in out.parent.iterdir() if out.name in path.name) == [out.name]
    return done


@pytest.mark.parametrize(
    ("count", "kills", "workers"), [(300, 5, 2), pytest.param(5000, 20, 1, marks=pytest.mark.heavy)]
)
def test_killed_at_random_moments(count: int, kills: int, workers: int, tiny_bundle: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", count)
    through = subprocess.run(words(tiny_bundle, photos, tmp_path / "through.jsonl", 2), cwd=ROOT, capture_output=True)
    assert through.returncode == 0, through.stderr
    done = killed_and_resumed(tiny_bundle, photos, tmp_path / "killed.jsonl", kills, count, "--workers", workers)
    assert done >= (3 if count == 300 else kills)  # a fast machine may be through before the fifth
    found = answers(tmp_path / "killed.jsonl")
    assert len(rows(tmp_path / "killed.jsonl")) == len(found) == count
    assert found == answers(tmp_path / "through.jsonl") and len(set(found.values())) > count // 2


# Kills a run at each of its operations on files in turn, in forks of a process that has everything imported, and
# starts it again; prints a JSON object for each.
EACH = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, "tests/fuzz")
from campaign import kill, trial, watch
import edgevlm.cli, edgevlm.label, edgevlm.runtimes.ort.runtime
bundle, photos, folder, suffix = sys.argv[1:]
import onnxruntime
if suffix == ".parquet":
    import pyarrow.parquet
base = Path(folder)
for at in range(1, 100):
    place = base / str(at)
    place.mkdir()
    out, log = place / f"t{suffix}", base / "log"
    words = ["label", bundle, photos, "-q", "What?", "-o", str(out), "--threads", "1", "--tiles", "1"]
    code = trial(words, log, lambda: watch(str(place), at, kill))
    at_once = sorted(path.name for path in place.iterdir())
    again = 0 if code == 0 else trial(words, log)
    left = sorted(path.name for path in place.iterdir())
    print(json.dumps([code, at_once, again, left, log.read_text(), str(out)]), flush=True)
    if code == 0:
        break
"""


@pytest.mark.parametrize("suffix", [".jsonl", pytest.param(".parquet", marks=pytest.mark.heavy)])
def test_killed_at_every_operation(suffix: str, tiny_bundle: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 6)
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", EACH, str(tiny_bundle), str(photos), str(tmp_path / "runs"), suffix]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) > 8 and [trial[0] for trial in trials] == [-9] * (len(trials) - 1) + [0]
    states = [f"t{suffix}" in trial[1] for trial in trials]
    assert states == sorted(states), "the table is there from one operation on"
    for code, at_once, again, left, said, out in trials:
        assert left == [f"t{suffix}"] and "Traceback" not in said, (at_once, left, said)
        journal = f"t{suffix}.partial.jsonl" in at_once
        if code and f"t{suffix}" in at_once and not journal:
            assert again == 2 and "already exists" in said
        else:
            assert again == 0 and (not code or f"'{out}' has 6 rows" in said)
    if suffix == ".jsonl":
        assert all(len(rows(Path(trial[5]))) == 6 and answers(Path(trial[5])) == answers(Path(trials[-1][5]))
                   for trial in trials)  # fmt: skip
