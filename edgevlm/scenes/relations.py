"""Questions on where things are and how large, only where every person would give the same answer.

Margins: left and right need a horizontal distance of centres of at least twice the vertical one (and the reverse);
halves of the picture need the whole object on its side and its centre 14 % away from the middle; bigger needs 1.4 times
the longest side and 1.7 times the area.
"""

from __future__ import annotations

import itertools

from edgevlm.scenes import phrases as say
from edgevlm.scenes.catalogue import SIGN
from edgevlm.scenes.scene import Scene, SceneObject
from edgevlm.scenes.stream import Stream

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
DOMINANT = 2.0
SIDE_RATIO, AREA_RATIO = 1.4, 1.7
MARGIN = 0.03
HALF = 0.14
_Draft = tuple[str, str]


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Where the first is from the second: left, right, above or below; None where it is not clear."""
    (x, y), (u, v) = first.centre, second.centre
    across, down = x - u, y - v
    a, b = first.box, second.box
    if abs(across) >= DOMINANT * abs(down) and (a[2] <= b[0] or b[2] <= a[0]):
        return "left" if across < 0 else "right"
    if abs(down) >= DOMINANT * abs(across) and (a[3] <= b[1] or b[3] <= a[1]):
        return "above" if down < 0 else "below"
    return None


def larger(first: SceneObject, second: SceneObject) -> bool | None:
    """Whether the first is clearly larger (True) or clearly smaller (False) than the second; None between."""
    side = _longest(first) / _longest(second)
    area = _area(first) / _area(second)
    if side >= SIDE_RATIO and area >= AREA_RATIO:
        return True
    if side <= 1 / SIDE_RATIO and area <= 1 / AREA_RATIO:
        return False
    return None


def _longest(item: SceneObject) -> int:
    left, top, right, bottom = item.box
    return max(right - left, bottom - top)


def _area(item: SceneObject) -> int:
    left, top, right, bottom = item.box
    return (right - left) * (bottom - top)


def spatial_questions(scene: Scene, stream: Stream) -> list[_Draft]:
    """One of the possible questions, or none."""
    named = say.unique_phrases(scene, stream)
    drafts = []
    for (first, x), (second, y) in itertools.pairwise(named):
        where = relation(first, second)
        if where:
            drafts.append((say.put(stream, say.RELATION, x=x, y=y), where))
            side, answer = (where, "yes") if stream.chance(0.5) else (OPPOSITE[where], "no")
            drafts.append((say.put(stream, say.IS_RELATED[side], x=x, y=y), answer))
    for item, x in named:
        drafts += [(say.put(stream, say.WHAT_RELATED[w], x=x), name) for w, name in _sides(scene, item)]
    if not drafts or stream.chance(0.25):
        drafts += [draft for item, x in named[:1] for draft in _halves(scene, item, x, stream)]
    return [stream.choice(drafts)] if drafts else []


def _sides(scene: Scene, item: SceneObject) -> list[tuple[str, str]]:
    """(side, noun) where one object alone lies wholly on that side and nothing else comes near it."""
    others = [other for other in scene.objects if other is not item]
    margin = min(scene.picture.size) * MARGIN
    found = []
    for side, edge, sign in (("left", 0, -1), ("above", 1, -1), ("right", 2, 1), ("below", 3, 1)):
        near = edge - 2 if edge >= 2 else edge + 2
        beyond = [other for other in others if sign * (other.box[near] - item.box[edge]) >= 0]
        reaching = [other for other in others if sign * (other.box[edge] - item.box[edge]) > -margin]
        if len(beyond) == 1 and reaching == beyond and beyond[0].name != item.name:
            found.append((side, beyond[0].name))
    return found


def _halves(scene: Scene, item: SceneObject, x: str, stream: Stream) -> list[_Draft]:
    left, top, right, bottom = scene.fraction(item.box)
    x_middle, y_middle = (left + right) / 2, (top + bottom) / 2
    drafts = []
    if (right <= 0.5 or left >= 0.5) and abs(x_middle - 0.5) > HALF:
        drafts.append((say.put(stream, say.LEFT_RIGHT, x=x), "left" if x_middle < 0.5 else "right"))
    if (bottom <= 0.5 or top >= 0.5) and abs(y_middle - 0.5) > HALF:
        drafts.append((say.put(stream, say.TOP_BOTTOM, x=x), "top" if y_middle < 0.5 else "bottom"))
    return drafts


def size_questions(scene: Scene, stream: Stream) -> list[_Draft]:
    """One of the possible questions, or none."""
    named = say.unique_phrases(scene, stream)
    drafts = []
    for (first, x), (second, y) in itertools.pairwise(named):
        bigger = larger(first, second)
        if bigger is not None:
            want = stream.chance(0.5)
            drafts.append((say.put(stream, say.BIGGER[want], x=x, y=y), x if bigger == want else y))
            drafts.append((say.put(stream, say.IS_BIGGER[want], x=x, y=y), "yes" if bigger == want else "no"))
    if len(scene.objects) > 1 and all(item.noun is not SIGN for item in scene.objects):
        for want in (True, False):
            drafts += [
                (say.put(stream, say.BIGGEST[want]), item.name)
                for item in scene.objects
                if all(larger(item, other) is want for other in scene.objects if other is not item)
            ]
    return [stream.choice(drafts)] if drafts else []
