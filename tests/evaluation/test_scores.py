"""Scoring rules against numbers from their own definitions: papers, official pages and the authors' tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.evaluation import clip, mmmu, pope, scenes, statistics, text, vqa
from edgevlm.evaluation.item import Item, Result
from edgevlm.evaluation.suites import SUITES
from edgevlm.scenes.question import Fact


@pytest.mark.parametrize(("said_by", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_is_averaged_over_nine_of_ten(said_by: int, accuracy: float) -> None:
    """min(n / 3, 1) over the ten choose nine subsets: 0.3, 0.6, 0.9 and 1 for 1, 2, 3 and 4 of ten people."""
    answers = ["red"] * said_by + [f"other {i}" for i in range(10 - said_by)]
    assert vqa.vqa_accuracy("red", answers) == pytest.approx(accuracy)
    assert vqa.textvqa_accuracy("red", answers) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("raw", "comparable"),
    [  # the rules of https://visualqa.org/evaluation.html, its examples first
        ("100,978", "100978"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("Two", "2"),
        ("none", "0"),
        ("the dog", "dog"),
        ("An apple a day.", "apple day"),
        ("3.5 m.", "3.5 m"),
        ("red/blue", "red blue"),
        ("yes, it is", "yes it is"),
        ("left-hand", "left hand"),
    ],
)
def test_vqa_normalization(raw: str, comparable: str) -> None:
    assert vqa.normalize(raw) == comparable


def test_vqa_answers_that_all_agree_are_compared_as_they_are() -> None:
    """The official code processes texts only where the annotators differ."""
    assert vqa.vqa_accuracy("two", ["2"] * 10) == 0.0
    assert vqa.vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1.0
    assert vqa.textvqa_accuracy("Two?", ["2"] * 10) == 1.0
    assert vqa.textvqa_accuracy("wendy's", ["Wendy 's"] * 4 + ["x"] * 6) == 1.0
    assert vqa.vqa_accuracy("yes\n", ["yes"] * 10) == 1.0


# pix2struct/metrics_test.py: predictions, targets, and exact match 12.5, ANLS 47.5, relaxed accuracy 62.5 %.
PREDICTIONS = ("abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't")
TARGETS = ("abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't")


def test_anls_and_relaxed_accuracy_on_the_numbers_of_pix2struct() -> None:
    pairs = list(zip(PREDICTIONS, TARGETS, strict=True))
    assert sum(text.anls(said, [true]) for said, true in pairs) / 8 == pytest.approx(0.475)
    assert sum(text.relaxed_accuracy(said, [true]) for said, true in pairs) / 8 == pytest.approx(0.625)


def test_anls_by_hand() -> None:
    """Biten et al. 2019, equation 1: the nearest truth, nothing below one half."""
    assert text.anls("12/15/89", ["12/15/88"]) == pytest.approx(1 - 1 / 8)
    assert text.anls("Dear dr. Lobo", ["Dear Dr. Lobo", "Dr. Lobo"]) == 1.0
    assert text.anls("kitten", ["sitting", "nothing at all"]) == pytest.approx(1 - 3 / 7)
    assert text.anls("abcd", ["abxy"]) == 0.5
    assert text.anls("abcd", ["axyz"]) == 0.0
    assert text.anls("", ["abc"]) == 0.0 and text.anls("", [""]) == 1.0
    assert text.anls("new  york\n", ["New York"]) == 1.0


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_levenshtein_is_a_distance(one: str, two: str, three: str) -> None:
    distance = text.levenshtein
    assert distance(one, two) == distance(two, one)
    assert (distance(one, two) == 0) == (one == two)
    assert distance(one, three) <= distance(one, two) + distance(two, three)
    assert abs(len(one) - len(two)) <= distance(one, two) <= max(len(one), len(two))


def test_levenshtein_of_the_textbook_pair() -> None:
    assert text.levenshtein("kitten", "sitting") == 3
    assert text.levenshtein("intention", "execution") == 5  # Jurafsky and Martin, section 2.5, cost 1 each


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [  # ChartQA, section 5.1: numbers within 5 %, other answers exactly
        ("105", "100", 1.0), ("95", "100", 1.0), ("105.1", "100", 0.0), ("94.9", "100", 0.0), ("-95", "-100", 1.0),
        ("0.3", "30%", 1.0), ("Yes", "yes", 1.0), ("Yes", "No", 0.0), ("0", "0", 1.0), ("0.001", "0", 0.0),
        ("2015", "2014", 1.0), (" 12 ", "12", 1.0), ("12 years", "12", 0.0),
    ],
)  # fmt: skip
def test_relaxed_accuracy(said: str, true: str, right: float) -> None:
    assert text.relaxed_accuracy(said, [true]) == right


def test_ocrbench_looks_for_the_answer_inside() -> None:
    """OCRBench/example.py: lower case, line breaks as blanks; formulas of HME100k with their case, without blanks."""
    assert text.contains_answer("The sign reads\nRonaldo.", ["ronaldo", "messi"]) == 1.0
    assert text.contains_answer("Ronald", ["ronaldo"]) == 0.0
    assert text.contains_answer("x ^ { 2 } + Y", ["x^{2}+Y"], spaceless=True) == 1.0
    assert text.contains_answer("x ^ { 2 } + y", ["x^{2}+Y"], spaceless=True) == 0.0
    item = Item("1", (), "", ("a + b",), "Handwritten Mathematical Expression Recognition", {"dataset": "HME100k"})
    assert SUITES["ocrbench"].score(item, "= a+b").score == 1.0
    results = [
        Result(Item(str(i), (), "", ("a",), skill, {"dataset": "x"}), said, SUITES["ocrbench"].score(item, said))
        for i, (skill, said) in enumerate([("Handwriting Recognition", "a+b"), ("Doc-oriented VQA", "a+b")])
    ]
    assert SUITES["ocrbench"].metrics(results) == {"points": 2.0, "text_recognition_points": 1.0}


def test_pope_reads_a_no_as_its_authors_do() -> None:
    assert not pope.said_yes("No, there is no dog.") and not pope.said_yes("There is not.")
    assert not pope.said_yes("no") and pope.said_yes("Yes. There are no cats.") and pope.said_yes("")
    assert pope.said_yes("none") and pope.said_yes("NO")  # only the words "No", "no" and "not" count


def test_pope_metrics_by_hand() -> None:
    """TP 6, FP 2, TN 8, FN 4; then the model that always says yes, for which the paper's F1 is 66.67."""
    pairs = [(True, True)] * 6 + [(True, False)] * 2 + [(False, False)] * 8 + [(False, True)] * 4
    found = pope.pope_metrics(pairs)
    assert found == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_rate": 0.4})
    always = pope.pope_metrics([(True, True)] * 5 + [(True, False)] * 5)
    assert always == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_rate": 1.0})
    assert pope.pope_metrics([(False, True)])["precision"] == 0.0


