"""POPE: yes or no to "Is there a ... in the image?" (Li et al. 2023, arXiv 2305.10355; AoiDragon/POPE, evaluate.py)."""

from __future__ import annotations

from collections.abc import Iterable

MODES = ("random", "popular", "adversarial")


def said_yes(answer: str) -> bool:
    """Anything is a yes unless the first sentence has the word "No", "no" or "not"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_metrics(pairs: Iterable[tuple[bool, bool]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of yes, from (said yes, is yes) pairs; "yes" is positive.

    A ratio without cases is 0.
    """
    pairs = list(pairs)
    hits = sum(said and true for said, true in pairs)
    said, true = sum(said for said, _ in pairs), sum(true for _, true in pairs)
    precision, recall = _ratio(hits, said), _ratio(hits, true)
    return {
        "accuracy": _ratio(sum(said == true for said, true in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_rate": _ratio(said, len(pairs)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
