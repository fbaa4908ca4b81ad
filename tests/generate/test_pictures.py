"""Pictures are prepared and encoded once: what is kept is the engine's own, bounded, and on disk checked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError, EdgeVLMWarning
from edgevlm.generate import array_folder
from edgevlm.generate.array_folder import PART, SUFFIX, ArrayFolder
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.generate.pictures import PictureCache
from edgevlm.generate.stored_pictures import StoredPictures
from edgevlm.inputs.preprocess import array_key
from edgevlm.runtimes import open_runtime
from edgevlm.types import F32, U8

SHORT = GenerateOptions(max_tokens=3)


class Counting:
    """The bundle's encoder, with what it was asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self._runtime = open_runtime(bundle, threads=1)
        self.name, self.device = self._runtime.encoder.name, self._runtime.encoder.device
        self.count = 0

    def encode(self, views: Sequence[U8]) -> list[F32]:
        self.count += len(views)
        return self._runtime.encoder.encode(views)

    def close(self) -> None:
        self._runtime.close()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def encoder(bundle: Bundle) -> Counting:
    return Counting(bundle)


def views(count: int, seed: int = 0) -> list[U8]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8))


def ask(cache: PictureCache, encoder: Any, given: Sequence[U8]) -> list[F32]:
    return cache.features(encoder, given, [array_key(view) for view in given], lambda: False)


def test_features_are_the_engines_own_and_made_once(encoder: Counting) -> None:
    cache, given = PictureCache(), views(3)
    wanted = encoder.encode(given)
    for _ in range(3):
        np.testing.assert_array_equal(ask(cache, encoder, given), wanted)
    assert encoder.count == 6
    ask(cache, encoder, [*given[::-1], *views(1, 1)])
    assert encoder.count == 7


def test_the_least_recently_used_goes_first_and_the_limit_holds(encoder: Counting) -> None:
    given = views(6)
    size = encoder.encode(given[:1])[0].nbytes
    cache = PictureCache(3 * size)
    encoder.count = 0
    for place in (0, 1, 2, 0, 3):
        ask(cache, encoder, [given[place]])
    assert encoder.count == 4 and cache.held == 3 * size
    ask(cache, encoder, [given[0]])
    ask(cache, encoder, [given[2]])
    assert encoder.count == 4
    ask(cache, encoder, [given[1]])  # the one that was dropped
    assert encoder.count == 5
    assert len(ask(cache, encoder, given)) == 6 and cache.held <= 3 * size  # more than it keeps, given back whole
    cache.clear()
    assert cache.held == 0
    nothing = PictureCache(0)
    ask(nothing, encoder, given)
    assert nothing.held == 0
    for limit in (-1, 1.5, True, "64"):
        with pytest.raises(EdgeVLMError, match="The limit of the picture cache is"):
            PictureCache(limit)  # type: ignore[arg-type]


def test_a_question_that_is_stopped_encodes_no_further(encoder: Counting) -> None:
    given = views(5)
    assert len(PictureCache().features(encoder, given, list(map(array_key, given)), lambda: encoder.count >= 2)) == 2


def test_a_picture_in_any_form_is_known_by_what_it_holds(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevlm.generate import pictures

    cut: list[object] = []
    real = pictures.cut_views
    monkeypatch.setattr(pictures, "cut_views", lambda *given: cut.append(1) or real(*given))
    pipeline = Pipeline(bundle, open_runtime(bundle, threads=1))
    image = Image.fromarray(views(1)[0])
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    for source in (tmp_path / "a.png", str(tmp_path / "b.png"), (tmp_path / "a.png").read_bytes()):
        pipeline.prepare([source], "What?")
    assert len(cut) == 1
    for source in (image, np.asarray(image)):
        pipeline.prepare([source], "What?")
    assert len(cut) == 2
    Image.fromarray(views(1, 1)[0]).save(tmp_path / "a.png")  # another picture under the same name
    one, other = (pipeline.prepare([tmp_path / name], "What?").views[0] for name in ("a.png", "b.png"))
    assert len(cut) == 3 and not np.array_equal(one, other)
    pipeline.prepare([tmp_path / "a.png"], "What?", max_tiles=1)
    assert len(cut) == 4
    pipeline.runtime.close()


# --- on disk -----------------------------------------------------------------------------------------------


def test_another_process_finds_them(bundle: Bundle, encoder: Counting, tmp_path: Path) -> None:
    given = views(3)
    wanted = ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)
    assert encoder.count == 3 and len(list(tmp_path.iterdir())) == 3
    found = ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)
    assert encoder.count == 3
    np.testing.assert_array_equal(found, wanted)
    encoder.device = "another one"  # whose kernels may round otherwise
    ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)
    assert encoder.count == 6


