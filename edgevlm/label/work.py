"""One question, put about one picture after the other: each becomes a row, an error too."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import Closed, EdgeVLMError
from edgevlm.generate.answer import Answer
from edgevlm.generate.chat import AskOptions, put
from edgevlm.generate.given import is_address, load_picture
from edgevlm.generate.pool import Session, in_order
from edgevlm.label.journal import Row
from edgevlm.label.pictures import Picture

_REPEATS = 10_000  # answers that are kept for pictures of the same content
_LONGEST = 1000  # characters of an error


@dataclass(frozen=True)
class Task:
    """What is asked about every picture, and the folder that relative paths are of."""

    question: str
    options: AskOptions
    folder: Path


class Labeller:
    """Answers about pictures, by a session of its own for each thread. A picture whose content was asked about
    a moment ago is not asked about again."""

    def __init__(self, task: Task, sessions: Sequence[Session]) -> None:
        """Raises EdgeVLMError, before the first picture, for what would be wrong with every one of them."""
        self._task, self._sessions = task, sessions
        self._recent: OrderedDict[str, Row] = OrderedDict()
        self._lock = threading.Lock()
        put(sessions[0].pipeline, task.question, [Image.new("RGB", (64, 64))], task.options).close()

    def rows(self, pictures: Iterable[Picture]) -> Generator[Row, None, None]:
        """A row for each picture, in order, with a bounded look-ahead."""
        return in_order(pictures, self._sessions, self._row)

    def row(self, picture: Picture) -> Row:
        """The row of one picture, by the first session."""
        return self._row(self._sessions[0], picture)

    def _row(self, session: Session, picture: Picture) -> Row:
        start = time.perf_counter()
        row: Row = {"picture": picture.name, "sha256": None, "answer": None, "error": None, "tokens": 0, "seconds": 0.0}
        try:
            content = self._content(picture)
            row["sha256"] = hashlib.sha256(content).hexdigest()
            row |= self._answered(session, row["sha256"], content)
        except Closed:
            raise
        except EdgeVLMError as error:
            row["error"] = str(error)[:_LONGEST]
        row["seconds"] = round(time.perf_counter() - start, 6)
        return row

    def _content(self, picture: Picture) -> bytes:
        """The bytes of the picture's file: what is hashed is what is asked about."""
        if isinstance(picture.source, EdgeVLMError):
            raise picture.source
        source = picture.source
        if isinstance(source, str) and not is_address(source):
            _, content = load_picture(self._task.folder / source)
        else:
            _, content = load_picture(source)
        assert isinstance(content, bytes)
        return content

    def _answered(self, session: Session, digest: str, content: bytes) -> Row:
        with self._lock:
            known = self._recent.get(digest)
        if known is None:
            known = _figures(session.answer(self._task.question, [content], self._task.options), self._task.options)
            with self._lock:
                self._recent[digest] = known
                if len(self._recent) > _REPEATS:
                    self._recent.popitem(last=False)
        return known


def names_places(bundle: Bundle) -> bool:
    """Whether the model's answers are read for boxes and points."""
    return bundle.prompt_spec.grounding is not None


def _figures(answer: Answer, options: AskOptions) -> Row:
    row: Row = {"answer": answer.text, "tokens": answer.timings.answer_tokens}
    if options.constrained and answer.finish_reason == "length":
        row["answer"] = None
        row["error"] = f"The answer was not complete after {row['tokens']} tokens: raise --max-tokens."
    if answer.scores is not None:
        row["scores"] = answer.scores
    for name in ("boxes", "points"):
        if places := getattr(answer, name):
            row[name] = [dataclasses.asdict(place) for place in places]
    return row
