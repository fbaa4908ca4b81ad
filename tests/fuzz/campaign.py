"""Trials of a command that is killed, or meets a full disk, at one of its operations on files.

Run as a program it imports what the command needs once, and forks for every trial. An audit hook counts the operations
(open to write, rename, remove, mkdir, rmdir, truncate) on files below the trial's folder, and at the chosen one kills
the process, or lets it and all later ones that need room fail with ENOSPC.

    python campaign.py JOB      JOB: a JSON object, see `run`; prints a JSON object per trial
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCENES = ["scenes", "{}/out", "--count", "1"]
WARM = ["edgevlm.cli", "rich.progress", "rich._emoji_codes", "numpy.random", "PIL.PngImagePlugin"]
LIGHT = [*WARM, "edgevlm.scenes.ask", "edgevlm.scenes.generator", "edgevlm.scenes.folder"]
EXPORT = [*WARM, "edgevlm.export.pipeline", "edgevlm.export.onnx_.emit"]
NEEDS_ROOM = {"open", "os.mkdir", "os.rename", "os.link"}
COUNTED = NEEDS_ROOM | {"os.remove", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def campaign(place: Path, **job: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run without trouble said, and the trials of tests/fuzz/campaign.py."""
    command = [sys.executable, __file__, json.dumps({"place": str(place), **job})]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert trials
    return first, trials


def scenes_job(counts: int, exchange: bool) -> dict[str, Any]:
    return {
        "imports": LIGHT, "setup": [SCENES], "command": [*SCENES, "--seed", "1", "--force"], "again": SCENES,
        "outputs": ["out"], "counts": counts, "how": "kill", "exchange": exchange,
    }  # fmt: skip


def export_job(model: Path, counts: int, exchange: bool, target: str = "onnx") -> dict[str, Any]:
    words = ["export", str(model), "-o", "{}/out", "--no-gate", "--target", target, "--quantize"]
    return {
        "imports": EXPORT, "setup": [[*words, "fp32"]], "command": [*words, "int8", "--force"],
        "again": [*words, "int8"], "outputs": ["out"], "counts": counts, "how": "kill", "exchange": exchange,
    }  # fmt: skip


def watch(place: str, at: int, act: Callable[[str, str], None], total: Path | None = None) -> None:
    """From the operation number `at` (from 1) on, call act(event, path) before each; `total` gets the final count."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in COUNTED or not args or isinstance(args[0], int):
            return
        path = os.fsdecode(args[0])
        if not path.startswith(place) or (event == "open" and not args[2] & WRITES):
            return
        count += 1
        if handle is not None:
            os.pwrite(handle, b"%9d" % count, 0)
        if count >= at > 0:
            act(event, path)

    handle = None if total is None else os.open(total, os.O_RDWR | os.O_CREAT)
    sys.addaudithook(hook)


def kill(event: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Full:
    """The first operation fails, and then everything that needs room for a new name."""

    def __init__(self) -> None:
        self.first = True

    def __call__(self, event: str, path: str) -> None:
        if (self.first and event in NEEDS_ROOM) or event in ("open", "os.mkdir"):
            self.first = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def trial(words: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run one command line in a child; its exit code, negative for a signal. Standard error goes to `log`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 2)
        os.dup2(stream, 1)
        from edgevlm.cli import main

        prepare()
        main(words)
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def digests(folder: Path, *, skip: str = "") -> dict[str, str]:
    """sha256 of every file below a folder by name; of links, where they point to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and not (skip and name.startswith(skip)):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_exchange() -> None:
    """As on a system that can neither exchange two folders nor rename with a condition."""
    from edgevlm.io import renames

    renames._call = lambda: None  # type: ignore[assignment]


