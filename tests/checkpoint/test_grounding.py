"""Which boxes a family's answers have, through its own tokenizer, where tags are special tokens."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import dots_ocr, glm4v, internvl, qwen2_5_vl

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.inputs.grounding import Box, Grounding, find, frame_of
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.prompt import Prompter


def answered(folder: Path, text: str, size: tuple[int, int]) -> tuple[Box, ...]:
    """Boxes of an answer that the model gave token by token."""
    spec, _ = read_model(open_checkpoint(str(folder)))
    prompt, image = read_prompt_spec(folder, spec), read_image_spec(folder, spec)
    prompter = Prompter(prompt, folder / "tokenizer.json")
    tokenizer = prompter.tokenizer
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert prompt.grounding is not None
    return find(prompter.decode(ids, special=True), prompt.grounding, frame_of(size, plan(*size, image)))[0]


def test_internvl(tmp_path: Path) -> None:
    internvl.build(tmp_path / "m")
    text = "<ref>a disc</ref><box>[[100, 200, 300, 400]]</box>"
    (box,) = answered(tmp_path / "m", text, (640, 480))
    assert box.label == "a disc" and (box.x0, box.y0, box.x1, box.y1) == pytest.approx((64, 96, 192, 192))


def test_glm4v(tmp_path: Path) -> None:
    glm4v.build(tmp_path / "m")
    text = "It is <|begin_of_box|>[[100, 200, 300, 400]]<|end_of_box|>."
    (box,) = answered(tmp_path / "m", text, (640, 480))
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((64, 96, 192, 192))


@pytest.mark.parametrize(
    ("family", "place", "label"), [(qwen2_5_vl, "bbox_2d", "label"), (dots_ocr, "bbox", "category")]
)
def test_pixels_of_the_resized_picture(family: ModuleType, place: str, label: str, tmp_path: Path) -> None:
    """Here 640 x 480 shrink."""
    family.build(tmp_path / "m")
    spec, _ = read_model(open_checkpoint(str(tmp_path / "m")))
    wide, high = plan(640, 480, read_image_spec(tmp_path / "m", spec))[0].size
    text = json.dumps([{place: [0, 0, wide // 2, high // 2], label: "a disc"}])
    ((box),) = answered(tmp_path / "m", text, (640, 480))
    assert (box.label, box.x0, box.y0) == ("a disc", 0.0, 0.0)
    assert (box.x1, box.y1) == pytest.approx((640 * (wide // 2) / wide, 480 * (high // 2) / high))


def test_models_that_were_trained_with_loc_tokens(builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    default, _ = read_model(open_checkpoint("default"))
    folder = open_checkpoint("default").folder
    assert read_prompt_spec(folder, default).grounding == Grounding("tokens", 64, True, open="<loc_", close=">")
    spec, _ = read_model(open_checkpoint(str(tiny_checkpoint)))
    assert read_prompt_spec(tiny_checkpoint, spec).grounding is None
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    for token, n in zip([t for t in tokenizer["added_tokens"] if "row_" in t["content"]], range(11), strict=False):
        token["content"] = f"<loc_{n}>"  # 0 to 10: both edges
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_prompt_spec(copy, spec).grounding == Grounding("tokens", 10, False, open="<loc_", close=">")
