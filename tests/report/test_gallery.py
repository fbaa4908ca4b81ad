"""The gallery: what it says of answers, and the order of its cards."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from edgevlm.report.asking import GalleryAnswer, GalleryEntry, thumbnail
from edgevlm.report.gallery import gallery, marked


def entry(name: str, truth: str | None, *said: str | None) -> GalleryEntry:
    answers = tuple(GalleryAnswer(f"b{i}", words) for i, words in enumerate(said))
    return GalleryEntry("data:image/jpeg;base64,AA", name, f"Question {name}?", truth, answers)


def test_differences_are_marked_word_by_word() -> None:
    assert marked("a red cat", "a red cat") == "a red cat"
    assert marked("a red cat sits", "a blue cat") == "a <del>red</del> <mark>blue</mark> cat<del> sits</del>"
    assert marked("", "new <b>") == "<mark>new &lt;b&gt;</mark>"
    assert marked("x", "") == "<del>x</del>"


def test_the_gallery_says_same_different_and_right() -> None:
    html = gallery([entry("p", "red", "Red.", "Red.", "blue", None)])
    assert html.count('class="answer') == 3, "one for the two that agree"
    assert "<li><bdi>b0</bdi></li><li><bdi>b1</bdi></li>" in html
    assert html.count("\u2713 right") == 1 and html.count("\u2717 wrong") == 1 and "no answer" in html
    assert "Right answer" not in html, "somebody said it"
    assert "Right answer: <strong>red</strong>" in gallery([entry("p", "red", "blue", "green")])
    assert "all 3 agree" in gallery([entry("p", None, "cat", "cat", "cat")])


def test_right_answers_come_first_and_all_wrong_ones_last() -> None:
    cards = gallery(
        [
            entry("wrong", "red", "blue", "blue"),
            entry("differ", None, "cat", "dog"),
            entry("agree", None, "cat", "cat"),
            entry("half", "red", "blue", "red"),
            entry("right", "red", "red", "Red."),
            entry("failed", "red", "red", None),
        ]
    )
    places = [cards.index(f"Question {name}?") for name in ("right", "half", "failed", "agree", "differ", "wrong")]
    assert places == sorted(places)


def test_thumbnails_are_small_for_any_shape(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGBA", (2000, 10), (255, 0, 0, 128)).save(path)
    assert len(thumbnail(path)) < 4000
    assert thumbnail(Image.new("L", (1, 1))).startswith("data:image/jpeg;base64,")
