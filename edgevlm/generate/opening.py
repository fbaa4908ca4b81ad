"""Pipelines with their engines, and what they keep of pictures."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path

from edgevlm.bundle.manifest import Bundle
from edgevlm.generate.array_folder import ArrayFolder
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.pictures import LIMIT, PictureCache
from edgevlm.generate.stored_pictures import StoredPictures
from edgevlm.generate.stored_states import StoredStates
from edgevlm.io.processor import usable_cores
from edgevlm.runtimes import open_runtime


def open_pipeline(
    bundle: Bundle,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    *,
    storage: str = "fp16",
    reuse: bool = True,
    cache_bytes: int = LIMIT,
    cache_folder: Path | str | None = None,
) -> Pipeline:
    """The bundle on an engine, as `open_runtime` takes it; closing its `runtime` is the caller's.

    reuse: see `Pipeline`. cache_bytes: of memory for pictures and their features. cache_folder: where features are kept
    on disk, too, and, with `reuse`, the states of decoders that can be saved. Raises EdgeVLMError.
    """
    return open_pipelines(
        bundle, 1, runtime, device, threads, storage=storage,
        reuse=reuse, cache_bytes=cache_bytes, cache_folder=cache_folder,
    )[0]  # fmt: skip


def open_pipelines(
    bundle: Bundle,
    count: int,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    *,
    storage: str = "fp16",
    reuse: bool = True,
    cache_bytes: int = LIMIT,
    cache_folder: Path | str | None = None,
) -> list[Pipeline]:
    """`count` of them on the same files, each for a thread of its own; a picture is encoded once for all.

    threads: of each; None shares this process's cores out, and leaves the number to the engine of one pipeline alone.
    The rest is as `open_pipeline` takes it. Raises EdgeVLMError, with no engine left open.
    """
    if threads is None and count > 1:
        threads = max(1, usable_cores() // count)
    folder = None if cache_folder is None else ArrayFolder(cache_folder)
    made, prompter = list[Pipeline](), cache(bundle.prompter)
    with ExitStack() as opened:
        for _ in range(count):
            engine = open_runtime(bundle, runtime, device=device, threads=threads, storage=storage, beside=prompter)
            opened.callback(engine.close)
            if made:
                pictures = made[0].pictures
            else:
                kept = None if folder is None else StoredPictures(folder, bundle, engine.encoder)
                pictures = PictureCache(cache_bytes, kept)
            stored = None if folder is None else StoredStates(folder, bundle, engine)
            made.append(Pipeline(bundle, engine, reuse=reuse, prompter=prompter(), pictures=pictures, stored=stored))
        opened.pop_all()
    return made
