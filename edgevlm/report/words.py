"""The summary in words: what each bundle costs, loses and gains against the baseline, and what cannot be told."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.evaluation.statistics import FEWEST, Difference
from edgevlm.io.console import seconds, size
from edgevlm.report.compare import FIRST, LAST, Compared, Row, scores_of


def lead(c: Compared) -> list[str]:
    """What to know first, in two or three sentences."""
    others, base = c.others(), c.base
    if not others:
        return [f"One bundle, {base.member.name}: {_listed(costs(base))}. There is nothing to compare it with."]
    best = base.member.name
    small = min(others, key=lambda row: row.bytes)
    if small.bytes < base.bytes:
        good, bad = ([words for words, worse in _against(c, small) if worse is which] for which in (False, True))
        but = f", but {_listed(bad)}" if bad else ""
        said = f"{small.member.name} is the smallest, {size(small.bytes)} where {best} has {size(base.bytes)}"
        sentences = [f"{said}{': ' if good else ''}{_listed(good)}{but}."]
    else:
        sentences = [f"No bundle is smaller than {best}, which has {size(base.bytes)}."]
    found = [(row, d) for row in others if (d := c.difference(row))]
    for sign, than in ((-1, "less"), (1, "more")):
        told = [(row.member.name, points(sign * d.mean)) for row, d in found if d.told and sign * d.mean > 0]
        each = [f"{name} {'' if i else 'scores '}{by}" for i, (name, by) in enumerate(told)]
        if each:
            sentences.append(f"{_listed(each)} points {than} than {best}.")
    level = [(row, d) for row, d in found if not d.told]
    if level:
        names = _listed([row.member.name for row, _ in level])
        asked = " and ".join(dict.fromkeys(f"{d.n:,}" for _, d in level))
        sentences.append(f"With {asked} questions, the score of {names} cannot be told apart from {best}'s.")
        least = min((row for row, _ in level), key=lambda row: row.bytes)
        if least.bytes < base.bytes and least is not small:
            name = least.member.name
            sentences.append(f"The smallest without a loss that can be told is {name}, {size(least.bytes)}.")
    if not found:
        sentences.append(f"No score was measured that could be compared with {best}'s.")
    return sentences


def costs(row: Row) -> list[str]:
    """Absolute figures."""
    found = [f"{size(row.bytes)} on disk"]
    if row.memory:
        found.append(f"{size(round(row.memory))} of memory")
    if row.timed:
        found.append(f"{seconds(row.seconds(FIRST))} to the first token")
        if row.seconds(LAST) > 0:
            found.append(f"{rate(1 / row.seconds(LAST))} tokens a second after it")
    return found


def loses(c: Compared, row: Row) -> list[str]:
    """Score first, where it was compared, then what is bigger or slower."""
    skills = [f"{points(-d.mean)} points in {skill}" for skill, d in c.skills(row).items() if d.mean < 0]
    return _sentences(
        [] if _gain(c, row) else [_score_words(c, row)], skills, [w for w, bad in _against(c, row) if bad]
    )


def gains(c: Compared, row: Row) -> list[str]:
    skills = [f"{points(d.mean)} points in {skill}" for skill, d in c.skills(row).items() if d.mean > 0]
    better = [words for words, bad in _against(c, row) if not bad]
    return _sentences([_score_words(c, row)] if _gain(c, row) else [], skills, better) or ["Nothing that can be told."]


def untold(c: Compared, row: Row) -> str | None:
    """Times that were measured and cannot be told apart, or cannot be compared."""
    if row.timed is None:
        return None
    if c.base.timed is None or row.bench is not c.base.bench:
        return f"Its times are of another benchmark than {c.base.member.name}'s: not compared."
    named = (("the first token", FIRST), ("the tokens after it", LAST))
    open_ = [(what, ratio) for what, stages in named if (ratio := c.ratio(row, stages)) and not ratio.told]
    if not open_:
        return None
    what = " and ".join(words for words, _ in open_)
    return f"The time of {what} cannot be told apart from {c.base.member.name}'s with {open_[0][1].turns} questions."


def difference_words(found: Difference) -> str:
    """A difference in points with its interval, or that there is none to tell."""
    interval = f"95% interval {signed(found.low)} to {signed(found.high)} points"
    if found.told:
        return f"{signed(found.mean)} points over {found.n:,} questions, {interval}"
    limits = f" ({interval})" if found.n >= FEWEST else ""
    return f"cannot be told apart with {found.n:,} questions{limits}"


def signed(share: float) -> str:
    """Points with a sign that is as wide as a plus."""
    return f"{100 * share:+.1f}".replace("-", "\u2212")


def points(share: float) -> str:
    return f"{100 * share:.1f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"


def rate(value: float) -> str:
    """Tokens a second: three figures, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sentences(score: list[str], skills: list[str], rest: list[str]) -> list[str]:
    return [*score, *(f"{_listed(words)}." for words in (skills, rest) if words)]


def _gain(c: Compared, row: Row) -> bool:
    found = c.difference(row)
    return found is not None and found.told and found.mean > 0


def _score_words(c: Compared, row: Row) -> str:
    best, found = c.base.member.name, c.difference(row)
    if row.score is None or c.base.score is None:
        whose = "its" if row.score is None else f"{best}'s"
        return f"Not known: {whose} score was not measured."
    if found is None:
        if scores_of(row.score) and scores_of(c.base.score):
            return f"Not known: it was asked none of the questions that {best} was asked."
        return "Not known: a file of an earlier edgevlm does not say which questions were asked."
    asked = f"the same {found.n:,} questions"
    if len(scores_of(row.score)) > found.n or len(scores_of(c.base.score)) > found.n:
        asked = f"the {found.n:,} questions that both were asked"
    both = f"{found.second:.1%} against {found.first:.1%}"
    if not found.told and found.n < FEWEST:
        return f"Its score cannot be told apart with {asked}."
    if not found.told:
        interval = f"{signed(found.low)} to {signed(found.high)} points"
        return f"Its score cannot be told apart with {asked}: {both} (95% interval of the difference {interval})."
    low, high = sorted((abs(found.low), abs(found.high)))
    interval = f"95% interval {points(low)} to {points(high)}"
    return f"{points(abs(found.mean))} points of score over {asked}: {both} ({interval})."


def _against(c: Compared, row: Row) -> list[tuple[str, bool]]:
    """What is bigger, smaller, slower or faster than the baseline, and whether it is the worse of the two."""
    found = [(c.base.bytes / row.bytes if row.bytes else 1.0, "smaller", "bigger")]
    if c.base.memory and row.memory:
        found.append((c.base.memory / row.memory, "less memory", "more memory"))
    for stages, better, worse in (
        (FIRST, "sooner to the first token", "later to the first token"),
        (LAST, "the tokens a second", "the time for each token"),
    ):
        ratio = c.ratio(row, stages)
        if ratio and ratio.told:
            found.append((1 / ratio.median, better, worse))
    return [
        (f"{times(more)} {better}", False) if more > 1 else (f"{times(1 / more)} {worse}", True)
        for more, better, worse in found
        if not 0.99 < more < 1.01  # it would read 1.00x
    ]


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
