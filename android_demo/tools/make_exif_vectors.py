"""Write vectors/exif.json: picture files' EXIF and XMP, and the orientation that `edgevlm.inputs.decode` finds.

    python android_demo/tools/make_exif_vectors.py [--check]

A JPEG is a tiny one with these segments behind its first marker; PNG and WebP are whole.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import warnings
from pathlib import Path

from PIL import Image

from edgevlm.inputs.decode import _orientation

OUT = Path(__file__).parent.parent / "vectors/exif.json"
UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
XMP = b"http://ns.adobe.com/xap/1.0/\x00"


def _value(order: str, kind: int, value: int) -> bytes:
    if kind in (1, 7):
        return bytes([value]) if value % 2 else b"%d" % value
    if kind == 2:
        return b"%d\0" % value
    forms = {3: "H", 4: "L", 5: "LL", 6: "b", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q"}
    return struct.pack(order + forms[kind], *((value, 1) if kind in (5, 10) else (value,)))


def _tiff(entries: list[tuple[int, int, bytes, int]], order: str, head: bytes | None = None) -> bytes:
    """entries: tag, type, value, count."""
    start = 8
    data = b""
    directory = struct.pack(order + "H", len(entries))
    behind = start + 2 + 12 * len(entries) + 4
    for tag, kind, value, count in entries:
        if len(value) > 4:
            place = struct.pack(order + "L", behind + len(data))
            data += value
        else:
            place = value.ljust(4, b"\0")
        directory += struct.pack(order + "HHL", tag, kind, count) + place
    head = head or (b"II*\0" if order == "<" else b"MM\0*")
    return head + struct.pack(order + "L", start) + directory + b"\0\0\0\0" + data


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def _exif(content: bytes) -> bytes:
    return _segment(b"Exif\0\0" + content)


def _xmp(value: int, form: str = 'tiff:Orientation="{}"') -> bytes:
    return _segment(XMP + b"<x:xmpmeta>" + form.format(value).encode() + b"</x:xmpmeta>")


def _segments() -> list[bytes]:
    rng = random.Random(7)
    found = [b""]
    for order in "<>":
        for value in range(10):
            found.append(_exif(_tiff([(0x112, 3, struct.pack(order + "H", value), 1)], order)))
        for kind in range(18):
            value = _value(order, kind, 6) if kind in UNITS else b"\6\0\0\0"
            found.append(_exif(_tiff([(0x112, kind, value, max(1, len(value) // UNITS.get(kind, 1)))], order)))
            value = _value(order, kind, 3) if kind in UNITS else b"\3\0\0\0"
            found.append(
                _exif(_tiff([(0x112, kind, value, max(1, len(value) // UNITS.get(kind, 1)))], order)) + _xmp(8)
            )
        six = (0x112, 3, struct.pack(order + "H", 6), 1)
        make = (0x10F, 2, b"a camera's maker\0", 17)
        whole = _tiff([make, six, (0x112, 3, struct.pack(order + "H", 3), 1)], order)
        found += [_exif(whole[:cut]) for cut in range(len(whole))]
        found += [_exif(whole[:cut]) + _xmp(5) for cut in range(0, len(whole), 5)]
        found += [
            _exif(b"Exif\0\0" + whole),
            _exif(b"Exif\0\0Exif\0\0" + whole),
            _exif(whole[:20]) + _exif(whole[20:]),
            _exif(whole) + _xmp(8),
            _xmp(8) + _exif(whole),
            _exif(_tiff([make], order)) + _xmp(7),
            _exif(_tiff([(0x112, 3, struct.pack(order + "HHH", 6, 3, 8), 3)], order)),
            _exif(_tiff([(0x112, 3, b"\0\0\0\0", 0), six], order)),
            _exif(_tiff([(0x10F, 2, b"x" * 17, 1 << 30), six], order)),
            _exif(_tiff([(0x10F, 2, b"x" * 17, 40), six], order)),
            _exif(_tiff([(0x10F, 99, b"x", 1), six], order)),
            _exif(_tiff([(0x112, 99, b"x", 1), six], order)),
        ]
        for head in (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0", b"XX*\0", b"II**"):
            found += [_exif(_tiff([six], order, head)), _exif(_tiff([six], order, head)) + _xmp(4)]
        for number in range(60):
            noisy = bytearray(_tiff([make, six, (0x11A, 5, b"\0\0\0\x48\0\0\0\1", 1)], order))
            for _ in range(1 + number % 3):
                noisy[rng.randrange(len(noisy))] = rng.choice([0, 1, 2, 3, 4, 6, 8, 9, 255, rng.randrange(256)])
            found.append(_exif(bytes(noisy)) + (_xmp(2) if number % 2 else b""))
    found += [_xmp(value) for value in range(10)] + [
        _xmp(6, "<tiff:Orientation>{}</tiff:Orientation>"),
        _xmp(6, "Orientation={}"),
    ]
    found += [
        _xmp(6) + _xmp(8),
        _segment(XMP[:-1]),
        _segment(b"Exif\0"),
        _segment(b"Exif\0\0"),
        _segment(b"Exif\0\0") + _xmp(6),
    ]
    found += [
        b"\xff\xff\xff" + _xmp(6),
        b"\xff\xfe\0\4hi" + _xmp(6),
        b"junk" + _xmp(6),
        b"\xff\xd0" + _xmp(6),
        b"\xff\0" + _xmp(6),
    ]
    return found


def _find(content: bytes) -> int | None:
    """None: Pillow does not open it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content))
        except Exception:
            return None
        found = _orientation(image)
        return found if found in range(2, 9) else 1


def _saved(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 1), (9, 8, 7)).save(out, kind, **options)
    return out.getvalue()


def vectors() -> str:
    base = _saved("JPEG", quality=50)
    cases = [(part.hex(), _find(base[:2] + part + base[2:])) for part in _segments()]
    files = []
    for order in "<>":
        tiff = _tiff([(0x112, 3, struct.pack(order + "H", 6), 1)], order)
        files += [
            _saved("PNG", exif=tiff),
            _saved("WEBP", exif=b"Exif\0\0" + tiff),
            _saved("WEBP", exif=tiff, lossless=True),
        ]
        files.append(_saved("WEBP", xmp=b'<a tiff:Orientation="8"/>'))
    files += [_saved("PNG"), _saved("WEBP"), _saved("GIF"), b"", b"\xff\xd8\xff", b"RIFF"]
    data = {
        "jpeg": base.hex(),
        "segments": [list(case) for case in dict(cases).items() if case[1] is not None],
        "files": [[file.hex(), _find(file) or 1] for file in files],
    }
    return json.dumps(data, indent=0) + "\n"


if __name__ == "__main__":
    found = vectors()
    if "--check" in sys.argv:
        sys.exit(0 if OUT.read_text("utf-8") == found else f"{OUT.name} is out of date: run this without --check")
    OUT.write_text(found, "utf-8")
