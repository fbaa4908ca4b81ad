"""Labels on a Ray cluster: an actor of Ray Data for each session, and the rows back here, where they are written.

Ray starts a worker that was killed again, gives its pictures to another, and lets each row come back once; what had
not come back when the run was stopped is asked about by the next.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.generate.pool import open_sessions
from edgevlm.label.journal import Row
from edgevlm.label.pictures import Picture
from edgevlm.label.work import Labeller, Task

LOCAL = "local"  # the address of a Ray that is started here, and ends with the run
_STORE = 512 << 20  # bytes of memory for what travels, of a Ray that is started here
_PATIENCE = 10.0  # seconds for a cluster's first sign of life
_CHUNK, _CHUNK_BYTES = 100_000, 128 << 20  # pictures that are handed to Ray at once, and bytes where they have any
_BATCH = 32  # pictures of a call of an actor, at most
_THREADS = 4  # of an actor, where nothing is said
_GPUS = ("gpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class Cluster:
    """Where to compute: Ray's address, and for each actor what `open_sessions` takes. workers: None is what fits."""

    address: str
    runtime: str | None
    device: str
    threads: int | None
    workers: int | None


class _Actor:
    """A session on one of the cluster's machines."""

    def __init__(self, folder: Path, manifest: Any, task: Task, where: Cluster, threads: int) -> None:
        self._labeller, self._refusal, stack = None, "", ExitStack()
        try:
            bundle = open_bundle(folder)
            if bundle.manifest != manifest:
                raise EdgeVLMError(f"'{folder}' is another bundle on a machine of the cluster: copy it there again.")
            sessions = open_sessions(bundle, 1, where.runtime, where.device, threads, reuse=False, cache_bytes=0)
            self._labeller = Labeller(task, stack.enter_context(sessions))
        except EdgeVLMError as error:  # Ray would put a traceback around it
            self._refusal = str(error)
        self._stack = stack  # open for as long as the actor lives

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._labeller is None:
            return {"row": [pickle.dumps({"refusal": self._refusal})]}
        pictures = (pickle.loads(item) for item in batch["picture"])
        return {"row": [pickle.dumps(self._labeller.row(picture)) for picture in pictures]}


@contextmanager
def computing_on_ray(
    bundle: Bundle, task: Task, where: Cluster
) -> Iterator[Callable[[Iterable[Picture]], Generator[Row, None, None]]]:
    """What makes rows of pictures on a cluster, in the order in which they are finished.

    Bundle and pictures have to lie at the same paths on all machines, with the same edgevlm installed. A Ray that this
    process had begun before is used, and goes on.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _start(ray, where.address)
    try:
        yield lambda pictures: _rows(ray, bundle, task, where, pictures)
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    """Ray and Ray Data, with reports of usage off: the variable is read by the processes that Ray starts, too."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise EdgeVLMError(f"--ray needs the package ray: {install_hint('ray')}.") from None
    return ray


def _start(ray: Any, address: str) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == LOCAL:
        settings |= {"include_dashboard": False, "object_store_memory": _STORE}
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        ray.init(address=address, **settings)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise EdgeVLMError(f"There is no Ray at '{address}' ({reason}): give the address of a cluster.") from None


def _rows(
    ray: Any, bundle: Bundle, task: Task, where: Cluster, pictures: Iterable[Picture]
) -> Generator[Row, None, None]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    threads, workers = _room(ray, where)
    size = {"size": where.workers} if where.workers else {"min_size": 1, "max_size": workers}
    pictures = iter(pictures)
    while chunk := _chunk(pictures):
        share = max(1, min(_BATCH, len(chunk) // (4 * workers)))
        tables = [_table(chunk[start : start + share]) for start in range(0, len(chunk), share)]
        found = ray.data.from_arrow(tables).map_batches(
            _Actor,
            fn_constructor_args=(bundle.folder.resolve(), bundle.manifest, task, where, threads),
            compute=ray.data.ActorPoolStrategy(**size),
            batch_size=share,
            num_cpus=threads,
            num_gpus=1 if where.device in _GPUS else None,
        )
        try:
            for item in found.iter_rows():
                row = pickle.loads(item["row"])
                if "refusal" in row:
                    raise EdgeVLMError(row["refusal"])
                yield row
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            raise EdgeVLMError(f"Ray could not go on ({reason}): run the same command again for the rest.") from None


def _room(ray: Any, where: Cluster) -> tuple[int, int]:
    """Threads of an actor, and how many actors the cluster has cores for."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    threads = where.threads or min([_THREADS, *filter(None, cores)])
    room = sum(core // threads for core in cores)
    if not room:
        raise EdgeVLMError(
            f"No machine of the cluster has {threads} cores, as many as --threads asks for: ask for fewer."
        )
    return threads, where.workers or room


def _chunk(pictures: Iterator[Picture]) -> list[bytes]:
    """The next pictures, pickled."""
    found, size = list[bytes](), 0
    for picture in islice(pictures, _CHUNK):
        found.append(pickle.dumps(picture))
        size += len(found[-1])
        if size > _CHUNK_BYTES:
            break
    return found


def _table(items: list[bytes]) -> Any:
    import pyarrow

    return pyarrow.table({"picture": pyarrow.array(items, pyarrow.binary())})
