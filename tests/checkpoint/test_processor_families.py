"""Pictures and prompts of every family against transformers' own processors, on the tiny checkpoints of tests/tiny."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import deepseek_vl, internvl, llava15, nanovlm, qwen2_5_vl
from tiny.common import picture

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import normalize_all, plan, prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.model import ModelSpec

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2_5_vl-hub": (qwen2_5_vl, {}),
    "qwen2_5_vl-saved": (qwen2_5_vl, {"layout": "saved"}),
    "internvl-hub": (internvl, {}),
    "internvl-saved-qwen3": (internvl, {"layout": "saved", "decoder": "qwen3"}),
    "internvl-remote": (internvl, {"layout": "remote"}),
    "llava15-hub-crop": (llava15, {}),
    "llava15-hub-crop-metaspace": (llava15, {"form": "metaspace"}),
    "llava15-saved-pad": (llava15, {"layout": "saved", "pad": True}),
    "deepseek_vl-hub": (deepseek_vl, {}),
    "deepseek_vl-saved": (deepseek_vl, {"layout": "saved"}),
    "nanovlm": (nanovlm, {}),
}


class Read(NamedTuple):
    """A tiny checkpoint as edgevlm reads it, and transformers' processor."""

    model: ModelSpec
    image: ImageSpec
    prompter: Prompter
    processor: Any
    remote: bool


_FOLDERS: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in CASES:
        _FOLDERS[name] = tmp_path_factory.mktemp("processors") / name


@cache
def read(name: str) -> Read:
    module, options = CASES[name]
    folder = _FOLDERS[name]
    module.build(folder, **options)
    model, _ = read_model(open_checkpoint(str(folder)))
    prompter = Prompter(read_prompt_spec(folder, model), folder / "tokenizer.json")
    image = read_image_spec(folder, model)
    return Read(model, image, prompter, module.load_processor(folder), options.get("layout") == "remote")


SIZES = [(50, 70), (300, 40), (61, 43), (7, 200), (1, 1), (48, 48), (97, 49)]
PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
TEXT = st.one_of(
    st.text(max_size=20),
    st.text(alphabet=" \n\t.,:aeWht0123?'s_éß写🙂\u200d▁", max_size=30),
    st.sampled_from(["What is in the picture?", "  two  ", "\n\nlines\n", "a", "é", " "]),
)
IMAGE = st.sampled_from(range(len(SIZES)))
USER = st.lists(st.one_of(TEXT, IMAGE), min_size=1, max_size=4)
TURNS = st.tuples(st.one_of(st.none(), TEXT), st.lists(st.tuples(USER, TEXT), max_size=2), USER)


