"""Scores of short texts: ANLS (DocVQA), relaxed accuracy (ChartQA), the contained answer (OCRBench), exact match."""

from __future__ import annotations

from collections.abc import Sequence

ANLS_THRESHOLD = 0.5
RELAXED = 0.05  # relative error that a number may have


def anls(answer: str, answers: Sequence[str]) -> float:
    """1 - normalized Levenshtein distance to the nearest truth, and 0 below one half.

    Biten et al. 2019 (arXiv 1907.00490, equation 1) as the Robust Reading Competition's script for DocVQA computes it:
    case and runs of blanks do not count, lengths are those of the raw texts, and a similarity of exactly one half
    stays (the paper's equation would drop it; the script and pix2struct's metrics.py keep it).
    """
    ours = _folded(answer)
    distances = []
    for text in answers:
        length = max(len(text), len(answer))
        distances.append(levenshtein(_folded(text), ours) / length if length else 0.0)
    similarity = 1 - min(distances, default=1.0)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def levenshtein(one: str, two: str) -> int:
    """The fewest insertions, deletions and substitutions of a character between two texts."""
    if len(one) < len(two):
        one, two = two, one
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed_accuracy(answer: str, answers: Sequence[str]) -> float:
    """1 where a number is within 5 % of the truth, or any other text equals it but for case.

    Masry et al. 2022 (arXiv 2203.10244, end of section 5.1), as in pix2struct's metrics.py: a percent sign divides by
    100, and a truth of 0 is compared as text. Blanks around the answer are dropped first.
    """
    return float(any(_relaxed(answer.strip(), text.strip()) for text in answers))


def _relaxed(answer: str, truth: str) -> bool:
    ours, theirs = _number(answer), _number(truth)
    if ours is not None and theirs:
        return abs(ours - theirs) / abs(theirs) <= RELAXED
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contains_answer(answer: str, answers: Sequence[str], *, spaceless: bool = False) -> float:
    """1 where a truth stands inside the answer (Liu et al. 2023, arXiv 2305.07895; OCRBench/example.py).

    Case does not count; `spaceless` is the rule for formulas (HME100k): case counts, blanks do not.
    """

    def fold(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if spaceless else text.lower()

    ours = fold(answer)
    return float(any(fold(text) in ours for text in answers))


def exact(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer is a truth, but for case, blanks around it and a period at its end."""
    ours = plain(answer)
    return float(any(ours == plain(text) for text in answers))


def plain(text: str) -> str:
    return _folded(text).removesuffix(".").rstrip()


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