def test_pope_averages_its_three_samplings() -> None:
    suite = SUITES["pope"]
    items = [Item(f"{m}{i}", (), "", (a,), m) for m in pope.MODES for i, a in enumerate(("yes", "no"))]
    answers = ["yes", "no", "yes", "yes", "no", "no"]  # accuracy 1, 1/2, 1/2
    results = [Result(item, said, suite.score(item, said)) for item, said in zip(items, answers, strict=True)]
    found = suite.metrics(results)
    assert found["random_accuracy"] == 1.0 and found["popular_precision"] == 0.5 and found["adversarial_recall"] == 0.0
    assert found["accuracy"] == pytest.approx(2 / 3) and found["yes_rate"] == pytest.approx(0.5)


OPTIONS = {"A": "$6", "B": "$7 per unit", "C": "Chicago", "D": "none"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [  # eval_utils.py: brackets, then a letter between blanks, then an option's text in more than five words; the last
        ("B", "B"), ("(C)", "C"), ("The answer is D.", "D"), ("A or B", "B"), ("(A) rather than B", "A"),
        ("(B), although (A) is near", "A"), ("I am quite sure that it is chicago indeed", "C"),
        ("chicago then $6 which is what it costs", "A"), ("'C'", "C"),
    ],
)  # fmt: skip
def test_mmmu_reads_a_letter(response: str, letter: str) -> None:
    assert mmmu.parse_choice(response, OPTIONS, "q") == letter