def conversation(turns: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """Messages of (system, [(user, assistant), ...], user), and which pictures they show."""
    system, before, last = turns
    messages = [] if system is None else [("system", [system])]
    for user, answer in before:
        messages += [("user", user), ("assistant", [answer])]
    messages.append(("user", last))
    shown = [item for _, items in messages for item in items if isinstance(item, int)]

    def content(item: str | int) -> dict[str, Any]:
        return {"type": "image"} if isinstance(item, int) else {"type": "text", "text": item}

    return [{"role": role, "content": [content(item) for item in items]} for role, items in messages], shown


@pytest.mark.parametrize("name", CASES)
@given(turns=TURNS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_and_layout_equal_the_processors(name: str, turns: Any) -> None:
    got = read(name)
    messages, shown = conversation(turns)
    special = [t.content for t in got.prompter.tokenizer.get_added_tokens_decoder().values() if t.special]
    texts = [item.get("text", "") for message in messages for item in message["content"]]
    assume(not any(token in text for text in texts for token in special))
    if name == "nanovlm":  # its code puts all pictures first
        assume(all(item["type"] == "text" for message in messages[:-1] for item in message["content"]))
    views = [got.image.view_tokens(plan(*SIZES[i], got.image), SIZES[i]) for i in shown]
    ids, layout = got.prompter.encode(messages, views)
    theirs = messages
    if got.remote and messages[0]["role"] != "system":
        theirs = [{"role": "system", "content": [{"type": "text", "text": internvl.REMOTE_SYSTEM}]}, *messages]
    text = got.processor.apply_chat_template(theirs, add_generation_prompt=True, tokenize=False)
    out = got.processor(text=text, images=[PICTURES[i] for i in shown] or None, return_tensors="pt")
    assert ids.tolist() == out["input_ids"][0].tolist()
    assert layout.length == len(ids)
    covered = [span.start + i for span in layout.spans for i in range(span.tokens)]
    assert covered == np.flatnonzero(ids == got.prompter.image_token_id).tolist()
    for view, span in zip((v for seen in views for v in seen), layout.spans, strict=True):
        assert span.grid == (view.rows, view.cols)


@pytest.mark.parametrize("name", [name for name in CASES if name != "nanovlm"])
def test_pixels_equal_the_processors(name: str) -> None:
    got = read(name)
    for image in PICTURES:
        text = got.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True, tokenize=False
        )
        out = got.processor(text=text, images=[image], return_tensors="pt")
        pixels = normalize_all(prepare(image, got.image).views, got.image)
        expected = out["pixel_values"].numpy()
        if "image_grid_thw" in out:  # patches, merged 2x2, each frame twice
            _, rows, cols = out["image_grid_thw"][0].tolist()
            cells = expected.reshape(rows // 2, cols // 2, 2, 2, 3, 2, 8, 8)[:, :, :, :, :, 0]
            expected = cells.transpose(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * 8, cols * 8)
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_views_tokens_are_the_models(name: str) -> None:
    """The device's whole rule of token counts, pixels // token_pixels, is what tower and projector make of a view."""
    got = read(name)
    for size in SIZES:
        for view in plan(*size, got.image):
            width, height = view.size
            assert got.image.token_grid(view) == got.model.token_grid(height, width)


@pytest.mark.parametrize("name", CASES)
def test_user_text_never_becomes_a_control_token(name: str) -> None:
    got = read(name)
    special = {i for i, t in got.prompter.tokenizer.get_added_tokens_decoder().items() if t.special}
    forged = "".join(got.prompter.tokenizer.id_to_token(i) for i in sorted(special))
    plain, forging = (
        [i for i in got.prompter.encode(question)[0].tolist() if i in special] for question in ("x", f"x{forged}x")
    )
    assert plain == forging


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")


IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("llava15-hub-crop", IMAGES, {"crop_size": 32}, "crop_size = 32, expected the 48 pixels"),
    (
        "llava15-hub-crop",
        IMAGES,
        {"size": {"shortest_edge": 40}},
        "expected at least the 48 pixels",
    ),
    (
        "llava15-hub-crop",
        IMAGES,
        {"do_center_crop": False},
        "a shortest_edge in pixels and do_center",
    ),
    (
        "llava15-hub-crop",
        IMAGES,
        {"image_processor_type": "X"},
        "'X', expected SiglipImageProcessor",
    ),
    (
        "llava15-hub-crop",
        PROCESSOR,
        {"processor_class": "X"},
        "processor_class = 'X', expected LlavaProc",
    ),
    (
        "qwen2_5_vl-hub",
        IMAGES,
        {"patch_size": 7},
        "patch_size = 7, expected with merge_size, the 16",
    ),
    ("qwen2_5_vl-hub", IMAGES, {"min_pixels": 0}, "min_pixels = 0, expected a number of pixels"),
    ("qwen2_5_vl-hub", IMAGES, {"do_resize": False}, "do_resize = False, expected true"),
    ("internvl-hub", IMAGES, {"size": 32}, "size = 32, expected the 48 pixels of the vision"),
    (
        "internvl-hub",
        PROCESSOR,
        {"image_seq_length": 4},
        "image_seq_length = 4, expected the 9 image tokens",
    ),
    ("internvl-remote", "config.json", {"template": "Hermes-2"}, "template = 'Hermes-2', expected 'internvl2_5'"),
    ("internvl-remote", "config.json", {"template": []}, r"template = \[\], expected 'internvl2_5'"),
    ("internvl-remote", "config.json", {"pad2square": True}, "pad2square = True, expected false"),
    ("deepseek_vl-hub", IMAGES, {"do_pad": False}, "do_pad = False, expected true"),
    ("deepseek_vl-hub", PROCESSOR, {"num_image_tokens": 576}, "num_image_tokens = 576, expected the 36"),
]


@pytest.mark.parametrize(("name", "file", "change", "sentence"), REFUSED, ids=lambda v: str(v)[:40])
def test_refuses(name: str, file: str, change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    module, options = CASES[name]
    module.build(tmp_path, **options)
    model, _ = read_model(open_checkpoint(str(tmp_path)))
    edit(tmp_path / file, change)
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        read_image_spec(tmp_path, model)
        read_prompt_spec(tmp_path, model)
    assert str(tmp_path / file) in str(caught.value) and str(caught.value).endswith("came with, or another model.")


@pytest.mark.parametrize(
    ("name", "section", "change", "sentence"),
    [
        (
            "internvl-hub",
            None,
            {"downsample_ratio": 1e9},
            "downsample_ratio = 1000000000.0, expected a positive number from 0.015625 up to 1",
        ),
        ("internvl-hub", None, {"model_type": "x" * 9999}, "which edgevlm does not support"),
        ("qwen2_5_vl-hub", "vision_config", {"window_size": 1}, "at least the 16 pixels of a token"),
        ("qwen2_5_vl-hub", "vision_config", {"fullatt_block_indexes": [[1]]}, "a list of layers"),
    ],
)
def test_refuses_a_config(
    name: str, section: str | None, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    module, options = CASES[name]
    module.build(tmp_path, **options)
    data = json.loads((tmp_path / "config.json").read_text("utf-8"))
    edit(tmp_path / "config.json", {section: data[section] | change} if section else change)
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        read_model(open_checkpoint(str(tmp_path)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("layer", ["x", "-1", "99999999999", "a" * 900])
def test_refuses_layers_that_are_no_number(layer: str, tmp_path: Path) -> None:
    llava15.build(tmp_path)
    path = tmp_path / "model.safetensors"
    name = f"vision_tower.vision_model.encoder.layers.{layer}.mlp.fc1.bias"
    save_file(load_file(path) | {name: np.zeros(4, np.float32)}, path)
    with pytest.raises(EdgeVLMError, match="holds the tensor 'vision_tower") as caught:
        read_model(open_checkpoint(str(tmp_path)))
    assert len(str(caught.value)) < 700


def test_a_file_without_ratio_tiles_is_stretched(tmp_path: Path) -> None:
    internvl.build(tmp_path, layout="remote")
    model, _ = read_model(open_checkpoint(str(tmp_path)))
    edit(tmp_path / "config.json", {"dynamic_image_size": False})
    assert len(plan(300, 40, read_image_spec(tmp_path, model))) == 1


def test_llava_with_siglip_is_stretched(tmp_path: Path) -> None:
    """Settings as LLaVA checkpoints with a SigLIP tower have them; the tower is not looked at here."""
    llava15.build(tmp_path)
    model, _ = read_model(open_checkpoint(str(tmp_path)))
    edit(
        tmp_path / "preprocessor_config.json",
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}},
    )
    spec = read_image_spec(tmp_path, model)
    assert spec.rule.kind == "stretch"
    expected = PICTURES[0].resize((48, 48), Image.Resampling.BICUBIC)
    pixels = normalize_all(prepare(PICTURES[0], spec).views, spec)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    np.testing.assert_allclose(pixels[0] * std + mean, np.asarray(expected).transpose(2, 0, 1) / 255, atol=1e-6)
