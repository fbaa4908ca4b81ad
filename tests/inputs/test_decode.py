"""Pictures that ask for far more than their bytes: refused, or decoded in a bounded process, in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError, EdgeVLMWarning
from edgevlm.inputs import decode
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.picture_limits import MAX_BYTES, MOST_SCANS, OPEN_READS, count_scans
from edgevlm.io.child import Limits


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Black and grey, of one bit a pixel."""
    row = zlib.compress(bytes(1 + (width + 7) // 8) * min(height, 1000), 9)
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + before + chunk(b"IDAT", row) + after + chunk(b"IEND")


def progressive(width: int, height: int, more_scans: int) -> bytes:
    """A JPEG whose last scan's header is repeated; a scan without data is a pass over all pixels all the same."""
    content = saved(Image.new("L", (width, height)), "JPEG", progressive=True)
    at = content.rindex(b"\xff\xda")
    header = content[at : at + 2 + int.from_bytes(content[at + 2 : at + 4])]
    return content[:-2] + header * more_scans + content[-2:]


def bmp(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + bytes(1024) + runs


def ico(inside: bytes) -> bytes:
    """An icon that says 16 x 16."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def vp8x(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<II", 10, 2) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


REFUSED = {
    "a long PNG": (png(1, 44_000_000), "has 1 x 44000000 pixels, at most 65535 a side are read"),
    "a longer PNG": (png(1, 89_000_000), "at most 65535 a side"),
    "a wide PNG": (png(45_000_000, 1), "at most 65535 a side"),
    "a JPEG of hundreds of scans": (progressive(4000, 4000, 700), r"is a JPEG of 70\d scans, at most 50 are read"),
    "an endless JPEG header": (b"\xff\xd8" + b"\xff" * (OPEN_READS + 9), "made of far more pieces|not a picture"),
    "a PNG of a million chunks": (png(9, 9, before=chunk(b"aaAA") * OPEN_READS), "made of far more pieces"),
    "a GIF of endless comments": (b"GIF89a\t\0\t\0\0\0\0!\xfe" + b"\1c" * OPEN_READS, "made of far more pieces"),
    "a WebP canvas": (vp8x(1 << 24, 1 << 24), "16777216 x 16777216 pixels, at most 89.5 million"),
    "an icon with a large PNG inside": (ico(png(30_000, 30_000)), "damaged|pixels, at most|not a picture"),
    "an icon with a long PNG inside": (ico(png(2, 2_000_000)), "2 x 2000000 pixels, at most 65535 a side"),
    "a TIFF of many pixels": (saved(Image.new("1", (70_000, 1)), "TIFF"), "70000 x 1 pixels, at most 65535 a side"),
    "HEIC": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "is a HEIC picture, which is not read: save it as JPEG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_what_asks_for_too_much(name: str) -> None:
    content, sentence = REFUSED[name]
    start = time.process_time()
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        open_image(content)
    assert "\n" not in str(caught.value) and time.process_time() - start < 3


def test_a_pillow_image_has_the_same_bounds() -> None:
    with pytest.raises(EdgeVLMError, match="at most 65535 a side"):
        open_image(Image.new("1", (66_000, 1)))


def test_a_file_of_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with path.open("wb") as stream:
        stream.write(png(9, 9))
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(EdgeVLMError, match="has more than 512 MiB"):
        open_image(path)


def test_scans_are_counted_as_a_decoder_sees_them() -> None:
    """Not in what only looks like a scan: in a comment, in another picture behind the end."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    plain = saved(image, "JPEG", comment=b"\xff\xda" * 99) + b"\xff\xda\0\2" * 99
    assert count_scans(plain) == 1 and open_image(plain).shape == (40, 40, 3)
    assert count_scans(saved(image, "JPEG", progressive=True)) == 10  # libjpeg's own script for three components
    assert count_scans(saved(image, "JPEG", progressive=True, restart_marker_blocks=1)) == 10
    most = progressive(16, 16, MOST_SCANS - count_scans(progressive(16, 16, 0)))
    assert count_scans(most) == MOST_SCANS and open_image(most).shape == (16, 16, 3)
    assert count_scans(b"\xff\xd8\xff\xda") == 1 and count_scans(b"\xff\xd8" + b"\xff" * 9) == 0


SLOW = {
    "a PPM with a long comment": b"P6\n#" + b" " * 30_000_000 + b"\n1 1\n255\n123",
    "a PPM with many comments": b"P3\n100 100\n255\n" + b"#\n" * 400_000 + b"1 " * 30_000,
    "a PPM of odd values": b"P6\n3000 3000\n100\n" + bytes(27_000_000),
    "a BMP of empty rows": bmp(65_535, 1365, b"\1\2\0\0" * 1365),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_long_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "APART", Limits(seconds=1, memory=1 << 30))
    with pytest.raises(EdgeVLMError, match=r"The image, a (PPM|BMP) file, took longer than 1 seconds: save it as PNG"):
        open_image(SLOW[name])


def test_what_takes_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "APART", Limits(seconds=60, memory=160 << 20))
    content = saved(Image.new("L", (6000, 6000)), "TIFF", compression="tiff_lzw")
    with pytest.raises(EdgeVLMError, match=r"needs more memory than there is|needed more than 160 MiB"):
        open_image(content)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "ICO", "PPM"])