def run(job: dict[str, Any]) -> None:
    """Run a job.

    imports: modules to warm up with. setup: command lines that make the old state, in order. command: the one on trial.
    again: the next start, after a kill. outputs: names below the folder that the command may change. place: an empty
    folder. counts: at which operations, or how many, spread evenly. how: "kill" or "full". exchange: false for a system
    without. skip: how names of files begin whose bytes differ from run to run. parts: outputs that a stopped
    run leaves as NAME.part. varying: JSON files that the command writes, whose content differs from run to run.
    """
    for name in job["imports"]:
        importlib.import_module(name)
    base, log = Path(job["place"]), Path(job["place"] + ".log")
    place, skip = base / "work", job.get("skip", "")
    prepare = (lambda: None) if job.get("exchange", True) else without_exchange

    def words(line: list[str]) -> list[str]:
        return [word.replace("{}", str(place)) for word in line]

    def users() -> None:
        for name in ("mine.txt", ".hidden/mine", "out.failed/mine", "out-2/manifest.json", "out.old", "out.part/mine"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(f"mine: {name}")

    def fresh() -> None:
        import shutil

        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base / "old", place, symlinks=True)

    def outputs() -> dict[str, dict[str, str]]:
        return {
            name: digests(place / name, skip=skip)
            if (place / name).is_dir()
            else {"": hashlib.sha256((place / name).read_bytes()).hexdigest() if (place / name).exists() else "none"}
            for name in job["outputs"]
        }

    def others() -> dict[str, str]:
        """Everything else, what edgevlm works in apart."""
        own = (*job["outputs"], *(f"{name}.part" for name in job.get("parts", ())), *job.get("varying", ()))
        return {
            name: digest
            for name, digest in digests(place).items()
            if not any(name == each or name.startswith(f"{each}/") for each in own) and ".edgevlm/" not in name
        }

    def broken() -> list[str]:
        return [name for name in job.get("varying", ()) if not isinstance(json.loads((place / name).read_text()), dict)]

    place.mkdir(parents=True)
    users()
    for line in job["setup"]:
        assert trial(words(line), log) == 0, log.read_text()
    place.rename(base / "old")
    fresh()
    old, kept = outputs(), others()
    total = base / "total"
    code = trial(words(job["command"]), log, lambda: (prepare(), watch(str(place), 0, kill, total))[0])
    assert code == 0, log.read_text()
    new, count = outputs(), int(total.read_text())
    assert all(old[name] != new[name] for name in old), "the command changes nothing"
    assert others() == kept, "a run without trouble changes what is not its output"
    print(json.dumps({"operations": count, "said": log.read_text()}), flush=True)
    wanted = job["counts"]
    chosen = wanted if isinstance(wanted, list) else sorted({1 + i * count // wanted for i in range(wanted)})
    for at in chosen:
        fresh()
        act: Callable[[str, str], None] = kill if job["how"] == "kill" else Full()
        code = trial(words(job["command"]), log, lambda act=act, at=at: (prepare(), watch(str(place), at, act))[0])  # type: ignore[misc]
        found: dict[str, Any] = {"at": at, "code": code, "said": log.read_text()}
        state = outputs()
        found["at_once"] = {name: which(state[name], old[name], new[name]) for name in state}
        found["lost"] = sorted(name for name, digest in kept.items() if others().get(name) != digest)
        found["left"] = left(place, kept, job)
        found["lost"] += broken()
        if job["how"] == "kill":
            found["again"] = trial(words(job["again"]), log, prepare)
            found["said_again"] = log.read_text()
            state = outputs()
            found["after"] = {name: which(state[name], old[name], new[name]) for name in state}
            found["lost"] += sorted(name for name, digest in kept.items() if others().get(name) != digest)
            found["lost"] += broken()
            found["left"] = left(place, kept, job)
        print(json.dumps(found), flush=True)


def which(state: dict[str, str], old: dict[str, str], new: dict[str, str]) -> str:
    return "old" if state == old else "new" if state == new else "other"


def left(place: Path, kept: dict[str, str], job: dict[str, Any]) -> list[str]:
    """What lies about that neither was there nor is an output."""
    names = {path.relative_to(place).parts[0] for path in place.iterdir()}
    return sorted(names - {name.split("/")[0] for name in kept} - {*job["outputs"], *job.get("varying", ())})


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
