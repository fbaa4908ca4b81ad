"""Damaged files of every kind: an EdgeVLMError of one sentence or the right result, soon and in little memory.

A child process reads them, so that a crash, a hang and a flood of memory are seen as such. A failure names reader, seed
and number; `python tests/fuzz/worker.py` writes the input out again. What was found is kept small beside the test of
its reader.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS
from seeds import make_seeds

HERE = Path(__file__).parent
SECONDS = 60.0  # for one input


@dataclass
class Found:
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def run(seeds: Path, seed: int, count: int, titles: list[str], first: int = 0) -> Found:
    found, at = Found(), first
    while at < first + count:
        at = _run_child(seeds, seed, at, first + count - at, titles, found)
    return found


def _run_child(seeds: Path, seed: int, first: int, count: int, titles: list[str], found: Found) -> int:
    """Read inputs until the child ends or dies; the number of the next one."""
    command = [sys.executable, str(HERE / "worker.py"), str(seeds), str(seed), str(first), str(count), *titles]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None and child.stderr is not None
        begun: dict[str, Any] | None = None
        pending = b""
        while True:
            ready, _, _ = select.select([child.stdout], [], [], SECONDS)
            piece = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not ready:
                child.kill()
                assert begun is not None, "the seeds themselves take too long"
                found.failures.append(f"{begun['reader']}, seed {seed}, number {begun['begin']}: over {SECONDS:.0f} s")
                return int(begun["begin"]) + 1
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in map(json.loads, lines):
                begun = line if "begin" in line else None
                if "end" in line:
                    found.outcomes[line["reader"], line["as"]] += 1
                elif "failed" in line:
                    found.failures.append(f"{line['reader']}, seed {seed}, number {line['failed']}: {line['why']}")
        error = child.stderr.read().decode("utf-8", "replace")
        status = child.wait()
    if begun is not None:
        found.failures.append(
            f"{begun['reader']}, seed {seed}, number {begun['begin']}: died with {status}: {error[-500:]}"
        )
        return int(begun["begin"]) + 1
    assert status == 0, error[-3000:]
    return first + count


def check(found: Found, titles: list[str], count: int) -> None:
    print("\n".join(f"{title}: {how} {n}" for (title, how), n in sorted(found.outcomes.items())))
    assert not found.failures, f"{len(found.failures)} failures:\n" + "\n\n".join(found.failures[:20])
    assert sum(found.outcomes.values()) == count
    for title in titles if count > 100 * len(titles) else ():  # of a few inputs, all may do no harm
        assert found.outcomes[title, "refused"], f"no damaged input of {title} was refused: is it read at all?"


def test_a_few_damaged_files_of_every_quick_reader(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    checkpoint = HERE.parents[1] / "edgevlm" / "assets" / "default"
    seeds = make_seeds(tmp_path / "seeds", checkpoint, everything=False)
    titles = [reader.title for reader in READERS if reader.quick]
    count = 6 * len(titles)
    check(run(seeds, 0, count, titles), titles, count)


@pytest.mark.campaign
def test_twenty_thousand_damaged_files(tiny_checkpoint: Path, gguf_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    seeds = make_seeds(tmp_path / "seeds", gguf_checkpoint, everything=True)
    titles = [reader.title for reader in READERS]
    check(run(seeds, 1, 20_000, titles), titles, 20_000)
