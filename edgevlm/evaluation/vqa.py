"""VQA accuracy as its authors compute it, for VQA v2 and TextVQA.

Ten people answered each question. An answer's accuracy is min(matches / 3, 1) against nine of them, averaged over the
ten ways to leave one out (Antol et al. 2015, arXiv 1505.00468; https://visualqa.org/evaluation.html). Text is made
comparable first, as in GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py: lower case, number words to
digits, no articles, no periods but decimal ones, missing apostrophes put back, other punctuation gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll "
    "you're you've"
)
_MORE_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"
)
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTED.split())}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
# The official pattern reads `(?!<=\d)(\.)(?!\d)`: its first group, meant as a look-behind, never excludes anything.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official call passes re.UNICODE (32) where the count of replacements stands


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, char in enumerate(word) if char == "'"]


_CONTRACTIONS = {
    short: word for word in f"{_ONE_APOSTROPHE} {_MORE_APOSTROPHES}".split() for short in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}  # so in the official table


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """0..1. Text is normalized only where the annotators do not all agree, as in the official code."""
    ours, theirs = _one_line(answer), [_one_line(text) for text in answers]
    if len(set(theirs)) > 1:
        ours, theirs = normalize(ours), [normalize(text) for text in theirs]
    return _leave_one_out(ours, theirs)


def textvqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """0..1. TextVQA's server always normalizes, after one more step (facebookresearch/mmf, m4c_evaluators.py)."""

    def prepare(text: str) -> str:
        return normalize(_one_line(text.lower().replace(",", "").replace("?", "").replace("'s", " 's")))

    return _leave_one_out(prepare(answer), [prepare(text) for text in answers])


def normalize(text: str) -> str:
    """The official processPunctuation and processDigitArticle."""
    out, number = text, _COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        glued = number or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if glued else " ")
    out = _PERIOD.sub("", out, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(answer: str, answers: Sequence[str]) -> float:
    if not answers:
        return 0.0
    matches = [text == answer for text in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)