def test_the_second_process_gives_what_pillow_gives(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    content = saved(image, kind)
    with Image.open(io.BytesIO(content)) as expected:
        np.testing.assert_array_equal(open_image(content), np.asarray(expected.convert("RGB")))


def test_a_program_that_cannot_start_a_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("RGB", (9, 9)), "TIFF")
    for name, value in (("executable", ""), ("frozen", True), ("executable", "/nosuch/python")):
        with monkeypatch.context() as patch, pytest.raises(EdgeVLMError, match="second Python process, which"):
            patch.setattr(sys, name, value, raising=False)
            open_image(content)


def test_libtiff_is_silent(tmp_path: Path) -> None:
    """libtiff writes to standard error itself, past Python; here, of a damaged strip."""
    content = bytearray(saved(Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)), "TIFF",
                              compression="tiff_lzw"))  # fmt: skip
    content[200:400] = bytes(200)
    path = tmp_path / "scan.tiff"
    path.write_bytes(content)
    loud = f"from PIL import Image; Image.open({str(path)!r}).load()"
    assert "LZW" in run(loud)  # Pillow alone lets it through
    ours = (
        f"from edgevlm.inputs.decode import open_image\ntry: open_image({str(path)!r})\nexcept Exception as e: print(e)"
    )
    assert run(ours) == ""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(decode.__file__).parents[2]
    )
    return done.stderr


GREY = np.arange(64, dtype=np.int64).reshape(8, 8)
DEEP = {
    "16-bit PNG": (Image.fromarray((GREY * 1000).astype(np.uint16)), "PNG", "from 0 to 63000"),
    "16-bit TIFF": (Image.fromarray((GREY * 1000).astype(np.uint16)), "TIFF", "from 0 to 63000"),
    "int32 TIFF": (Image.fromarray((GREY - 9).astype(np.int32)), "TIFF", "from -9 to 54"),
    "float TIFF": (Image.fromarray((GREY / 63).astype(np.float32)), "TIFF", "from 0 to 1"),
    "float PFM": (Image.fromarray((GREY * 9.5).astype(np.float32)), "PPM", "from 0 to 598.5"),
    "8-bit values in int32": (Image.fromarray((GREY * 4).astype(np.int32)), "TIFF", ""),
    "8-bit values in 16 bits": (Image.fromarray((GREY * 4).astype(np.uint16)), "PNG", ""),
    "8-bit values in floats": (Image.fromarray((GREY * 4).astype(np.float32)), "TIFF", ""),
    "big-endian 16 bits": (Image.fromarray((GREY * 1000).astype(">u2")), "TIFF", "from 0 to 63000"),
}


@pytest.mark.parametrize("name", DEEP)
def test_grey_values_beyond_8_bits_are_cut_with_a_sentence(name: str, tmp_path: Path) -> None:
    image, kind, values = DEEP[name]
    path = tmp_path / "depth.map"
    path.write_bytes(saved(image, kind))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))  # what transformers does
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(open_image(path), expected)
        np.testing.assert_array_equal(open_image(image), expected)
    said = [str(w.message) for w in caught if issubclass(w.category, EdgeVLMWarning)]
    assert len(said) == (2 if values else 0)
    if values:
        assert f"The image '{path}' has grey values {values}, which are cut" in said[0]
