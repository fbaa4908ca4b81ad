"""A picture's kind is what its bytes say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from edgevlm.inputs.decode import looks_like_picture, open_image
from edgevlm.inputs.kinds import kind_of

# Each format that is read, with the modes in which Pillow writes it under other signatures.
SAVED = {
    "JPEG": ("RGB", "L"), "PNG": ("RGBA", "1"), "WEBP": ("RGB",), "GIF": ("P",), "BMP": ("RGB", "1"),
    "TIFF": ("RGB", "I;16", "I;16B"), "PPM": ("1", "L", "RGB", "F"), "JPEG2000": ("RGB",), "ICO": ("RGBA",),
    "AVIF": ("RGB",),
}  # fmt: skip
NAMES = ("photo", "photo.jfif", "photo.txt", "photo.jp2")


def saved(kind: str, mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 20, 30)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", SAVED)
def test_a_pictures_kind_is_what_its_bytes_say(kind: str, tmp_path: Path) -> None:
    for mode in SAVED[kind]:
        content = saved(kind, mode)
        assert kind_of(content) == kind, mode
        for name in NAMES:
            path = tmp_path / name
            path.write_bytes(content)
            assert looks_like_picture(path) and looks_like_picture(str(path))
        assert open_image(path).shape == (16, 16, 3)


def test_other_forms_of_the_same_kinds() -> None:
    assert kind_of(saved("JPEG2000", "RGB", no_jp2=True)) == "JPEG2000"
    assert kind_of(saved("TIFF", "RGB", big_tiff=True)) == "TIFF"
    assert kind_of(saved("GIF", "P", save_all=True, append_images=[Image.new("P", (16, 16))])) == "GIF"
    assert kind_of(b"P5 # made by hand\n1 1\n255\n\0") == kind_of(b"P1\n#" + b"x" * 9000) == "PPM"
    assert kind_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafavif") == "AVIF"
    assert kind_of(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "HEIC"


@pytest.mark.parametrize(
    "content",
    [b"", b"What is this?", b"P", b"P5", b"Pf what is it", b"BMW makes cars, and what else?", b"MM", b"II", b"\xff\xd8",
     b"GIF89", b"\0\0\1\0\0\0", b"RIFF....WAVE", b"%PDF-1.7", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"{}", b"\0" * 64],
)  # fmt: skip
def test_other_files_are_no_pictures(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    assert kind_of(content) is None and not looks_like_picture(tmp_path / "photo.jpg")


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch.jpg", "a\0b", "What is on the table?", "/dev/zero", "x" * 5000, ""):
        assert not looks_like_picture(path)
