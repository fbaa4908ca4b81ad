"""llama.cpp through llama-cpp-python's low-level bindings: import, log, load, and the trial in a child process.

llama.cpp answers a bad file with a null pointer and a log line, or with abort(), which would take this process along.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, RuntimeFailed

TESTED = "0.3.36"  # llama-cpp-python; mtmd's structures change between versions
PROBE_SECONDS = 300.0
_WARN, _ERROR = 3, 4  # ggml_log_level

# https://github.com/ggml-org/llama.cpp/pull/26954: GCC 12 leaves the tiles' configuration out.
_REBUILD = (
    "build it again with `CFLAGS='-mno-amx-tile -mno-amx-int8' CXXFLAGS='-mno-amx-tile -mno-amx-int8' pip install "
    f"--force-reinstall --no-cache-dir --no-deps llama-cpp-python=={TESTED}`"
)

_PROBE = "import sys; from edgevlm.runtimes.llama.engine import probe; probe(*sys.argv[1:])"


class Engine:
    """The loaded library. Its log goes to `messages` and never to the user's terminal."""

    def __init__(self) -> None:
        try:
            import llama_cpp
            from llama_cpp import mtmd_cpp
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise RuntimeFailed(
                f"llama.cpp could not be imported ({str(error)[:120]}): install it with "
                f"`pip install llama-cpp-python=={TESTED}`, which compiles it once (5 to 20 minutes)."
            ) from None
        self.llama: Any = llama_cpp
        self.mtmd: Any = mtmd_cpp
        self.version: str = llama_cpp.__version__
        self.messages: deque[str] = deque(maxlen=20)
        self._log = llama_cpp.llama_log_callback(self._keep)  # ctypes frees a callback that nobody holds
        self.silence()
        llama_cpp.llama_backend_init()

    def silence(self) -> None:
        """Take over the log, which an import of llama_cpp elsewhere may have sent to standard error."""
        for setter in (self.llama.llama_log_set, self.mtmd.mtmd_log_set, self.mtmd.mtmd_helper_log_set):
            setter(self._log, ctypes.c_void_p(0))

    def _keep(self, level: int, text: bytes | None, _data: Any) -> None:
        line = (text or b"").decode("utf-8", "replace").strip()
        if line and level >= _WARN and level <= _ERROR:
            self.messages.append(line)

    def reason(self) -> str:
        """The engine's last warning or error."""
        line = self.messages[-1] if self.messages else "it gave no reason"
        return line.splitlines()[0][:200].rstrip(".")

    def load_model(self, path: Path, gpu: bool = False, check: bool = False) -> Any:
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = 999 if gpu else 0
        params.check_tensors = check
        model = self.llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise RuntimeFailed(
                f"llama.cpp cannot load '{path}' ({self.reason()}): the file is damaged, incomplete or needs a newer "
                "llama-cpp-python; export the bundle again."
            )
        return model

    def load_mmproj(
        self, path: Path, model: Any, tokens: range, threads: int, gpu: bool = False, warmup: bool = False
    ) -> Any:
        """An mtmd context that takes pictures with as many `tokens` as they are.

        mtmd would scale every picture to the file's longest edge and cut it; a limit of one tile's tokens makes it
        take a bitmap of exactly tile size as it is (mtmd-image.cpp: the resize to the same size is a copy). A tower of
        any size takes what lies between the limits as it is.
        """
        params = self.mtmd.mtmd_context_params_default()
        params.use_gpu = gpu
        params.print_timings = False
        params.n_threads = threads
        params.warmup = warmup
        params.image_min_tokens, params.image_max_tokens = tokens[0], tokens[-1]
        context = self.mtmd.mtmd_init_from_file(os.fsencode(path), model, params)
        if not context:
            raise RuntimeFailed(
                f"llama.cpp cannot load '{path}' ({self.reason()}): the file is damaged or belongs to another model; "
                "export the bundle again."
            )
        return context

    def new_context(self, model: Any, positions: int, batch: int, threads: int, exact: bool = False) -> Any:
        """exact: keys, values and attention in float32. llama.cpp's own choice is a cache in fp16 and fused attention,
        which computes in fp16 whatever the cache holds: together up to 0.02 on a logit, where the rest of a float32
        decoder is within 2e-5 of the reference."""
        params = self.llama.llama_context_default_params()
        if exact:
            params.type_k = params.type_v = self.llama.GGML_TYPE_F32
            params.flash_attn_type = self.llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_ctx = positions
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        context = self.llama.llama_init_from_model(model, params)
        if not context:
            raise RuntimeFailed(
                f"llama.cpp has no memory for {positions} positions ({self.reason()}): free some, or ask for less."
            )
        return context


_loading = threading.Lock()


def load_engine() -> Engine:
    """The one engine of this process (llama.cpp's log and backends are global to it), whatever threads ask for it."""
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> Engine:
    return Engine()


def probe(model: str, mmproj: str | None = None) -> None:
    """In the child: load the files, check every block, compute once. Exits with 0, or with 3 and one line."""
    engine = load_engine()
    try:
        loaded = engine.load_model(Path(model), check=True)
        context = engine.new_context(loaded, positions=256, batch=32, threads=1)
        print("computing", file=sys.stderr, flush=True)
        tokens = (engine.llama.llama_token * 32)()  # a build for another CPU dies here, not at loading
        engine.llama.llama_decode(context, engine.llama.llama_batch_get_one(tokens, len(tokens)))
        print("computed", file=sys.stderr, flush=True)
        if mmproj is not None:
            engine.load_mmproj(Path(mmproj), loaded, tokens=range(1, 2), threads=1, warmup=True)
    except EdgeVLMError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)  # nothing here is worth freeing


def probe_in_child(*paths: Path) -> None:
    """Load untrusted files in a child process, once per state of a file; EdgeVLMError if it dies."""
    _probe_once(*((path.resolve(), path.stat().st_mtime_ns) for path in paths))


def load_beside_trial(beside: Callable[[], object], *paths: Path) -> Engine:
    """The engine, imported while `probe_in_child` tries the files; `beside` is called then, too."""
    with ThreadPoolExecutor(1) as pool:
        trial = pool.submit(probe_in_child, *paths)
        engine = load_engine()
        beside()
        trial.result()
    return engine


@functools.lru_cache(maxsize=64)
def _probe_once(*files: tuple[Path, int]) -> None:
    paths = [path for path, _ in files]
    folder = paths[0].parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE, *map(str, paths)],
            env=environment,
            capture_output=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailed(
            f"llama.cpp did not finish loading '{folder}' within {PROBE_SECONDS:.0f} s: export the bundle again."
        ) from None
    if child.returncode == 0:
        return
    lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
    if child.returncode == 3 and lines:
        raise RuntimeFailed(lines[-1])
    if lines[-1:] == ["computing"]:
        raise RuntimeFailed(
            f"llama.cpp loads the files in '{folder}' and dies when it computes (exit {child.returncode}), so it was "
            f"built for another CPU, or for this one's AMX unit by a compiler with a fault (GCC 12): {_REBUILD}."
        )
    reason = next((line for line in lines if "GGML_ASSERT" in line or "abort" in line), f"exit {child.returncode}")
    raise RuntimeFailed(
        f"llama.cpp crashed on the files in '{folder}' ({reason[:160]}): they are damaged or not from edgevlm; "
        "export the bundle again."
    )
