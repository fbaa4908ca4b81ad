"""The file of an eval's answers, one JSON line each: `OUT.part` until the last answer is there, then OUT.

A run that stops leaves OUT.part, which --resume goes on with, and an earlier OUT as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.item import Item, Suite
from edgevlm.io.claims import claimed, work_folder
from edgevlm.io.files import check_new, is_stream, put, real_place
from edgevlm.io.full import disk_errors
from edgevlm.io.json import parse_json
from edgevlm.io.text import json_text

FORMAT = 1
_BEGINNING = b'{"edgevlm_eval"'  # of every file


class AnswerFile:
    """Where answers go as they come; `known` are those of an earlier run, by question. Without a stream, nowhere."""

    def __init__(self, stream: IO[str] | None = None, known: dict[str, str] | None = None) -> None:
        self._stream, self.known = stream, known or {}
        self.written = 0

    def write(self, item: Item, answer: str, suite: Suite) -> None:
        if self._stream is None:
            return
        scored = suite.score(item, answer)
        row = {"id": item.id, "skill": item.skill, "question": item.question, "answer": answer,
               "expected": list(item.answers), "score": scored.score, **scored.figures,
               "pictures": [picture.key for picture in item.pictures]}  # fmt: skip
        self._stream.write(_line(row))
        self._stream.flush()
        self.written += 1


@contextmanager
def answer_file(
    out: Path | None, head: dict[str, Any], *, resume: bool = False, force: bool = False
) -> Iterator[AnswerFile]:
    """The file `out` for a run that is described by `head`, its first line.

    resume: begin with the answers that an earlier run of the same head left. force: replace a file that is there.
    Raises EdgeVLMError where `out` must not be replaced, or belongs to another run.
    """
    head = {"edgevlm_eval": FORMAT, **head}
    if out is None:
        yield AnswerFile()
        return
    if is_stream(out):
        with out.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(_line(head))
            yield AnswerFile(stream)
        return
    part = _part(out)
    place = real_place(out)
    with disk_errors(out, work_folder(place)), claimed(place), disk_errors(out, part):
        check_answers(out, resume, force)
        known = _begin(out, part, head, resume)
        try:
            with part.open("a", encoding="utf-8", newline="\n") as stream:
                lines = AnswerFile(stream, known)
                yield lines
            put(part, out, force or resume)
        except BaseException:
            if not known and not lines.written:
                part.unlink(missing_ok=True)
            raise


def check_answers(out: Path, resume: bool = False, force: bool = False) -> None:
    """Refuse a file that `answer_file` would not write, before any work."""
    check_new(out, force or resume)
    part = _part(out)
    if is_stream(out) or resume or not part.exists():
        return
    start = _first_bytes(part)
    if start[: len(_BEGINNING)] != _BEGINNING[: len(start)]:
        raise EdgeVLMError(
            f"'{part}', where answers lie until the last of them is there, is not what an eval writes: move it away, "
            "or give --out another name."
        )
    if b"\n" in start.rstrip(b"\n") and not force:
        raise EdgeVLMError(
            f"'{part}' has the answers of a run that was stopped: go on with them by --resume, or begin again with "
            "--force."
        )


def _part(out: Path) -> Path:
    place = real_place(out)
    return place.with_name(f"{place.name}.part")


def _line(row: dict[str, Any]) -> str:
    return json_text(row) + "\n"


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        return b"no file"
    with path.open("rb") as stream:
        return stream.read(1 << 16)


def _begin(out: Path, part: Path, head: dict[str, Any], resume: bool) -> dict[str, str]:
    """Write what `part` begins with; the answers in it, by question."""
    earlier = part if part.is_file() else out
    whole, known = _read(earlier, head) if resume and earlier.is_file() else (b"", {})
    part.write_bytes(whole if known else _line(head).encode())
    return known


def _read(path: Path, head: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The whole lines of an earlier run's file, and its answers by question."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and _BEGINNING.startswith(data[: len(_BEGINNING)]):  # stopped in its first line
        return b"", {}
    try:
        first, *lines = [parse_json(line, halves=True) for line in whole.splitlines()]
        known = {line["id"]: str(line["answer"]) for line in lines}
    except (ValueError, KeyError, TypeError):
        raise EdgeVLMError(f"'{path}' is not what an eval writes: give --out another name.") from None
    different = sorted(key for key in head if not isinstance(first, dict) or first.get(key) != head[key])
    if different:
        raise EdgeVLMError(
            f"'{path}' belongs to another run ({', '.join(different)} differ): give --out another name, or begin again "
            "with --force instead of --resume."
        )
    return whole, known