def _shaped(content: bytes, shape: str) -> bytes:
    return content.replace(b"[16, 64]", shape.encode())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-5],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0\0\0\0",
    "a bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "another kind": lambda content: b"\x93NUMPY" + content,
    "no head": lambda content: content.replace(b"\n", b"", 2),
    "a head without end": lambda content: content[:19] + b"{" * 100_000,
    "another shape": lambda content: _shaped(content, "[64, 16]"),
    "a shape of another size": lambda content: _shaped(content, "[16, 65]"),
    "a negative shape": lambda content: _shaped(content, "[-1, 64]"),
    "a shape of text": lambda content: _shaped(content, '"16, 64"'),
    "another type": lambda content: content.replace(b'"<f4"', b'"<i4"'),
    "an array beside": lambda content: content.replace(b'{"arrays": {', b'{"arrays": {"x": ["<f4", [1]], '),
    "an endless size": lambda content: _shaped(content, "[16, 1e400]"),
    "an object": lambda content: content.replace(b'"<f4"', b'"|O"'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_counts_as_none_and_is_replaced(
    name: str, bundle: Bundle, encoder: Counting, tmp_path: Path
) -> None:
    given = views(1)
    wanted = ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[name](whole))
    assert path.read_bytes() != whole
    np.testing.assert_array_equal(
        ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given), wanted
    )
    assert encoder.count == 2 and path.read_bytes() == whole


def test_files_of_other_kinds_are_no_features(bundle: Bundle, encoder: Counting, tmp_path: Path) -> None:
    given = views(1)
    ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)
    (path,) = tmp_path.iterdir()
    path.unlink()
    os.mkfifo(path)  # would keep a reader waiting for ever
    assert StoredPictures(ArrayFolder(tmp_path), bundle, encoder).read(array_key(given[0])) is None
    path.unlink()
    path.mkdir()
    with pytest.warns(EdgeVLMWarning, match="cannot be written to"):
        ask(PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, encoder)), encoder, given)


def test_the_folder_is_bounded_and_the_oldest_go(bundle: Bundle, encoder: Counting, tmp_path: Path) -> None:
    given = views(8)
    folder = StoredPictures(ArrayFolder(tmp_path), bundle, encoder)
    ask(PictureCache(stored=folder), encoder, given[:1])
    (first,) = tmp_path.iterdir()
    size = first.stat().st_size
    folder = StoredPictures(ArrayFolder(tmp_path, 3 * size), bundle, encoder)
    for number, view in enumerate(given):
        ask(PictureCache(stored=folder), encoder, [view])
        for path in tmp_path.iterdir():
            if path != first and path.stat().st_mtime > 1e9:
                os.utime(path, (number + 1, number + 1))
        os.utime(first, (1e6, 1e6))  # used last
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size
    assert first.exists()
    encoder.count = 0
    ask(PictureCache(stored=folder), encoder, [given[0], given[-1]])
    assert encoder.count == 0
    tiny = StoredPictures(ArrayFolder(tmp_path, 10), bundle, encoder)
    assert list(tmp_path.iterdir()) == []
    ask(PictureCache(stored=tiny), encoder, given[:1])
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes(bundle: Bundle, encoder: Counting, tmp_path: Path) -> None:
    for name, age in ((f"old{PART}", 2 * array_folder.STALE), (f"new{PART}", 0.0), ("other.txt", 1e6)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    StoredPictures(ArrayFolder(tmp_path, 1), bundle, encoder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"new{PART}", "other.txt"]


def test_a_folder_that_cannot_be_used(bundle: Bundle, encoder: Counting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "nul\0"):
        with pytest.raises(EdgeVLMError, match=r"The folder '.*' cannot be used \(.*\): choose another one\."):
            StoredPictures(ArrayFolder(place), bundle, encoder)
    folder = StoredPictures(ArrayFolder(tmp_path / "gone"), bundle, encoder)
    (tmp_path / "gone").rmdir()
    cache = PictureCache(stored=folder)
    with pytest.warns(EdgeVLMWarning, match="nothing more is kept there") as caught:
        assert len(ask(cache, encoder, views(3))) == 3
    assert len(caught) == 1


WORKER = """
import sys
import numpy as np
from edgevlm.bundle.manifest import open_bundle
from edgevlm.generate.array_folder import ArrayFolder
from edgevlm.generate.stored_pictures import StoredPictures
from types import SimpleNamespace

bundle, place = open_bundle(sys.argv[1]), sys.argv[2]
random = np.random.default_rng(int(sys.argv[3]))
folder = StoredPictures(ArrayFolder(place, 40 * 4300), bundle, SimpleNamespace(name="n", device="d"))
for _ in range(400):
    number = int(random.integers(60))
    key = bytes([number]) * 32
    found = folder.read(key)
    if found is None:
        folder.write(key, np.full((16, 64), number, np.float32))
    else:
        assert found.shape == (16, 64) and (found == number).all()
print("done")
"""


def test_several_processes_share_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    """Each writes, reads and removes; none sees half of a file, and the bound holds in the end."""
    command = [sys.executable, "-W", "error", "-c", WORKER, str(bundle.folder), str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for seed in range(3)
    ]
    for child in running:
        out, err = child.communicate(timeout=120)
        assert out == b"done\n", err.decode()
    names = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(SUFFIX) for name in names)
    # A process counts what others wrote once in 64 files of its own.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= (40 + 2 * 64) * 4300


def test_an_answer_with_features_from_disk_is_the_same(bundle: Bundle, tmp_path: Path) -> None:
    answers = []
    for _ in range(2):
        runtime = open_runtime(bundle, threads=1)
        cache = PictureCache(stored=StoredPictures(ArrayFolder(tmp_path), bundle, runtime.encoder))
        answers.append(Pipeline(bundle, runtime, pictures=cache).answer(views(2), "What?", SHORT))
        runtime.close()
    assert answers[0].ids == answers[1].ids
