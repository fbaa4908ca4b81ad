"""What a calibration may be pointed at: folders, JSONL files, the package, and everything that is none of these."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.export.calibrate.data import (
    MAX_PICTURES,
    QUESTIONS,
    QUESTIONS_EACH,
    default_source,
    generated_scenes,
    read_source,
)
from edgevlm.verify.gate import PICTURES


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def test_a_folder_gives_its_pictures_evenly_spread(tmp_path: Path) -> None:
    for number in range(MAX_PICTURES * 2):
        picture(tmp_path / "deep" / f"{number:03d}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_source(str(tmp_path)).pictures
    assert len(found) == MAX_PICTURES
    assert [e.question for e in found[0]] == list(QUESTIONS) and found[0][0].answer is None
    names = [asked[0].image.name for asked in found if isinstance(asked[0].image, Path)]
    assert (names[0], names[-1]) == ("000.png", f"{MAX_PICTURES * 2 - 1:03d}.png")


def test_lines_are_grouped_by_picture(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "question": f"q{i}", "answer": str(i), "extra": [1]} for i in range(QUESTIONS_EACH + 9)]
    lines.append({"image": "sub/b.png", "question": "what?"})
    path = tmp_path / "set.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second = read_source(str(path)).pictures
    assert len(first) == QUESTIONS_EACH and first[0].answer == "0" and first[0].image == tmp_path / "a.png"
    assert second[0].answer is None and second[0].image == tmp_path / "sub/b.png"


def test_a_scenes_folder_brings_its_questions(tmp_path: Path) -> None:
    from edgevlm.scenes import write_scenes

    write_scenes(tmp_path / "s", "train", 3, 2)
    source = read_source(str(tmp_path / "s"))
    assert len(source.pictures) == 2 and all(e.answer for asked in source.pictures for e in asked)


def test_the_default_keeps_off_what_is_measured_on() -> None:
    source = default_source()
    paths = {e.image.name for asked in source.pictures for e in asked if isinstance(e.image, Path)}
    assert paths and not paths & set(PICTURES)
    again = generated_scenes(2)
    for first, second in zip(generated_scenes(2), again, strict=True):
        assert [e.question for e in first] == [e.question for e in second]
        assert first[0].image == second[0].image  # the same pixels
        assert all(e.answer for e in first) and len(first) <= QUESTIONS_EACH


def test_nothing_here_needs_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from edgevlm.export.calibrate.data import *; default_source()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: calibration needs lines such as"),
        (b"\n\n", "is empty"),
        (b"{not json}", "Line 1 of .* is not an example"),
        (b'\n{"image": "a.png"}', "Line 2 of .* is not an example .'question'"),
        (b"[1, 2]", "Line 1 of .* is not an example"),
        (b'{"image": 3, "question": "q"}', "should be texts"),
        (b'{"image": "a.png", "question": "q", "answer": 3}', "should be texts"),
        (b'{"image": "a\\u0000b", "question": "q"}', "image or question is empty"),
        (b'{"image": "a.png", "question": " "}', "image or question is empty"),
        (b"\xff\xfe", "Line 1 of .* is not an example"),
        (b"[" * 200_000, "Line 1 of .* is not an example"),
        (b'"' + b"x" * (2 << 20), "Line 1 of .* is not an example .it has over"),
        (b"\x89PNG\r\n\x1a\n\0\0", "Line 1 of .* is not an example"),
    ],
)
def test_other_lines_are_refused_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(EdgeVLMError, match=sentence):
        read_source(str(path))


def test_places_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="holds no pictures to calibrate on"):
        read_source(str(tmp_path))
    with pytest.raises(EdgeVLMError, match="nothing to calibrate on at 'nowhere'"):
        read_source("nowhere")
