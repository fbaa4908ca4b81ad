"""`edgevlm run --input`: a question from each line of a file, an answer or an error to each."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.errors import Closed, EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.console import note, write_json
from edgevlm.io.json import parse_json
from edgevlm.io.regular import lines_of, read_lines

if TYPE_CHECKING:
    from edgevlm.generate.answer import Answer
    from edgevlm.generate.chat import AskOptions
    from edgevlm.generate.loop import Pipeline

KEYS = ("id", "question", "messages", "image", "images", "options")
FORM = '{"id": 1, "image": "photo.jpg", "question": "What is this?"}'


def figures(answer: Answer) -> dict[str, Any]:
    """An answer with its places and timings as JSON values."""
    places = {name: [dataclasses.asdict(place) for place in getattr(answer, name)] for name in ("boxes", "points")}
    timings = dataclasses.asdict(answer.timings)
    scored = {} if answer.scores is None else {"scores": answer.scores}
    return {"answer": answer.text, **scored, **places, **timings, "finish_reason": answer.finish_reason}


def answer_lines(pipeline: Pipeline, place: str, question: str | None, options: AskOptions) -> None:
    """Write a JSON line for each question at `place`, in order: an answer, or what was wrong with it.

    place: a file of JSON lines, "-" for standard input, or a folder of pictures. question: of lines without their own.
    """
    count = wrong = 0
    for number, row in _rows(place):
        count += 1
        try:
            found = {"id": number, **figures(_answer(pipeline, row, question, options))}
        except Closed:
            raise
        except EdgeVLMError as error:
            found, wrong = {"id": number, "error": str(error)}, wrong + 1
        if isinstance(row, dict) and row.get("id") is not None:
            found["id"] = row["id"]
        write_json(found)
    if not count:
        if os.path.isdir(place):
            raise EdgeVLMError(f"'{place}' holds no picture: check the path.")
        raise EdgeVLMError(f"'{place}' holds no question: write lines such as {FORM}.")
    if wrong:
        note(f'{wrong} of {count} questions had no answer: see their lines\' "error".')


def check_input(place: str) -> None:
    """Refuse, before a model is opened, what cannot be read."""
    if place != "-" and not os.path.exists(place):
        raise EdgeVLMError(f"There is no file '{place}': give a file of JSON lines, - for standard input, or a folder.")


def _answer(pipeline: Pipeline, row: Any, question: str | None, options: AskOptions) -> Answer:
    from edgevlm.generate.chat import put

    if isinstance(row, EdgeVLMError):
        raise row
    if not isinstance(row, dict):
        raise EdgeVLMError(f"A line holds a {type(row).__name__}: write an object, such as {FORM}.")
    if unknown := sorted(row.keys() - set(KEYS)):
        raise EdgeVLMError(f"The key '{unknown[0][:80]}' is unknown: use {', '.join(KEYS)}.")
    if ("image" in row and "images" in row) or ("question" in row and "messages" in row):
        raise EdgeVLMError("A line has two keys of one meaning: give image or images, and question or messages.")
    pictures = row.get("images", [row["image"]] if "image" in row else [])
    if not isinstance(pictures, list) or not all(isinstance(picture, str) for picture in pictures):
        raise EdgeVLMError("The pictures of a line are no texts: give paths, or data: URLs.")
    asked = row.get("messages", row.get("question", question))
    if asked is None:
        raise EdgeVLMError("A line has no question: add one, or give one for all of them as the last argument.")
    return put(pipeline, asked, pictures, _with(options, row.get("options", {}))).answer


def _with(options: AskOptions, changes: Any) -> AskOptions:
    names = [field.name for field in dataclasses.fields(options)]
    if not isinstance(changes, dict) or (changes.keys() - set(names)):
        raise EdgeVLMError(f"The options of a line are an object with names of {', '.join(names)}: correct them.")
    return dataclasses.replace(options, **changes)


def _rows(place: str) -> Iterator[tuple[int | str, Any]]:
    """What a row is called where it has no id, and its value or what is wrong with it."""
    if os.path.isdir(place):
        from edgevlm.label.pictures import in_folder

        for picture in in_folder(Path(place)):
            path = os.path.join(place, picture.name)
            yield path, picture.source if isinstance(picture.source, EdgeVLMError) else {"image": path}
        return
    lines = lines_of(sys.stdin.buffer, limits.LINE) if place == "-" else read_lines(Path(place), limits.LINE)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ValueError as error:
            yield number, EdgeVLMError(f"Line {number} is no JSON ({error}): write an object, such as {FORM}.")
