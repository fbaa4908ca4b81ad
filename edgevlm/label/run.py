"""A run of labels from its first picture to the table, whoever computes them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from edgevlm.bundle.hub import resolve_bundle
from edgevlm.bundle.manifest import MANIFEST, Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.chat import AskOptions
from edgevlm.generate.forms import schema_text
from edgevlm.generate.pool import check_workers, open_sessions
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.io.apart import check_apart
from edgevlm.io.claims import claimed
from edgevlm.io.files import check_new, is_stream, put, real_place
from edgevlm.io.full import disk_errors
from edgevlm.io.json import parse_json
from edgevlm.io.options import check_types
from edgevlm.io.text import json_text
from edgevlm.label.journal import (
    FORMAT,
    RETRIES,
    Journal,
    Row,
    begin,
    check_head,
    finished,
    head_line,
    journal_place,
    read_rows,
)
from edgevlm.label.pictures import Picture, Pictures
from edgevlm.label.table import Shape, check_suffix, head_of, read_table, write_table
from edgevlm.label.work import Labeller, Task, names_places


@dataclass(frozen=True)
class LabelOptions:
    """See `label`. Raises EdgeVLMError for a value of another type."""

    runtime: str | None = None
    device: str = "cpu"
    threads: int | None = None
    workers: int | None = None
    column: str | None = None
    force: bool = False
    retry_errors: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.workers is not None:
            check_workers(self.workers)
        if self.threads is not None and self.threads < 1:
            raise EdgeVLMError(f"threads is {self.threads}: give a whole number of at least 1.")


@dataclass(frozen=True)
class Labels:
    """What a run has done: rows of the table, of them with an error, of them by this run, and pictures that were listed
    again, which have no second row."""

    rows: int
    errors: int
    new: int
    again: int = 0


Progress = Callable[[int, int, int, int], None]
"""progress(done, total, new, errors): rows so far, pictures, rows by this run, rows with an error."""


def label(
    bundle: str | Path,
    pictures: str | Path,
    question: str,
    out: str | Path,
    options: GenerateOptions | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Labels:
    """Ask one question about many pictures; write a row for each to `out`, .parquet or .jsonl.

    pictures: a folder, with all below it; a text file with a path in each line; JSON lines with an "image" each; a
    Parquet file with paths or files' bytes in `column`. options: an AskOptions.
    runtime, device, threads: as `edgevlm.load` takes them. workers: sessions beside each other that share the cores;
    None is one, or with `ray` as many as its machines have room for.
    ray: the address of a Ray cluster that computes, "local" for one that is started here. Bundle and pictures lie at
    the same paths on its machines.
    force: replace `out`. retry_errors: ask again about pictures that had an error, also of a finished `out`.
    progress: called as `Progress` says.

    A run that was stopped leaves OUT.partial.jsonl, and the same call goes on with it. Every answer depends on its
    picture alone, not on what was asked before. Raises EdgeVLMError where the run cannot begin or go on.
    """
    try:
        chosen = LabelOptions(**settings)
    except TypeError as error:
        raise EdgeVLMError(f"{str(error).partition('() ')[2] or error}: see edgevlm.label.run.label.") from None
    run = _Run(open_bundle(resolve_bundle(bundle)), Path(pictures), question, Path(out), options, chosen)
    return run.label(progress or (lambda *_: None))


class _Run:
    """The settings of a run, checked as far as it goes without an engine."""

    def __init__(
        self,
        bundle: Bundle,
        place: Path,
        question: str,
        out: Path,
        options: GenerateOptions | None,
        chosen: LabelOptions,
    ) -> None:
        options = AskOptions() if options is None else options
        if not isinstance(options, AskOptions):
            raise EdgeVLMError(f"The options are of type {type(options).__name__}: give edgevlm.AskOptions.")
        if not isinstance(question, str):
            raise EdgeVLMError(f"The question is of type {type(question).__name__}: give a text.")
        check_suffix(out)
        check_new(out, force=True)
        if is_stream(out):
            raise EdgeVLMError(f"'{out}' is no regular file: choose another output.")
        self._bundle, self._out, self._chosen = bundle, out, chosen
        self._pictures = Pictures(place, chosen.column)
        listed = None if place.is_dir() else place
        check_apart([("OUT", out)], [("the bundle", bundle.folder), ("the list of pictures", listed)])
        self._task = Task(question, options, Path.cwd())
        self._journal_place = journal_place(out)
        head = _head(bundle, place, question, options, chosen)
        schema = None if options.schema is None else schema_text(options.schema)
        self._shape = Shape(head, schema, options.scores, names_places(bundle))

    def label(self, progress: Progress) -> Labels:
        out, part, chosen = self._out, self._journal_place, self._chosen
        with disk_errors(out, part), claimed(real_place(out)) as work, disk_errors(out, work):
            if (done := _finished(out, part)) is not None:
                return done
            again = chosen.retry_errors and self._take_up(work / "journal")
            check_new(out, chosen.force or again)
            journal = Journal(part, self._shape.head, work / "journal", retry_errors=chosen.retry_errors)
            try:
                before = journal.count
                total = self._fill(journal, progress)
                journal.sync()
                write_table(read_rows(part), work / "new", out.suffix.lower(), self._shape)
                journal.finish(_identity(work / "new"))
                put(work / "new", out, chosen.force or again)
            finally:
                journal.close()
                if not journal.count:
                    part.unlink()
            part.unlink()
            return Labels(journal.count, journal.errors, journal.count - before, max(0, total - journal.count))

    def _take_up(self, scratch: Path) -> bool:
        """Make a journal of a finished table, whose errors are to be asked about again; whether there is such a table,
        or the journal of it that an earlier run made."""
        out, part = self._out, self._journal_place
        if not out.is_file() or not out.stat().st_size:
            return False
        retries = {RETRIES: _identity(out)}
        if part.exists():
            return (head_line(part) or {}).get(RETRIES) == retries[RETRIES]
        head = head_of(out) or self._shape.head
        check_head(out, head, self._shape.head)
        begin(part, head | retries, read_table(out, self._shape), scratch)
        return True

    def _fill(self, journal: Journal, progress: Progress) -> int:
        """Let the journal have a row for every picture; how many are listed."""
        total, before = self._pictures.count(), journal.count
        if not total:
            raise EdgeVLMError(f"'{self._pictures.place}' holds no picture: check the path.")
        progress(before, total, 0, journal.errors)
        waiting = (picture for picture in self._pictures if picture.name not in journal)
        first = next(waiting, None)
        if first is None:  # an engine takes seconds to open
            return total
        with self._computing() as rows, closing(rows(chain([first], waiting))) as found:
            for row in found:
                journal.write(row)
                progress(journal.count, total, journal.count - before, journal.errors)
        return total

    @contextmanager
    def _computing(self) -> Iterator[Callable[[Iterable[Picture]], Generator[Row, None, None]]]:
        """What makes rows of pictures, here or on a cluster."""
        bundle, chosen = self._bundle, self._chosen
        if chosen.ray is not None:
            from edgevlm.label.ray_ import Cluster, computing_on_ray

            where = Cluster(chosen.ray, chosen.runtime, chosen.device, chosen.threads, chosen.workers)
            with computing_on_ray(bundle, self._task, where) as rows:
                yield rows
            return
        with open_sessions(
            bundle, chosen.workers or 1, chosen.runtime, chosen.device, chosen.threads, reuse=False, cache_bytes=0
        ) as sessions:
            yield Labeller(self._task, sessions).rows


def _head(bundle: Bundle, place: Path, question: str, options: AskOptions, chosen: LabelOptions) -> Row:
    """What every answer of a table depends on, by names for a sentence."""
    manifest = (bundle.folder / MANIFEST).read_bytes()
    head = {
        FORMAT: 1,
        "the bundle": hashlib.sha256(manifest).hexdigest(),
        "the pictures": str(place.resolve()),
        "the column": chosen.column,
        "the question": question,
        "the runtime": chosen.runtime,
        "the device": chosen.device,
        **dataclasses.asdict(options),
    }
    found: Row = parse_json(json_text(head).encode(), halves=True)  # as it is read back
    return found


def _identity(table: Path) -> Row:
    with table.open("rb") as stream:
        return {"size": table.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _finished(out: Path, part: Path) -> Labels | None:
    """A run that was stopped between giving the table its name and removing the journal: nothing is left to do."""
    end = finished(part)
    if end is None or not out.is_file() or end["finished"] != _identity(out):
        return None
    part.unlink()
    return Labels(end["rows"], end["errors"], 0)
