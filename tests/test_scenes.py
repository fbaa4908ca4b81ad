"""The scene generator and its questions: truth against pixels, splits, and text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm.train import pictures
from edgevlm.train.questions import SKILLS, ask, caption, count_questions, exists_question, plural
from edgevlm.train.scenes import (
    COLOUR_NAMES,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SPLITS,
    UNSEEN_PAIRS,
    compose,
    draw_scene,
    scene_rng,
)

seeds = st.integers(0, 2**31)


@given(st.sampled_from(SPLITS), seeds)
@settings(max_examples=60, deadline=None)
def test_objects_are_inside_apart_and_painted_in_their_colour(split: str, seed: int) -> None:
    scene = draw_scene(split, seed)
    width, height = scene.picture.size
    pixels = np.asarray(scene.picture).astype(int)
    assert 1 <= len(scene.objects) <= MAX_OBJECTS
    for item in scene.objects:
        left, top, right, bottom = item.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        x, y = np.mean(item.outline, axis=0)
        distances = {c: float(np.linalg.norm(pixels[int(y), int(x)] - rgb)) for c, rgb in COLOURS.items()}
        assert min(distances, key=lambda c: distances[c]) == item.colour
    for i, a in enumerate(scene.objects):
        for b in scene.objects[i + 1 :]:
            gap = math.dist(np.mean(a.outline, axis=0), np.mean(b.outline, axis=0))
            radius = [max(math.dist(np.mean(o.outline, axis=0), p) for p in o.outline) for o in (a, b)]
            assert gap > 0.95 * sum(radius)


def test_same_seed_same_scene_and_splits_differ() -> None:
    first, again = draw_scene("train", 7), draw_scene("train", 7)
    assert first.objects == again.objects and first.picture.tobytes() == again.picture.tobytes()
    pictures = {draw_scene(split, 7, (96, 96)).picture.tobytes() for split in SPLITS}
    assert len(pictures) == len(SPLITS)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_unseen_pairs_stay_out_of_other_splits(split: str) -> None:
    rng = scene_rng(split, 2**42)
    for seed in range(150):
        scene = draw_scene(split, seed, (96, 96))
        assert not {(o.colour, o.shape) for o in scene.objects} & set(UNSEEN_PAIRS)
        for question in ask(scene, rng):
            assert not any(f"{c} {s}" in question.text for c, s in UNSEEN_PAIRS)


def test_unseen_split_always_shows_an_unseen_pair() -> None:
    for seed in range(100):
        assert {(o.colour, o.shape) for o in draw_scene("unseen", seed, (96, 96)).objects} & set(UNSEEN_PAIRS)


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_area_is_that_of_the_polygon(shape: str) -> None:
    scene = compose(np.random.default_rng(3), [("black", shape)], (400, 400))
    item = scene.objects[0]
    pixels = np.asarray(scene.picture).astype(int)
    drawn = int((np.linalg.norm(pixels - COLOURS["black"], axis=2) < 40).sum())
    x, y = np.array(item.outline).T
    area = 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))  # the shoelace formula
    assert drawn == pytest.approx(area, rel=0.06)


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_answers_agree_with_an_independent_reading_of_the_objects(seed: int) -> None:
    scene = draw_scene("test", seed, (96, 96))
    pairs = [(o.colour, o.shape) for o in scene.objects]
    for question in ask(scene, np.random.default_rng(seed), counts=4, caption_share=1.0):
        assert question.skill in SKILLS
        words = question.text.rstrip("?.").split()
        colours = [w for w in words if w in COLOUR_NAMES]
        shapes = [s for s in SHAPES if s in words or plural(s) in words]
        match = [(c, s) for c, s in pairs if (not colours or c in colours) and (not shapes or s in shapes)]
        if question.skill == "count":
            assert question.answer == str(len(match))
        elif question.skill == "exists":
            assert question.answer == ("yes" if match else "no")
        elif question.skill == "colour":
            assert {c for c, _ in match} == {question.answer}
        elif question.skill == "shape":
            kind = {s for _, s in match}
            assert len(kind) == 1 and question.answer in (min(kind), plural(min(kind)))
            assert (question.answer in SHAPES) == (len(match) == 1)


def test_caption_reads_naturally() -> None:
    rng = np.random.default_rng(0)
    pairs = [("red", "circle"), ("blue", "square"), ("blue", "square"), ("orange", "cross")]
    assert caption(compose(rng, pairs, (300, 300))) == "a red circle, two blue squares and an orange cross"
    assert caption(compose(rng, [("green", "star")], (300, 300))) == "a green star"
    assert caption(compose(rng, [], (300, 300))) == "no shapes"


def test_counts_to_five_are_all_asked_often() -> None:
    rng = np.random.default_rng(1)
    answers: Counter[str] = Counter()
    for seed in range(300):
        answers.update(q.answer for q in count_questions(draw_scene("train", seed, (96, 96)), rng, 4, True))
    assert set(answers) == {str(n) for n in range(MAX_OBJECTS + 1)}
    assert min(answers.values()) > 0.04 * sum(answers.values())


def test_existence_is_balanced_and_grammatical() -> None:
    rng = np.random.default_rng(2)
    questions = [exists_question(draw_scene("train", s, (96, 96)), rng, True) for s in range(400)]
    share = sum(q.answer == "yes" for q in questions) / len(questions)
    assert 0.35 < share < 0.65
    assert not any("a orange" in q.text or "crosss" in q.text for q in questions)


def test_shipped_pictures_are_small_listed_and_drawn_again_alike(tmp_path: Path) -> None:
    shipped = Path(pictures.__file__).parents[1] / "assets" / "pictures"
    listed = (shipped / "README.md").read_text()
    names = [p.name for p in shipped.iterdir() if p.suffix != ".md"]
    assert len(names) >= 6
    for name in names:
        assert f"`{name}`" in listed and (shipped / name).stat().st_size <= 40 * 1024
    pictures.write_scenes(tmp_path)
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(shipped / path.name) as stored:
            assert drawn.tobytes() == stored.tobytes()
