"""The gallery: pictures with the answers of each bundle on each engine; words that differ are marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from edgevlm.report.asking import GalleryEntry
from edgevlm.report.charts import Series
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import swatch


def gallery(entries: Sequence[GalleryEntry], looks: Mapping[str, Series] | None = None) -> Html:
    """A card per question: the picture, and every distinct answer with who gave it; right answers first.

    looks: the mark of each bundle on its engine, by name.
    """
    return h("div", *(_card(entry, looks or {}) for entry in sorted(entries, key=_rank)), class_="gallery")


def _rank(entry: GalleryEntry) -> tuple[int, float]:
    """All right; some right; no known answer, those that all agree on first; all wrong."""
    said = [answer.text for answer in entry.answers]
    if entry.truth is None:
        return (2, len(set(said)))
    wrong = sum(text is None or not _right(text, entry.truth) for text in said)
    return (0 if not wrong else 1 if wrong < len(said) else 3, wrong)


def _card(entry: GalleryEntry, looks: Mapping[str, Series]) -> Html:
    groups: dict[str | None, list[str]] = {}
    for answer in entry.answers:
        groups.setdefault(answer.text, []).append(answer.who)
    first = entry.answers[0].text if entry.answers else None
    said = [_said(words, who, first, entry, looks) for words, who in groups.items()]
    wrong = entry.truth is not None and not any(text and _right(text, entry.truth) for text in groups)
    truth = h("p", "Right answer: ", h("strong", entry.truth), class_="caption") if wrong else None
    picture = h("figure", h("img", src=entry.picture, alt=entry.name), h("figcaption", h("bdi", entry.name)))
    return h("article", picture, h("div", h("h3", h("bdi", entry.words)), *said, truth), class_="card asked")


def _said(
    words: str | None, who: Sequence[str], first: str | None, entry: GalleryEntry, looks: Mapping[str, Series]
) -> Html:
    """One answer; words are marked against the first."""
    if len(who) == len(entry.answers) > 1:
        names = h("p", f"all {len(who)} agree", class_="caption who")
    else:
        seen = [(looks.get(name), name) for name in who]
        marks = (h("li", swatch(look) if look else None, h("bdi", look.name if look else name)) for look, name in seen)
        names = h("ul", *marks, class_="caption who")
    if words is None:
        return h("div", h("em", "no answer"), names, class_="answer differs")
    text = words if first is None or words == first else marked(first, words)
    verdict = None
    if entry.truth is not None:
        right = _right(words, entry.truth)
        verdict = h("span", "\u2713 right" if right else "\u2717 wrong", class_="badge good" if right else "badge bad")
    quoted = h("p", h("span", text, dir="auto", class_="words"), verdict)
    differs = first is not None and words != first
    return h("div", quoted, names, class_="answer differs" if differs else "answer")


def _right(words: str, truth: str) -> bool:
    return plain(words) == plain(truth)


def marked(first: str, second: str) -> Html:
    """`second`, with words that `first` lacks marked, and words that only `first` has struck out."""
    ours, theirs = re.findall(r"\s+|\S+", second), re.findall(r"\s+|\S+", first)
    parts: list[object] = []
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, new = "".join(theirs[a:b]), "".join(ours[c:d])
        if kind == "equal":
            parts.append(new)
            continue
        if gone.strip():
            parts.append(h("del", gone))
        if gone.strip() and new.strip():
            parts.append(" ")
        parts.append(h("mark", new) if new.strip() else new)
    return join(*parts)


def plain(answer: str) -> str:
    """Lower case without final stop, to mark answers right or wrong; scores come from `edgevlm eval`."""
    return answer.strip().rstrip(".").casefold()
