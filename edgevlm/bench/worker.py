"""One bundle on one engine in a process of its own, started by `edgevlm.bench.measure`.

Lines of JSON in both directions. In: the task, then a word per question. Out: the time of loading, then each
question's stages, or {"error": sentence} for an EdgeVLMError.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError

STAGES = ("preprocess", "encode", "prefill", "decode")  # seconds; decode is per token


class Worker:
    """The parent's end: `loaded` has the time of loading and the engine, `ask` runs the question once."""

    def __init__(self, task: dict[str, Any]) -> None:
        """task: bundle, runtime, device, threads, tiles, tokens, picture, question."""
        # Behind everything else on the path: a checkout that is not installed is found, and nothing is shadowed.
        root = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.append({root!r}); from edgevlm.bench.worker import main; main()"
        environment = dict(os.environ)
        if task["threads"] is not None:  # numpy's pool, which preprocessing and the eager reference use
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(task["threads"]))
        self._name = f"{task['runtime'] or 'the engine'} on '{task['bundle']}'"
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        try:
            self.loaded = self._send(task)
        except BaseException:
            self.close()
            raise
        self.loaded["start"] = time.perf_counter() - start - self.loaded["load"]

    def ask(self) -> dict[str, Any]:
        """Seconds of each stage of `STAGES`, token counts, the answer's ids, and the peak memory so far."""
        return self._send("ask")

    def close(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                try:
                    stream.close()
                except OSError:  # unsent bytes for a process that has ended
                    continue
        self._process.wait()

    def _send(self, message: object) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:  # it died: the missing answer below says so
            pass
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise EdgeVLMError(
                f"The process with {self._name} died ({why}) without an answer: check the bundle with "
                "`edgevlm verify`, and that there is memory enough for the model."
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EdgeVLMError(reply["error"])
        return reply


def main() -> None:
    """The child's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent ends this one
    with _own_stdout() as reply:
        try:
            task = json.loads(sys.stdin.readline())
            for result in _serve(task):
                reply.write(json.dumps(result) + "\n")
                reply.flush()
        except EdgeVLMError as error:
            reply.write(json.dumps({"error": str(error)}) + "\n")


def _serve(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.generate.loop import GenerateOptions, Pipeline
    from edgevlm.generate.pictures import PictureCache
    from edgevlm.runtimes import open_runtime

    start = time.perf_counter()
    bundle = open_bundle(task["bundle"])
    runtime = open_runtime(bundle, task["runtime"], device=task["device"], threads=task["threads"])
    runtime = replace(runtime, encoder=_Uncached(runtime.encoder))
    pipeline = Pipeline(bundle, runtime, reuse=False, pictures=PictureCache(0))
    yield {"load": time.perf_counter() - start, "runtime": runtime.name, "device": runtime.device}
    options = GenerateOptions(max_tokens=task["tokens"], ignore_stop=True, lookup=False)
    for _ in sys.stdin:
        answer = pipeline.answer([task["picture"]], task["question"], options, max_tiles=task["tiles"])
        t = answer.timings
        step = t.decode / (t.answer_tokens - 1) if t.answer_tokens > 1 else 0.0
        yield {
            **dict(zip(STAGES, (t.preprocess, t.encode, t.prefill, step), strict=True)),
            "image_tokens": t.image_tokens,
            "prompt_tokens": t.prompt_tokens,
            "answer_tokens": t.answer_tokens,
            "peak_memory": t.peak_memory,
            "ids": answer.ids,
        }


class _Uncached:
    """An encoder that changes each picture a little, so that no engine answers from cached features."""

    def __init__(self, encoder: Any) -> None:
        self._encoder, self._turn = encoder, 0
        self.name, self.device = encoder.name, encoder.device

    def encode(self, views: Any) -> Any:
        import numpy as np

        self._turn += 1
        changed = []
        for view in views:
            row = view.shape[0] // 2
            moved = np.array(view)
            moved[row] = np.roll(moved[row], self._turn, axis=0)
            changed.append(moved)
        return self._encoder.encode(changed)

    def close(self) -> None:
        self._encoder.close()


@contextmanager
def _own_stdout() -> Iterator[Any]:
    """Standard output for replies alone: what engines print there goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reply:
        os.dup2(2, 1)
        yield reply
