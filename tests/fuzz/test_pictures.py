"""Damaged pictures give a picture or a sentence, never a traceback."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.decode import open_image


def saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


HERE = ("prime.png", "exif_3.jpg", "progressive.jpg", "lossless.webp", "lossy.webp", "animated.gif", "bitmap.bmp",
        "palette.png", "grey_16_bit.png")  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(data), rng.choice((32, 300, len(data)))))
        how = rng.random()
        if how < 0.6:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif how < 0.8:
            data[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0"))
        else:
            cut = rng.randrange(len(data))
            data[at:at] = data[cut : cut + rng.randint(1, 200)]
    return bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.2 else data)


@pytest.mark.parametrize("times", [200, pytest.param(6000, marks=pytest.mark.campaign)])
def test_damaged_pictures_give_a_picture_or_a_sentence(times: int) -> None:
    folder = Path(__file__).parents[1] / "vectors" / "images"
    rng = random.Random(7)
    here = [(folder / name).read_bytes() for name in HERE]
    apart = [saved(Image.new("RGB", (32, 32)), kind) for kind in ("TIFF", "JPEG2000", "ICO", "PPM")]
    apart.append((folder / "tiff_lzw.tiff").read_bytes())
    opened = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(times):
            content = mutate(rng.choice(apart if number % 100 == 0 else here), rng)
            try:
                opened += open_image(content).shape[2] == 3
            except EdgeVLMError as error:
                sentence = str(error)
                assert sentence.startswith("The image") and sentence.isprintable() and len(sentence) < 500
    assert 0.03 * times < opened < times