def test_mmmu_draws_where_nothing_is_said() -> None:
    drawn = [mmmu.parse_choice("chicago", OPTIONS, f"validation_Art_{i}") for i in range(400)]  # five words or fewer
    assert drawn == [mmmu.parse_choice("chicago", OPTIONS, f"validation_Art_{i}") for i in range(400)]
    assert all(70 < drawn.count(letter) < 130 for letter in "ABCD")


@pytest.mark.parametrize(
    ("response", "answers", "right"),
    [
        ("The total is 1,234.567", ["1234.57"], 1.0),  # two decimals, commas dropped
        ("The total is 1,234.5", ["1234.57"], 0.0),
        ("So x = 3.5e-1", ["0.35"], 1.0),
        ("it could be Paris", ["paris"], 1.0),
        ("the answer is the city of lyon in france", ["Lyon"], 1.0),  # the truth inside the key phrase
        ("the answer is paris in france", ["Paris"], 0.0),  # the cue "is " cuts "paris ": so does the published code
        ("london", ["paris", "London"], 1.0),
        ("The answer is b", ["b"], 1.0),
        ("The answer is abc", ["b"], 0.0),  # one character counts only beside a blank
    ],
)
def test_mmmu_open_answers(response: str, answers: list[str], right: float) -> None:
    assert mmmu.open_correct(response, answers) == right


def test_mmmu_means_over_subjects_and_disciplines() -> None:
    """30 subjects; a subject counts once in the macro mean, a question once in a discipline."""
    assert len(mmmu.SUBJECTS) == 30
    suite = SUITES["mmmu"]
    rows = [("Art", "A"), ("Art", "A"), ("Art", "B"), ("Music", "B"), ("Math", "A")]
    items = [Item(str(i), (), "", ("A",), s, {"kind": "choice", "options": OPTIONS}) for i, (s, _) in enumerate(rows)]
    results = [Result(i, said, suite.score(i, said)) for i, (_, said) in zip(items, rows, strict=True)]
    assert suite.metrics(results) == pytest.approx(
        {"subject_macro_accuracy": (2 / 3 + 0 + 1) / 3, "Art and Design": 0.5, "Science": 1.0}
    )


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [  # Newcombe 1998, table I, method 3 (score without continuity correction)
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ],
)  # fmt: skip
def test_wilson_interval(right: int, asked: int, low: float, high: float) -> None:
    assert statistics.wilson(right, asked) == pytest.approx((low, high), abs=5e-5)
    assert statistics.wilson(asked - right, asked) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_wilson_holds_the_mean(scores: list[float]) -> None:
    found = statistics.summary(scores)
    assert 0 <= found["low"] <= found["score"] <= found["high"] <= 1
    assert found["n"] == len(scores)


