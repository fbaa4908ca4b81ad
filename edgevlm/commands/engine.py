"""What commands say about where a bundle runs, and how an answer is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.commands.arguments import warn_if_failed
from edgevlm.io.console import write

if TYPE_CHECKING:
    from edgevlm.generate.answer import Answer, AnswerStream
    from edgevlm.generate.loop import Pipeline


@dataclass(frozen=True)
class EngineChoice:
    """As `open_runtime` takes it. cache: a folder for what pictures cost."""

    runtime: str | None = None
    device: str = "cpu"
    threads: int | None = None
    storage: str = "fp16"
    cache: str | None = None

    @contextmanager
    def open(self, folder: Path) -> Iterator[Pipeline]:
        """The bundle, open for asking within the block."""
        from edgevlm.bundle.manifest import open_bundle
        from edgevlm.generate.opening import open_pipeline

        pipeline = open_pipeline(
            warn_if_failed(open_bundle(folder)), self.runtime, self.device, self.threads,
            storage=self.storage, cache_folder=self.cache,
        )  # fmt: skip
        try:
            yield pipeline
        finally:
            pipeline.runtime.close()


def show(stream: AnswerStream) -> Answer:
    """Write the answer to standard output as it comes."""
    for piece in stream:
        write(piece, end="")
    write("")
    return stream.answer
