"""nanoVLM in its own layout: tiles bit for bit, the whole picture within one level of what it resizes as floats."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import nanovlm
from tiny.common import picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import (
    SIZES,
    Checkpoint,
    Variant,
    check_bits,
    check_features,
    check_prompt,
    check_targets,
    check_tokens,
)

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.inputs.preprocess import normalize, preprocess
from edgevlm.inputs.spec import ImageSpec
from edgevlm.types import F32

PICTURES = ("none", "one", "several")
LEVEL = 1 / 255 + 1e-6


def image_spec(folder: Path) -> ImageSpec:
    spec, _ = read_model(open_checkpoint(str(folder)))
    return read_image_spec(folder, spec)


def views(inputs: dict[str, Any]) -> list[F32]:
    return list(inputs["pixel_values"][0])


class EightBit:
    """nanoVLM's processor, but for the whole pictures: there our bytes, once they are found to be within one level."""

    def __init__(self, folder: Path) -> None:
        self.plain, self.spec = nanovlm.load_processor(folder), image_spec(folder)
        self.tokenizer, self.image_token_id = self.plain.tokenizer, self.plain.image_token_id

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        return self.plain.apply_chat_template(*args, **options)

    def __call__(self, *, text: str, images: Sequence[Image.Image] | None, return_tensors: str) -> Any:
        found = self.plain(text=text, images=images, return_tensors=return_tensors)
        ours = [normalize(view, self.spec) for image in images or () for view in preprocess(image, self.spec)]
        if ours:
            values = torch.from_numpy(np.stack(ours))[None]
            assert values.shape == found["pixel_values"].shape
            assert (values - found["pixel_values"]).abs().max() <= LEVEL
            found["pixel_values"] = values
        return found


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    build = partial(nanovlm.build, tie=request.param)
    return Checkpoint(Variant("own", build, EightBit, views), tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_its_own(made: Checkpoint, size: tuple[int, int]) -> None:
    image, spec = picture(*size), image_spec(made.folder)
    theirs, _ = nanovlm.split(image)
    ours = [normalize(view, spec) for view in preprocess(image, spec)]
    assert len(ours) == len(theirs)
    tiles = slice(1 if len(ours) > 1 else 0, None)
    np.testing.assert_array_equal(np.stack(ours)[tiles], theirs.numpy()[tiles])
    assert np.abs(ours[0] - theirs[0].numpy()).max() <= LEVEL


@pytest.mark.parametrize("pictures", PICTURES)
def test_prompts_and_tokens_are_its_own(made: Checkpoint, pictures: str) -> None:
    check_prompt(made, pictures)
    check_tokens(made, pictures, "onnx", 64)


def test_features_are_its_own(made: Checkpoint) -> None:
    check_features(made, "several")


@pytest.mark.heavy
@pytest.mark.parametrize("pictures", PICTURES)
def test_every_engine(made: Checkpoint, pictures: str) -> None:
    check_tokens(made, pictures, "gguf", 64)
    check_tokens(made, pictures, "coreml", 32)


@pytest.mark.heavy
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_bits_are_the_same_in_all_containers(made: Checkpoint, quantize: str) -> None:
    check_bits(made, quantize)


@pytest.mark.heavy
def test_what_the_targets_hold(made: Checkpoint) -> None:
    check_targets(made, {"onnx", "gguf", "coreml"})
