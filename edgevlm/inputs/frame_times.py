"""Which frames of a video stand for times in it, by each family's own rule: docs/preprocessing.md, section 7.

`total` frames at `rate` per second; `fps` of them are taken for each second of the first `longest` ones, and at most
`most` in all. Each gives rising numbers, at least one, in the float64 arithmetic of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def steps(total: int, rate: float, fps: float, most: int, longest: float) -> list[int]:
    """The first frame at or behind each time, once each: every 1 / fps seconds, or spread over the whole."""
    seconds = total / rate
    count = max(1, int(min(seconds, longest) * fps))
    if seconds <= longest and count <= most:
        found = [math.ceil(i * rate / fps) for i in range(count)]
    elif (count := min(count, most)) >= total:
        found = list(range(total))
    else:
        found = [math.ceil(time * rate) for time in np.linspace(0, seconds, count)]
    return sorted({min(number, total - 1) for number in found})


def walk(total: int, rate: float, fps: float, most: int, longest: float) -> list[int]:
    """The same, once each, of a time that is counted up; as many as are wanted are spread where they are
    not what was found."""
    seconds, last = total / rate, total - 1
    count = max(1, min(int(min(seconds, longest) * fps), most))
    first, found = 0, list[int]()
    if total >= count:
        found = _walked(total, rate, 1 / fps, int(seconds))
        if len(found) == count:
            return found
        if len(found) < count:
            first, last = found[0], found[-1]
    return sorted(set(np.linspace(first, last, count, dtype=np.int64).tolist()))


def _walked(total: int, rate: float, step: float, end: int) -> list[int]:
    found, time, of_one = list[int](), 0.0, 1 / rate
    for number in range(total):
        if number * of_one >= time:
            time += step
            found.append(number)
            if time >= end:
                break
    return found


def seconds(total: int, rate: float, fps: float, most: int, longest: float) -> list[int]:
    """The last frame at or before each time: every 1 / fps seconds, or some of ten in a second. A frame
    that lasts longer is there several times."""
    whole = total / rate
    if whole * fps <= most:
        return [int(i * rate / fps) for i in range(math.ceil(whole * fps))]
    found = [min(int(round(i * 0.1, 1) * rate), total - 1) for i in range(int(whole / 0.1))] or [0]
    if len(found) <= most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, most, dtype=np.int64)]


RULES: dict[str, Callable[[int, float, float, int, float], list[int]]] = {
    "steps": steps,
    "walk": walk,
    "seconds": seconds,
}
