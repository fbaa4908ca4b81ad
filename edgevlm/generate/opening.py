"""A pipeline with its engine, and what it keeps of pictures."""

from __future__ import annotations

from pathlib import Path

from edgevlm.bundle.manifest import Bundle
from edgevlm.generate.array_folder import ArrayFolder
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.pictures import LIMIT, PictureCache
from edgevlm.generate.stored_pictures import StoredPictures
from edgevlm.generate.stored_states import StoredStates
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
    on disk, too, and, with `reuse`, the states of decoders that can be saved. Raises EdgeVLMError, with no engine left
    open.
    """
    engine = open_runtime(bundle, runtime, device=device, threads=threads, storage=storage)
    try:
        if cache_folder is None:
            return Pipeline(bundle, engine, reuse=reuse, pictures=PictureCache(cache_bytes))
        folder = ArrayFolder(cache_folder)
        pictures = PictureCache(cache_bytes, StoredPictures(folder, bundle, engine.encoder))
        stored = StoredStates(folder, bundle, engine)
        return Pipeline(bundle, engine, reuse=reuse, pictures=pictures, stored=stored)
    except BaseException:
        engine.close()
        raise
