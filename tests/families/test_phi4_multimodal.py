"""Phi-4-multimodal: tiles bit for bit; the whole picture, which it resizes as floats, as the nearest bytes of these."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import phi4_multimodal
from tiny.common import image_features, picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import PICTURES, FamilyTests, Variant, cosine

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import normalize, preprocess
from edgevlm.inputs.spec import ImageSpec

# One pixel, primes, exact multiples, both directions, above 4096, long ones: up to where it makes them too thin.
SIZES = [
    (1, 1),
    (2, 3),
    (31, 17),
    (48, 48),
    (96, 96),
    (97, 96),
    (192, 96),
    (96, 200),
    (101, 103),
    (331, 127),
    (60, 999),
]
LARGE = [(4100, 600), (37, 300), (1200, 150)]


class EightBit:
    """transformers' processor, but for the whole pictures: there our bytes, once they are found to be the nearest."""

    def __init__(self, folder: Path) -> None:
        self.plain, self.folder = phi4_multimodal.load_processor(folder), folder
        self.tokenizer, self.image_token_id = self.plain.tokenizer, self.plain.image_token_id
        self.apply_chat_template = self.plain.apply_chat_template

    @cached_property
    def spec(self) -> ImageSpec:
        return read_image_spec(self.folder, read_model(open_checkpoint(str(self.folder)))[0])

    def __call__(self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str) -> Any:
        found = self.plain(text=text, images=images, return_tensors=return_tensors)
        for number, image in enumerate(images or ()):
            ours = preprocess(image, self.spec)[-1]
            theirs = found["image_pixel_values"][number, 0]
            nearest = ((theirs.double() + 1) * 127.5).clip(0, 255).permute(1, 2, 0).numpy()
            assert np.abs(ours - nearest).max() <= 0.5 + 1e-3
            found["image_pixel_values"][number, 0] = torch.from_numpy(normalize(ours, self.spec))
        return found


def variant(layout: str, **options: Any) -> Variant:
    build = partial(phi4_multimodal.build, layout=layout, **options)
    return Variant(layout, build, EightBit, phi4_multimodal.views, [*SIZES, *LARGE])


class TestPhi4Multimodal(FamilyTests):
    variants: ClassVar = {layout: variant(layout) for layout in ("hub", "saved", "memory")} | {
        "tied": variant("saved", tie=True)
    }
    engines: ClassVar = {"onnx": 64, "gguf": 64, "coreml": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("phi4")
    phi4_multimodal.build(made)
    return made


def test_how_far_the_whole_picture_is_from_its_floats(tmp_path: Path) -> None:
    """Where these go beyond black and white no byte follows: what that does to features is bounded."""
    model = phi4_multimodal.build(tmp_path)
    plain, nearest = phi4_multimodal.load_processor(tmp_path), EightBit(tmp_path)
    for image in (*PICTURES["several"], picture(300, 200, 5)):
        text = "<|image|>"
        theirs, ours = (each(text=text, images=[image], return_tensors="pt") for each in (plain, nearest))
        beyond = (theirs["image_pixel_values"][:, 0].abs().max() - 1) * 127.5
        assert beyond <= 30  # levels
        features = [image_features(model, inputs).numpy() for inputs in (theirs, ours)]
        assert cosine(*features) >= 0.999


def test_thin_pictures_are_refused(folder: Path) -> None:
    processor = EightBit(folder)
    for size in ((1, 96), (960, 4)):
        with pytest.raises(ValueError, match="very extreme"):
            processor.plain(text="<|image|>", images=[picture(*size)], return_tensors="pt")
        with pytest.raises(EdgeVLMError, match="too elongated"):
            preprocess(picture(*size), processor.spec)


def test_its_context_ends_where_other_factors_would_count(folder: Path) -> None:
    decoder = read_model(open_checkpoint(str(folder)))[0].decoder
    assert decoder.context_length == phi4_multimodal.CONTEXT
    assert decoder.ropes["main"].divisors == tuple(phi4_multimodal.LONG["short_factor"])


def test_its_vision_adapter_is_asked_for(folder: Path, tmp_path: Path) -> None:
    phi4_multimodal.build(tmp_path)
    (tmp_path / "vision-lora").mkdir()
    with pytest.raises(EdgeVLMError, match="give it as --adapter"):
        read_model(open_checkpoint(str(tmp_path)))
