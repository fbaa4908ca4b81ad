"""Labels against the pictures they describe, the tokenizer of the default model, and a run that is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from edgevlm.errors import EdgeVLMError
from edgevlm.scenes.catalogue import CHARACTERS, NOUN_INDEX, SIGN, pair_split, text_split
from edgevlm.scenes.crowd import make_crowd, make_mixture, make_sign, make_signs
from edgevlm.scenes.generator import make_scene
from edgevlm.scenes.question import loc_answer
from edgevlm.train.examples import IGNORE
from edgevlm.train.models import open_source
from edgevlm.train.shipped.batches import Pictures, Questions
from edgevlm.train.shipped.heads import LETTERS, scene_labels, stack
from edgevlm.train.shipped.named import NameFinder
from edgevlm.train.shipped.parts import Shape, build, build_tokenizer, waves
from edgevlm.train.shipped.pretrain import pretrain
from edgevlm.train.shipped.stages import STAGES, PretrainOptions

SMALL = Shape(vision_width=64, vision_layers=1, vision_mlp=96, width=128, layers=1, mlp=96, tile=64, patch=8)
TOKENIZER = build_tokenizer()


@given(st.integers(0, 10_000), st.sampled_from([8, 16, 18]))
@settings(max_examples=15, deadline=None)
def test_each_thing_is_labelled_once_where_its_centre_is(index: int, side: int) -> None:
    scene = make_scene("train", 3, index)
    labels = scene_labels(scene, side, 2)
    assert labels.things.shape == (side * side // 4, 4, len(NOUN_INDEX)) and labels.noun.shape == (side, side)
    for number, name in enumerate(NOUN_INDEX):
        shown = sum(item.name == name for item in scene.objects)
        assert labels.things[..., number].sum() == pytest.approx(shown, abs=1e-4)
    grid = labels.things.sum(-1).reshape(side // 2, side // 2, 2, 2).swapaxes(1, 2).reshape(side, side)
    for item in scene.objects:
        left, top, right, bottom = scene.fraction(item.box)
        row, column = int((top + bottom) / 2 * side), int((left + right) / 2 * side)
        assert grid[row, column] >= 0.24  # the largest of four parts, or a share with a neighbour


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_boxes_and_letters_of_labels_are_the_scene_s(index: int) -> None:
    scene, side = make_crowd(1, index), 16
    labels = scene_labels(scene, side, 2)
    middle = (np.arange(side) + 0.5) / side
    here = np.stack([*np.meshgrid(middle, middle)] * 2, -1)
    boxes = {tuple(np.round(scene.fraction(item.box), 4)) for item in scene.objects}
    for row, column in np.argwhere(labels.noun > 0):
        found = labels.edges[row, column] + here[row, column]
        assert min(np.abs(np.array(box) - found).max() for box in boxes) < 1e-3
    answers = {loc_answer(scene.fraction(item.box)) for item in scene.objects}
    said = {"".join(f"<loc_{n}>" for n in row) for row in labels.bins if row[0] >= 0}
    assert said and said <= answers
    spelled = {(place, CHARACTERS[row[place] - 1]) for row in labels.spelled for place in np.flatnonzero(row)}
    assert spelled <= {(n, item.letters[n][0]) for item in scene.objects for n in range(len(item.letters))}
    texts = [f" {item.text} " for item in scene.objects if item.text]
    for token, cell in np.argwhere(labels.characters > 0):
        place, *around = labels.order[token, cell]
        before, after = (f" {CHARACTERS} "[n] for n in around)
        three = before + CHARACTERS[labels.characters[token, cell] - 1] + after
        assert any(text[place - 1 : place + 2] == three for text in texts)
    written = {character for item in scene.objects for character, _ in item.letters}
    read = {CHARACTERS[n - 1] for n in labels.characters[labels.characters > 0]}
    assert read <= written
    total = sum(len(item.letters) for item in scene.objects)
    assert (labels.characters > 0).sum() >= 0.7 * total  # thin neighbours may share half a patch


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_crowds_mixtures_and_signs_show_nothing_of_other_splits(index: int) -> None:
    shown = [make(0, index) for make in (make_crowd, make_mixture, make_sign, make_signs)]
    assert all(scene.split == "train" and scene.objects for scene in shown)
    for item in (item for scene in shown for item in scene.objects):
        assert item.name == SIGN.name or item.colour is None or pair_split(item.colour, item.noun) in (None, "train")
        assert not item.text or text_split(item.text) == "train"


def test_words_of_questions_are_one_token_and_signs_are_spelled() -> None:
    text = "What colour is the red umbrella?"
    assert TOKENIZER.tokenize(text) == ["What", "Ġcolour", "Ġis", "Ġthe", "Ġred", "Ġumbrella", "?"]
    assert TOKENIZER.tokenize(" QUARTZ") == ["Ġ", *"QUARTZ"]
    assert TOKENIZER.tokenize(" there are two signs") == ["Ġthere", "Ġare", "Ġtwo", "Ġsigns"]
    assert TOKENIZER.tokenize(" 407") == ["Ġ", *"407"]
    assert TOKENIZER.tokenize(loc_answer((0.0, 0.25, 0.5, 0.999))) == ["<loc_0>", "<loc_16>", "<loc_32>", "<loc_63>"]
    assert TOKENIZER.decode(TOKENIZER("<loc_5><loc_6>").input_ids, skip_special_tokens=True) == "<loc_5><loc_6>"


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    if not any(mark in text for mark in ("<|", "<loc_")):
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_near_places_start_with_like_words() -> None:
    rows = torch.nn.functional.normalize(waves(64, 256), dim=1)
    like = rows @ rows.T
    for place in range(4, 60):
        assert like[place].argmax() == place
        assert like[place, place + 1] > 0.6 and like[place, place - 1] > like[place, place - 4]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("pretrain") / "base", SMALL))


def test_what_a_name_s_label_says_is_the_answer_about_it(base: str) -> None:
    """Of boxes and signs, Scenes' own answers are what the labels must spell."""
    asked = Questions(base, SMALL.tile // SMALL.patch, SMALL.scale, 24, 5)(0)
    target = stack([one.labels for one in asked])
    named = NameFinder(Tokenizer.from_file(f"{base}/tokenizer.json")).answers(asked, target)
    checked = {"grounding": 0, "text": 0}
    for row, column, bins, spelled, sign in zip(*named, strict=True):
        example, skills, _ = asked[row]
        segment = example.segments[column]
        skill = skills[segment - 1]
        answer = example.targets[(example.segments == segment) & (example.targets >= 0)]
        said = TOKENIZER.decode(answer, skip_special_tokens=skill == "text")
        if skill == "grounding":
            assert "".join(f"<loc_{n}>" for n in bins) in said
        elif skill == "text":
            word = said.strip()
            next_one = int(((example.segments == segment) & (example.targets >= 0))[:column].sum()) - 1
            known = (spelled != IGNORE).nonzero().flatten().tolist()
            assert sign and known == [place for place in range(next_one, next_one + 3) if 0 <= place < LETTERS]
            for place in known:
                assert spelled[place] == (CHARACTERS.index(word[place]) + 1 if place < len(word) else 0)
        checked[skill] = checked.get(skill, 0) + 1
    assert min(checked.values()) > 20


@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_every_other_batch_may_ask_for_one_thing_alone(base: str, number: int) -> None:
    side = SMALL.tile // SMALL.patch
    asked = Questions(base, side, SMALL.scale, 2, 5, drills=12)(number)
    if number % 2:
        skill = "count" if number == 3 else "text"
        assert len(asked) == 12 and {name for one in asked for name in one.skills} == {skill}
    else:
        plain = Questions(base, side, SMALL.scale, 2, 5)(number)
        assert [one.example.ids.tolist() for one in asked] == [one.example.ids.tolist() for one in plain]


def test_names_are_found_in_questions(base: str) -> None:
    asked = Questions(base, SMALL.tile // SMALL.patch, SMALL.scale, 12, 6)(0)
    target = stack([one.labels for one in asked])
    longest = max(len(one.example.ids) for one in asked)
    rows = [np.pad(one.example.ids, (0, longest - len(one.example.ids))) for one in asked]
    ids = torch.from_numpy(np.stack(rows))
    named = NameFinder(Tokenizer.from_file(f"{base}/tokenizer.json")).names(ids, target)
    words = {TOKENIZER.decode([int(number)]).strip() for number in ids[named.row, named.column]}
    assert len(named.row) > 50 and words <= {*NOUN_INDEX}


@pytest.mark.heavy
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_ends_at_the_same_weights(
    base: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {
        "stage": stage, "steps": 4, "batch": 2, "workers": 0, "save_every": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    whole = pretrain(PretrainOptions(base, tmp_path / "whole", **shared), lambda what, done, total: None)
    kind = Pictures if stage in ("labels", "signs") else Questions
    real = kind.__call__

    def stopping(self: Any, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(kind, "__call__", stopping)
    options = PretrainOptions(base, tmp_path / "stopped", **shared)
    with pytest.raises(KeyboardInterrupt):
        pretrain(options, lambda what, done, total: None)
    assert not options.out.exists() and (tmp_path / "stopped.part" / "state.pt").exists()
    monkeypatch.setattr(kind, "__call__", real)
    again = pretrain(options, lambda what, done, total: None)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, again))
    start = load_file(Path(base) / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], start[name])}
    eyes = {name for name in one if "vision_model" in name or "connector" in name}
    words = "model.text_model.embed_tokens.weight"
    if stage in ("labels", "signs"):
        assert changed - eyes == ({words} if stage == "labels" else set())
        assert any("connector" in name for name in changed)
    else:
        assert words in changed and bool(changed & eyes) == (stage == "both") and len(changed - eyes) > 5
    lines = [json.loads(line) for line in (whole / f"{stage}.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert open_source(str(whole)).load() is not None  # with its heads beside it, the folder is a checkpoint


def test_options_are_checked() -> None:
    with pytest.raises(EdgeVLMError, match="1 or more"):
        PretrainOptions("default", Path("x"), steps=0)
