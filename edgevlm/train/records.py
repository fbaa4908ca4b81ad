"""The records of a training set by number: a Scenes folder, or a .jsonl or .json file, read one record at a time.

Only the offset of each record is in memory, so a file may be larger than memory.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.regular import MARK, open_regular, read_regular
from edgevlm.train.conversations import BadRecord, Conversation, parse_record
from edgevlm.types import Progress

SHOWN = 10  # bad records that are listed; the rest are only counted


class Records:
    """The Conversations of one data set. Records of one picture that stand together in a Scenes folder are one.

    path: a Scenes folder, a .jsonl or a .json file. images: the folder that image paths start from (default: the
    data's own). pairs: records hold "chosen" and "rejected". Every record is checked on opening, all but its
    pictures' pixels. Raises EdgeVLMError that counts the bad records and names the first ones, unless `skip_bad`:
    then `bad` counts them and `shown` has their sentences.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: Path | None = None,
        skip_bad: bool = False,
        pairs: bool = False,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.path = _file(path)
        self.images = images or self.path.parent
        self._pairs, self._grouped = pairs, path.is_dir()
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")
        self._firsts = array("q")  # records at which a Conversation begins
        self._stream: tuple[int, Any] | None = None
        self.bad = 0
        self.shown: list[str] = []
        self._index(progress)
        if self.bad and not skip_bad:
            listed = "".join(f"\n  {sentence}" for sentence in self.shown)
            raise EdgeVLMError(
                f"{self.bad} of {self.bad + len(self._starts)} records of '{self.path}' are bad; fix them, or leave "
                f"them out with --skip-bad:{listed}" + ("\n  ..." if self.bad > SHOWN else "")
            )
        if not len(self):
            raise EdgeVLMError(f"'{self.path}' holds no usable record: give data with at least one.")

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, number: int) -> Conversation:
        last = self._firsts[number + 1] if number + 1 < len(self) else len(self._starts)
        found = [self._read(record) for record in range(self._firsts[number], last)]
        dialogues = tuple(dialogue for one in found for dialogue in one.dialogues)
        return Conversation(found[0].place, found[0].images, dialogues)

    def _read(self, record: int) -> Conversation:
        # Opened once per process: a forked worker must not share its parent's position in the file.
        if self._stream is None or self._stream[0] != os.getpid():
            self._stream = (os.getpid(), open_regular(self.path))
        stream = self._stream[1]
        stream.seek(self._starts[record])
        return self._parse(stream.read(self._sizes[record]), self._lines[record])

    def _parse(self, text: bytes, line: int) -> Conversation:
        return parse_record(text, f"{self.path.name}:{line}", self.images, pairs=self._pairs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None}

    def _index(self, progress: Progress) -> None:
        total, last = self.path.stat().st_size, None
        records = _lines(self.path) if self.path.suffix == ".jsonl" else _elements(self.path)
        for start, line, text in records:
            if len(self._starts) % 1000 == 0:
                progress("checking the data", start, total)
            try:
                if len(text) >= limits.LINE:
                    raise BadRecord(f"{self.path.name}:{line}: the record is longer than {limits.LINE >> 20} MiB")
                conversation = self._parse(text, line)
            except BadRecord as error:
                self.bad += 1
                self.shown += [str(error)] if self.bad <= SHOWN else []
                continue
            if not (self._grouped and last == conversation.images):
                self._firsts.append(len(self._starts))
            last = conversation.images
            self._starts.append(start)
            self._sizes.append(len(text))
            self._lines.append(line)
        progress("checking the data", total, total)


def _file(path: Path) -> Path:
    if path.is_dir():
        questions = path / "questions.jsonl"
        if not (path / "dataset.json").is_file() or not questions.is_file():
            raise EdgeVLMError(
                f"'{path}' is no Scenes folder (dataset.json and questions.jsonl): give one, or a .jsonl or .json file."
            )
        return questions
    if not path.is_file():
        raise EdgeVLMError(f"The data '{path}' do not exist: give a Scenes folder, or a .jsonl or .json file.")
    if path.suffix not in (".jsonl", ".json"):
        raise EdgeVLMError(f"'{path}' is neither .jsonl nor .json: give a Scenes folder, or one of these.")
    return path


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(offset, line number from 1, text) of each line that is not blank."""
    line = 0
    with open_regular(path) as stream:
        start = len(MARK) if stream.peek(len(MARK)).startswith(MARK) else 0
        stream.seek(start)
        while text := stream.readline(limits.LINE):
            line += 1
            yield from [(start, line, text)] if text.strip() else []
            start += len(text)
            while text and not text.endswith(b"\n"):  # the rest of a line that is too long
                text = stream.readline(limits.LINE)
                start += len(text)


def _elements(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(offset, line number from 1, text) of each element of a JSON array; what does not parse comes as one element."""
    data = read_regular(path, limits.DATA_FILE, "name a file of one record per line .jsonl")
    text = data.decode("latin-1")  # one character per byte, so that places in it are offsets
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    opening = re.match(r"(?:\xef\xbb\xbf)?\s*\[", text)
    if opening is None:
        raise EdgeVLMError(f"'{path}' is no JSON array: give a list of records, or name a file of one per line .jsonl.")
    at, line, counted = opening.end(), 1, 0
    while True:
        found = gap.match(text, at)
        at = found.end() if found else at
        line, counted = line + data.count(b"\n", counted, at), at
        if text.startswith("]", at):
            return
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            yield at, line, data[at : at + 200] or b"(the file ends inside the array)"
            return
        yield at, line, data[at:end]
        at = end