def test_intersection_over_union_by_hand() -> None:
    assert scenes.intersection_over_union((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert scenes.intersection_over_union((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert scenes.intersection_over_union((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0


def test_boxes_are_read_from_tokens_and_numbers() -> None:
    middle = pytest.approx((0.5 / 64, 16.5 / 64, 32.5 / 64, 63.5 / 64))
    assert scenes.parse_box("<loc_0><loc_16><loc_32><loc_63>", 64) == middle
    assert scenes.parse_box("[0.1, 0.2, .5, 0.75]", 64) == (0.1, 0.2, 0.5, 0.75)
    assert scenes.parse_box("from (32, 24) to (64, 96)", 64, (128, 96)) == (0.25, 0.25, 0.5, 1.0)
    assert scenes.parse_box("(32, 24, 64, 96)", 64) is None  # pixels of a picture of unknown size
    assert scenes.parse_box("<loc_5><loc_6><loc_2><loc_9>", 64) is None  # no area
    assert scenes.parse_box("in the upper left", 64) is None
    assert scenes.parse_box("", 64) is None


def test_grounding_counts_from_one_half() -> None:
    item = Item("g", (), "", ("",), "grounding", {"bins": 64, "box": (0.0, 0.0, 0.5, 0.5), "size": (100, 100)})
    assert scenes.score_scenes(item, "0 0 0.5 0.25").score == 1.0
    assert scenes.score_scenes(item, "0 0 0.5 0.24").score == 0.0


def caption(facts: list[Fact]) -> Item:
    return Item("c", (), "", ("",), "caption", {"facts": tuple(facts)})


def test_captions_are_scored_by_what_they_state() -> None:
    """F1 of facts; CHAIR's two shares over all captions (Rohrbach et al. 2018, section 2.2)."""
    item = caption([Fact(3, "red", "car"), Fact(1, None, "dog"), Fact(1, None, "sign")])
    perfect = scenes.score_scenes(item, "Three red cars, a dog and a sign that says CAT.")
    assert perfect.score == 1.0 and perfect.figures == {"named": 3, "invented": 0}
    some = scenes.score_scenes(item, "2 red cars and a brown dog next to an elephant")  # one of three stated is right
    assert some.score == pytest.approx(2 * 1 / (3 + 3)) and some.figures == {"named": 3, "invented": 1}
    assert scenes.score_scenes(item, "a street").score == 0.0
    assert scenes.score_scenes(item, "a dog, a dog").score == pytest.approx(2 * 1 / (2 + 3))  # said twice, there once
    results = [Result(item, "", scored) for scored in (perfect, some)]
    found = scenes.scenes_metrics(results)
    assert found == {"caption_chair_i": pytest.approx(1 / 6), "caption_chair_s": 0.5}


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("an orange star", [Fact(1, "orange", "star")]),
        ("two fish and some cactuses", [Fact(2, None, "fish"), Fact(2, None, "cactus")]),
        ("The picture shows a big red ball on a table.", [Fact(1, "red", "ball")]),
        ("10 black keys, red", [Fact(10, "black", "key")]),
        ("a red and a blue car", [Fact(1, "blue", "car")]),
        ("a dress, a cross", [Fact(1, None, "dress"), Fact(1, None, "cross")]),
    ],
)
def test_facts_of_a_caption(words: str, facts: list[Fact]) -> None:
    assert scenes.stated_facts(words) == facts


def test_scenes_answers_are_compared_as_text() -> None:
    item = Item("0", (), "", ("teal",), "colour")
    assert [scenes.score_scenes(item, said).score for said in ("teal", " Teal. ", "it is teal", "")] == [1, 1, 0, 0]


def test_zero_shot_by_hand() -> None:
    """Angles: pictures at 0, 50 and 80 degrees, classes at 0, 45 and 90."""

    def at(*degrees: float) -> np.ndarray:
        radians = np.radians(degrees)
        return np.stack([np.cos(radians), np.sin(radians)], -1)

    found = clip.zero_shot(at(0, 50, 80) * 7, at(0, 45, 90), [0, 2, 0], ks=(1, 2, 3))
    assert found == pytest.approx({"top1": 1 / 3, "top2": 2 / 3, "top3": 1.0})
    assert clip.prompt_ensemble(at(0, 90)[None] * [[[1.0], [5.0]]]) == pytest.approx(at(45))
    # Two pictures, three captions; caption 2 (at 85 degrees) belongs to picture 0.
    both = clip.retrieval(at(0, 90), at(5, 60, 85), [0, 1, 0], ks=(1, 2))
    assert both == pytest.approx({"text_r1": 0.5, "text_r2": 1.0, "image_r1": 2 / 3, "image_r2": 1.0})


@given(st.text(max_size=60) | st.from_regex(r"(<loc_[0-9]+>|-?[0-9.]+|[a-z]+|[ ,.]){0,12}", fullmatch=True))
def test_no_answer_breaks_a_scorer(said: str) -> None:
    """Whatever a model says, every suite gives it 0..1."""
    data = {"bins": 64, "box": (0.1, 0.1, 0.5, 0.5), "size": (64, 48), "facts": (Fact(1, "red", "car"),),
            "mode": "random", "dataset": "HME100k", "options": OPTIONS, "kind": "choice", "metric": "anls"}  # fmt: skip
    for name, suite in SUITES.items():
        skills = scenes.SKILLS if name == "scenes" else ("x",)
        for skill in skills:
            assert 0 <= suite.score(Item("1", (), "", ("yes",), skill, data), said).score <= 1
    assert 0 <= SUITES["mmmu"].score(Item("1", (), "", ("3",), "Art", {"kind": "open"}), said).score <= 1
