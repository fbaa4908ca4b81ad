"""MMMU's reading of answers (Yue et al. 2024, arXiv 2311.16502; MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

# Disciplines and their subjects, mmmu/utils/data_utils.py.
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
SUBJECTS = tuple(subject for subjects in DISCIPLINES.values() for subject in subjects)
_ENDS = ",.!?;:'"
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_choice(response: str, options: Mapping[str, str], seed: str) -> str:
    """The letter that a response to a multiple-choice question means; the last one where it names several.

    "(B)" goes before a "B" between blanks, and that before an option's own text in a response of more than five words.
    Where none is found, one is drawn at random, as published; here by `seed`, whatever the order of questions.
    """
    for mark in _ENDS:
        response = response.strip(mark)
    response = f" {response} "
    for form in ("({})", " {} "):
        places = {letter: response.rfind(form.format(letter)) for letter in options}
        found = {letter: place for letter, place in places.items() if place >= 0}
        if found:
            return max(found, key=found.__getitem__)
    if len(response.split()) > 5:
        lower = response.lower()
        places = {letter: lower.rfind(text.lower()) for letter, text in options.items()}
        found = {letter: place for letter, place in places.items() if place >= 0}
        if found:
            return max(found, key=found.__getitem__)
    return random.Random(f"42 {seed}").choice(list(options))


def open_correct(response: str, answers: Sequence[str]) -> float:
    """1 where a number of the response equals the truth to two decimals, or a key phrase holds the truth's text."""
    truths = [value for answer in answers for value in _normalized(answer)]
    for found in parse_open(response):
        if isinstance(found, str):
            if any(isinstance(truth, str) and truth in found for truth in truths):
                return 1.0
        elif found in truths:
            return 1.0
    return 0.0


def parse_open(response: str) -> list[str | float]:
    """What a free response may mean: its key phrases, and the numbers in them."""
    phrases = _key_phrases(response)
    texts = [*phrases, *(number for phrase in phrases for pattern in _NUMBERS for number in pattern.findall(phrase))]
    found = dict.fromkeys(value for text in texts for value in _normalized(text))
    return list(found)


def _key_phrases(response: str) -> list[str]:
    """The shortest tail after a cue in each sentence; the whole response where no sentence has one."""
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)  # lower case by now: in effect, lines
    phrases = []
    for number, sentence in enumerate(sentences, 1):
        cues = (*_CUES, "=") if number == len(sentences) else _CUES
        tails = [sentence.split(cue)[-1].strip() for cue in cues if cue in sentence]
        shortest = _shortest(tails)
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            phrases.append(shortest)
    return phrases or [response]


def _shortest(tails: list[str]) -> str:
    """As published: an empty tail is replaced by the next one of any length."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def _normalized(text: str) -> list[str | float]:
    """A number rounded to two decimals, or lower-case text; a single character only beside a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
