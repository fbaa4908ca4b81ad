"""Pictures for pretraining: crowds of more things and signs than a scene has, mixtures of kinds, and walls of signs."""

from __future__ import annotations

from edgevlm.scenes.catalogue import NOUNS
from edgevlm.scenes.generator import compose, size_of
from edgevlm.scenes.plan import SMALLEST, Item, random_item, random_sign
from edgevlm.scenes.scene import Scene
from edgevlm.scenes.stream import Stream

_KEY, _MIXTURE, _SIGNS, _SIGN = 4, 5, 7, 9  # the first numbers of these streams' keys; Scenes' own is 2
_MOST = 11  # things in a mixture
_RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))


def make_crowd(seed: int, index: int) -> Scene:
    """Crowd number `index`: 3 to 12 things and up to 3 signs, or 2 to 6 signs and up to 3 things.

    They are of any kinds that the train split may show. More signs would be smaller than those in questions.
    """
    stream = Stream(_KEY, seed, index)
    written = stream.chance(0.5)
    things, signs = stream.between(*(0, 3) if written else (3, 12)), stream.between(*(2, 6) if written else (0, 3))
    ratio = stream.choice(_RATIOS)
    largest = min(0.5, 0.62 / (things + 2 * signs) ** 0.5)
    items: list[Item] = [random_sign(stream, "train") for _ in range(signs)]
    items += [random_item(stream, "train", NOUNS, SMALLEST, max(SMALLEST, largest)) for _ in range(things)]
    return compose(stream, "train", seed, index, size_of(ratio), items)


def make_mixture(seed: int, index: int) -> Scene:
    """Mixture number `index`: 2 to 5 kinds of which there are 1 to 5 each, and a sign in every other picture."""
    stream = Stream(_MIXTURE, seed, index)
    kinds = stream.between(2, 5)
    counts = [stream.between(1, 5) if stream.chance(0.6) else 1 for _ in range(kinds)]
    while sum(counts) > _MOST:
        counts[counts.index(max(counts))] -= 1
    ratio = stream.choice(_RATIOS)
    sign = stream.chance(0.5)
    largest = min(0.4, 0.7 / (sum(counts) + 2 * sign) ** 0.5)
    items: list[Item] = [random_sign(stream, "train")] if sign else []
    for count in counts:
        items += [random_item(stream, "train", NOUNS, max(SMALLEST, 0.6 * largest), max(SMALLEST, largest))] * count
    return compose(stream, "train", seed, index, size_of(ratio), items)


def make_signs(seed: int, index: int) -> Scene:
    """Wall number `index`: 4 to 7 signs, a little smaller than a scene's, and at most one thing.

    A picture has about eighteen times as many letters as a scene.
    """
    stream = Stream(_SIGNS, seed, index)
    items = [random_sign(stream, "train") for _ in range(stream.between(4, 7))]
    if stream.chance(0.5):
        items.append(random_item(stream, "train", NOUNS, SMALLEST, 0.2))
    return compose(stream, "train", seed, index, size_of(stream.choice(_RATIOS)), items)


def make_sign(seed: int, index: int) -> Scene:
    """Sign number `index`, among up to three things."""
    stream = Stream(_SIGN, seed, index)
    items = [random_sign(stream, "train")]
    items += [random_item(stream, "train", NOUNS, SMALLEST, 0.3) for _ in range(stream.below(4))]
    return compose(stream, "train", seed, index, size_of(stream.choice(_RATIOS)), items)
