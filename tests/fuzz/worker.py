"""Damages seeds and reads them, one input after another; run by test_readers.py in a process that may die.

    python tests/fuzz/worker.py SEEDS SEED FIRST COUNT TITLE...      damage and read; a line of JSON for each input
    python tests/fuzz/worker.py SEEDS SEED NUMBER --show TITLE       write the damaged file to standard output

Input i is damaged for reader i modulo their number. Lines: {"begin": i} before an input is read, then {"end": i, "as":
"refused" or "accepted"}, or {"failed": i, "why": ...}.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS, Reader, damage

from edgevlm.errors import EdgeVLMError

MEMORY = 2 << 30  # bytes that reading one input may add to what the program takes
LONGEST_MESSAGE = 1000


def main() -> None:
    seeds, seed, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    by_title = {reader.title: reader for reader in READERS}
    if sys.argv[4] == "--show":
        reader = by_title[sys.argv[5]]
        sys.stdout.buffer.write(damage(reader, (seeds / reader.seed / reader.file).read_bytes(), seed, first))
        return
    readers = [by_title[title] for title in sys.argv[5:]]
    warnings.simplefilter("ignore")
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # engines print
    with tempfile.TemporaryDirectory() as scratch:
        places = {reader.seed: _copy(seeds, reader.seed, Path(scratch)) for reader in readers}
        shutil.copytree(seeds / "checkpoint", Path(scratch) / "checkpoint", dirs_exist_ok=True)
        usual = {reader.title: reader.call(places[reader.seed]) for reader in readers}
        _bound_memory()
        for number in range(first, first + int(sys.argv[4])):
            reader = readers[number % len(readers)]
            print(json.dumps({"begin": number, "reader": reader.title}), file=report, flush=True)
            line = _try(reader, places[reader.seed], seed, number, usual[reader.title])
            print(json.dumps({"reader": reader.title} | line), file=report, flush=True)


def _try(reader: Reader, folder: Path, seed: int, number: int, usual: Any) -> dict[str, Any]:
    path, original = folder / reader.file, folder.with_name(folder.name + ".original")
    data = (original / reader.file).read_bytes()
    kept = {"manifest.json"} & {p.name for p in original.iterdir()}
    try:
        path.write_bytes(damage(reader, data, seed, number))
        found = reader.call(folder)
        reader.judge(folder, found, usual)
        return {"end": number, "as": "accepted"}
    except EdgeVLMError as error:
        text = str(error)
        if len(text) > LONGEST_MESSAGE:  # control characters are the console's task, see io/text.py
            return {"failed": number, "why": f"a message of {len(text)} characters: {text[:1000]!r}"}
        return {"end": number, "as": "refused", "why": text}
    except BaseException:
        return {"failed": number, "why": traceback.format_exc()[-3000:]}
    finally:
        path.write_bytes(data)
        for name in kept:
            shutil.copyfile(original / name, folder / name)


def _copy(seeds: Path, seed: str, scratch: Path) -> Path:
    """Two copies: one to damage, and beside it one that stays."""
    for name in (seed, f"{seed}.original"):
        shutil.copytree(seeds / seed, scratch / name, dirs_exist_ok=True)
    return scratch / seed


def _bound_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


if __name__ == "__main__":
    main()
