"""Which pictures are asked about: folders, lists and Parquet files, in one order, and nothing dropped in silence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.label.pictures import Picture, Pictures


def draw(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path, "PNG")
    return path


def names(place: Path, **settings: Any) -> list[str]:
    found = Pictures(place, **settings)
    listed = list(found)
    assert found.count() == len(listed)
    return [picture.name for picture in listed]


def test_a_folder_is_walked_by_name_with_all_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("b.png", "a/2.JPG", "a/10.jpg", "ü/ж.png", "a.b/x.webp", "no suffix", "a folder.jpg/in.png"):
        draw(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.jpg").write_bytes(b"")
    for hidden in (".DS_Store", "._b.png", ".cache/x.png"):
        draw(folder / hidden)
    wanted = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in wanted if not any(part.startswith(".") for part in path.parts)]
    expected = [path.as_posix() for path in shown if path.name != "notes.txt"]
    assert sorted(names(folder)) == sorted(expected) and names(folder) == names(folder)
    sources = {picture.name: picture.source for picture in Pictures(folder)}
    assert all(os.path.samefile(str(source), folder / name) for name, source in sources.items())


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder, other = tmp_path / "photos", tmp_path / "other"
    draw(folder / "1.png"), draw(other / "2.png")
    (folder / "there").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder, target_is_directory=True)
    (folder / "3.png").symlink_to(other / "2.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop").symlink_to(folder / "loop")
    assert names(folder) == ["1.png", "3.png", "gone.png", "there/2.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    draw(tmp_path / "p" / "shut" / "1.png")
    (tmp_path / "p" / "shut").chmod(0)
    try:
        (found,) = Pictures(tmp_path / "p")
    finally:
        (tmp_path / "p" / "shut").chmod(0o700)
    assert found.name == "shut/" and "cannot be read" in str(found.source)


def test_a_folder_that_vanishes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "p" / "gone" / "1.png"), draw(tmp_path / "p" / "here.png")
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("gone"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    first, second = Pictures(tmp_path / "p")
    assert first.name == "gone/" and "Permission denied" in str(first.source) and second.name == "here.png"


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(path, "wb") as stream:
            stream.write(b"\x89PNG\r\n\x1a\n")
    except OSError:
        pytest.skip("this file system has text as names only")
    assert names(tmp_path) == ["\udcff.png"]


def test_a_list_of_paths(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a.png\r\nü ж.png\n\n   \r\n/abs/b.png\r\na.png\nlast".encode() + b"\xff")
    assert list(Pictures(tmp_path / "list.txt")) == [
        Picture(name, name) for name in ("a.png", "ü ж.png", "/abs/b.png", "a.png", "last\udcff")
    ]


def test_json_lines_and_their_mistakes(tmp_path: Path) -> None:
    lines = ['{"image": "a.png", "id": 3}', "", "no json", '{"picture": "a.png"}', '{"image": 3}', "[1]", '"a.png"']
    (tmp_path / "list.jsonl").write_bytes("\r\n".join(lines).encode())
    found = list(Pictures(tmp_path / "list.jsonl"))
    assert found[0] == Picture("a.png", "a.png")
    assert [picture.name for picture in found[1:]] == [f"line {number}" for number in (3, 4, 5, 6, 7)]
    assert all(isinstance(picture.source, EdgeVLMError) for picture in found[1:])


def test_parquet_of_paths_bytes_and_images_of_datasets(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "path": ["a.png", None, "ü.png"]}), place)
    first, none, last = Pictures(place)
    assert (first, last) == (Picture("a.png", "a.png"), Picture("ü.png", "ü.png"))
    assert none.name == "1" and "nothing: give a path" in str(none.source)
    content = [bytes([number]) * 9 for number in range(200)]
    pq.write_table(pa.table({"other": content, "n": range(200)}), place, row_group_size=70)
    assert list(Pictures(place, "other")) == [Picture(str(number), data) for number, data in enumerate(content)]
    images = [{"bytes": b"x", "path": "same.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": images}), place)
    assert [picture.name for picture in Pictures(place)] == ["0", "b.png", "2"]
    numbers = pa.table({"image": [1, 2]})
    pq.write_table(numbers, place)
    assert all("holds a value of type int" in str(picture.source) for picture in Pictures(place))


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "t.parquet")
    draw(tmp_path / "one.png")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "list.txt").write_text("a.png\n")
    os.mkfifo(tmp_path / "pipe")
    for name, column, sentence in (
        ("none", None, "There is no"),
        ("t.parquet", None, "has no column of pictures: name one of a, b with --column"),
        ("t.parquet", "c", "has no column 'c'"),
        ("one.png", None, "is one picture: ask about it with `edgevlm run`"),
        ("bad.parquet", None, "is no Parquet file that can be read"),
        ("list.txt", "a", "A column is of a Parquet file"),
        ("pipe", None, "is a named pipe"),
    ):
        with pytest.raises(EdgeVLMError, match=r"^[^\n]*$") as error:
            Pictures(tmp_path / name, column)
        assert sentence in str(error.value)


def test_parquet_that_is_damaged_further_on(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [os.urandom(2000) for _ in range(500)]}), place, row_group_size=50)
    data = bytearray(place.read_bytes())
    data[600_000:601_000] = b"\xff" * 1000
    place.write_bytes(data)
    try:
        assert len(list(Pictures(place))) == 500
    except EdgeVLMError as error:
        assert "is no Parquet file that can be read" in str(error)
