"""Moondream 2: a sheet of overlapping crops, parallel layers, a prefix that sees itself, tasks as roles."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import moondream
from tiny.common import picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import QUESTION, SIZES, Checkpoint, FamilyTests, Variant, check_features

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import preprocess
from edgevlm.inputs.rules import OverlappingTiles
from edgevlm.inputs.spec import ImageSpec

LONG = [*SIZES, (200, 1), (1, 200), (4100, 60), (60, 4100)]
VARIANTS = {
    layout: Variant(layout, partial(moondream.build, layout=layout), moondream.load_processor, moondream.views, LONG)
    for layout in ("hub", "own")
}


class TestMoondream(FamilyTests):
    variants = VARIANTS
    prompts: ClassVar = ("none", "one")  # it looks at one picture

    def test_features_are_transformers(self, made: Checkpoint) -> None:
        check_features(made, "one")

    def test_several_pictures_are_refused(self, made: Checkpoint) -> None:
        views = made.bundle("fp32").image_spec.view_tokens([], (1, 1))
        with pytest.raises(EdgeVLMError, match="looks at 1 picture at a time, and was given 2"):
            made.bundle("fp32").prompter().encode(QUESTION, [views, views])

    @pytest.mark.parametrize(
        "role, length", [("caption_short", "short"), ("caption", "normal"), ("caption_long", "long")]
    )
    def test_captions_are_roles(self, made: Checkpoint, role: str, length: str) -> None:
        bundle = made.bundle("fp32")
        spec, image = bundle.image_spec, picture(70, 50)
        tokens = spec.view_tokens(spec.rule.views(*image.size), image.size)
        ids, _ = bundle.prompter().encode([{"role": role, "content": [{"type": "image"}]}], [tokens])
        words = [made.processor._ids(text) for text in ("caption", length)]
        places = [moondream.BEGIN] * (1 + moondream.GRID**2)
        assert ids.tolist() == [*places, moondream.TASK, *words[0], moondream.ASKED, *words[1], moondream.ANSWER]


def test_an_older_tokenizer_is_refused(tmp_path: Path) -> None:
    moondream.build(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<|md_reserved_0|>", "<|other|>"), "utf-8")
    made = Checkpoint(Variant("stale", lambda folder: None, moondream.load_processor, moondream.views), tmp_path.parent)
    made.folder = tmp_path
    with pytest.raises(EdgeVLMError, match=r"put the tokenizer\.json of moondream/starmie-v1 in its place"):
        made.bundle("fp32")


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (378, 379), (640, 480), (997, 601), (61, 4100), (1080, 1920)])
def test_sheets_at_their_published_size(size: tuple[int, int]) -> None:
    rule, image = OverlappingTiles(378, 56, 12), picture(*size)
    spec = ImageSpec(2, rule, "lanczos", (255,) * 3, 1 / 255, (0.5,) * 3, (0.5,) * 3, None, 729)
    (ours,) = preprocess(image, spec)
    np.testing.assert_array_equal(ours, moondream.sheet(*moondream.crops(image, 378, 56, 12)))


@pytest.mark.parametrize("rows, cols", [(1, 1), (2, 2), (3, 4), (1, 12), (6, 2)])
def test_the_map_of_crops_at_its_published_size(rows: int, cols: int) -> None:
    """Stitched and averaged as the published code does it: 27 x 27 states of a square, 4 of them a margin."""
    import torch

    from edgevlm.models.spec import Attention, Block, Mlp
    from edgevlm.models.towers.sheet_vit import SheetVit

    tower = SheetVit(14, 1, 27, 8, 1, (), Block((Attention(1, 1, 8),), Mlp(8)), table=27, margin=4)
    states = np.random.default_rng(0).normal(size=(1 + rows * cols, 27, 27))
    whole = np.zeros((rows * 19 + 8, cols * 19 + 8))
    for number, crop in enumerate(states[1:]):
        row, col = divmod(number, cols)
        top, left = (4 * (n > 0) for n in (row, col))
        bottom, right = 27 - 4 * (row < rows - 1), 27 - 4 * (col < cols - 1)
        whole[row * 19 + top : row * 19 + bottom, col * 19 + left : col * 19 + right] = crop[top:bottom, left:right]
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(whole)[None], (27, 27))[0].numpy()
    places, shares = tower._mixture_of(rows, cols)
    np.testing.assert_allclose((states.reshape(-1)[places] * shares).sum(1), expected.reshape(-1), atol=1e-5)
