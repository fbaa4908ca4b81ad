"""What every peer is asked to do, and how: lines of JSON to a process in the peer's own environment.

A peer is a script that prepares files once and then does single pieces of work, timed inside its own process. This
module needs numpy alone, since it is imported in every environment.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Peer(Protocol):
    """One engine with the model loaded. What it cannot do raises, and the message stands below the table."""

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        """One RGB tile (S, S, 3) to its image features (tokens, D)."""

    def prefill(self, ids: list[int]) -> int:
        """A new prompt of text; the most likely next token."""

    def decode(self, token: int, count: int) -> list[int]:
        """`count` greedy tokens after the prompt and `token`, one at a time."""


class OneByOne:
    """Prompts and answers of an engine that is given tokens and says the most likely next one."""

    def append(self, ids: list[int]) -> int:
        raise NotImplementedError

    def restart(self) -> None:
        """Forget what was appended."""
        raise NotImplementedError

    def prefill(self, ids: list[int]) -> int:
        self.restart()
        return self.append(ids)

    def decode(self, token: int, count: int) -> list[int]:
        answer: list[int] = []
        for _ in range(count):
            token = self.append([token])
            answer.append(token)
        return answer


def rows(values: Any, width: int) -> F32:
    """Features as (tokens, width), whatever axes are around them."""
    return np.ascontiguousarray(np.asarray(values, np.float32).reshape(-1, width))


def peak_memory() -> int:
    """Bytes of the largest resident set of this process."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        line = next((line for line in status if line.startswith("VmHWM:")), "")
    return int(line.split()[1]) * 1024 if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(prepare: Callable[[Path, Path], None], load: Callable[[Path, int], Peer]) -> None:
    """`SCRIPT prepare CHECKPOINT FOLDER` writes what `SCRIPT serve FOLDER THREADS WORK` loads.

    WORK is a folder with tile.npy and ids.json. Requests are {"do": "encode"}, {"do": "prefill", "tokens": N} and
    {"do": "decode", "tokens": N, "count": C}; replies have "seconds" and what was computed, or "error".
    """
    if sys.argv[1] == "prepare":
        start = time.perf_counter()
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak": max(peak_memory(), child)}))
        return
    folder, threads, work = Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints goes to standard error
    tile = np.load(work / "tile.npy")
    ids = json.loads((work / "ids.json").read_text())
    start = time.perf_counter()
    peer = load(folder, threads)
    print(json.dumps({"load": time.perf_counter() - start}), file=replies, flush=True)
    turn = 0
    for line in sys.stdin:
        task, turn = json.loads(line), turn + 1
        try:
            reply = _do(peer, task, tile, ids, turn)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        print(json.dumps(reply | {"peak": peak_memory()}), file=replies, flush=True)


def _do(peer: Peer, task: dict[str, Any], tile: npt.NDArray[np.uint8], ids: list[int], turn: int) -> dict[str, Any]:
    if task["do"] == "encode":
        picture = np.roll(tile, turn if task.get("changed", True) else 0, axis=1)  # no engine answers from a cache
        start = time.perf_counter()
        features = peer.encode(np.ascontiguousarray(picture))
        seconds = time.perf_counter() - start
        if "features" in task:
            np.save(task["features"], features)
        return {"seconds": seconds}
    prompt = ids[turn % 7 : turn % 7 + task["tokens"]]
    if not task.get("changed", True):
        prompt = ids[: task["tokens"]]
    start = time.perf_counter()
    token = peer.prefill(prompt)
    seconds = time.perf_counter() - start
    if task["do"] == "prefill":
        return {"seconds": seconds, "token": token}
    start = time.perf_counter()
    answer = peer.decode(token, task["count"])
    return {"seconds": (time.perf_counter() - start) / task["count"], "ids": [token, *answer]}
