"""A video becomes pictures and the words between them: which frames, how large, and what is said of their times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgevlm.inputs import frame_times
from edgevlm.inputs.check import check
from edgevlm.inputs.frame_rules import NativeFrames
from edgevlm.inputs.resample import FILTERS
from edgevlm.inputs.rules import Rule
from edgevlm.io import limits
from edgevlm.types import Ids

SPREADS = ("ends", "nearest", "starts", "middles", *frame_times.RULES)


@dataclass(frozen=True)
class VideoSpec:
    """How frames are chosen, cut and written into a prompt: docs/preprocessing.md, section 7.

    fps: frames for each second of the video; None: `most` of them. spread: from the first frame to the last, rounded
    down ("ends") or to the nearest ("nearest"); or of as many equal parts, each one's first ("starts") or middle frame;
    or by times, as `frame_times` says. longest: seconds of a video after which it has no more times. slower: seconds of
    a video beyond which these have other frames per second, in rising order.
    skip: of "ends", seconds left out at both ends of a video that is longer than `most` * `fps` seconds without them.
    rule, resample: of a frame, which is one view, or one view of all of it and tiles, between `tile` and `tile_close`.
    group: frames that are one view together: its channels are theirs, one behind the other; the last fills it up.
    apart: each view's tokens are by themselves, with `stamp`, `open`, `close` and `join`; False: all are one run.
    pace: of a run, positions of time in a second; None: one for each view. pooled: of a run, as `Pooled`.
    token: the special token that stands for the views'; empty: the image token.
    like_text: a message that begins with a video begins as one that begins with text, not with an image.

    In `intro`, {count} is the number of frames in words, {duration} the video's H:MM:SS and {index} which of the
    prompt's videos it is, from 0; in `stamp` and `close`, {time} is MM:SS of a view's first frame, {start} its seconds
    and {whole} the whole ones, {seconds} the middle of its and the last's, and {number} the view's, from 1.
    """

    fps: float | None
    most: int
    rule: Rule | NativeFrames
    resample: str
    open: str  # before each view's tokens
    close: str = ""  # after them
    stamp: str = ""  # before a view
    join: str = ""  # between two views
    tile: str = ""  # before each tile's tokens, which follow those of all of the frame
    tile_close: str = ""  # after them
    row_join: str = ""  # between two rows of tiles
    intro: str = ""  # before all
    outro: str = ""  # after them
    least: int = 1
    spread: str = "ends"
    skip: int = 0
    longest: float | None = None
    slower: tuple[tuple[float, float], ...] = ()
    group: int = 1
    apart: bool = True
    pace: float | None = None
    pooled: bool = False
    token: str = ""
    like_text: bool = False

    def __post_init__(self) -> None:
        fps = self.fps is None or 0 < self.fps <= limits.FRAME_RATE
        check(fps, "image", "video.fps", f"up to {limits.FRAME_RATE}", self.fps)
        check(1 <= self.most <= limits.FRAMES, "image", "video.most", f"1 to {limits.FRAMES}", self.most)
        check(1 <= self.least <= limits.FRAMES, "image", "video.least", f"1 to {limits.FRAMES}", self.least)
        check(0 <= self.skip <= 60, "image", "video.skip", "0 to 60", self.skip)
        check(1 <= self.group <= limits.GROUP, "image", "video.group", f"1 to {limits.GROUP}", self.group)
        check(self.pace is None or 0 < self.pace <= 1000, "image", "video.pace", "up to 1000", self.pace)
        check(self.spread in SPREADS, "image", "video.spread", " or ".join(SPREADS), self.spread)
        good = self.fps is not None or self.spread not in frame_times.RULES
        check(good, "image", "video.fps", "a number where frames stand for times", self.fps)
        check(self.longest is None or self.longest > 0, "image", "video.longest", "more than 0", self.longest)
        good = all(after > 0 and 0 < slow <= limits.FRAME_RATE for after, slow in self.slower)
        check(good, "image", "video.slower", f"seconds, and up to {limits.FRAME_RATE} frames", self.slower)
        check(self.resample in FILTERS, "image", "video.resample", " or ".join(FILTERS), self.resample)
        check(not (self.apart and self.pooled), "image", "video.pooled", "false where apart is true", self.pooled)
        texts = ("intro", "stamp", "open", "close", "join", "tile", "tile_close", "row_join", "outro", "token")
        for name in texts:
            text, long = getattr(self, name), limits.PICTURE_TEXT
            check(len(text) <= long, "image", f"video.{name}", f"at most {long} characters", text)

    def frames(self, total: int, rate: float) -> Ids:
        """Which of a video's `total` frames are taken, int64 (n,), in order; rate: of its frames per second.

        By times, the last one is repeated until they are whole views.
        """
        seconds, spread = total / rate, self.spread
        if spread in frame_times.RULES and self.fps is not None:
            fps = next((slow for after, slow in reversed(self.slower) if seconds > after), self.fps)
            found = frame_times.RULES[spread](total, rate, fps, self.most, self.longest or math.inf)
            return np.array(found + found[-1:] * (-len(found) % self.group), np.int64)
        count = self.most
        if self.fps is not None:
            count = round(self.fps * seconds) if spread == "ends" else int(seconds * self.fps)
        count = max(1, min(max(count, self.least), self.most, total))
        first, last = 0, total - 1
        if spread in ("starts", "middles"):
            count = max(1, count // self.group * self.group)
            number = np.arange(count, dtype=np.int64)
            return number * total // count if spread == "starts" else (2 * number + 1) * total // (2 * count)
        if spread == "nearest":
            return np.linspace(first, last, count).round().astype(np.int64)
        if self.skip and self.fps and seconds - 2 * self.skip > self.most * self.fps:
            first, last = int(self.skip * rate), min(int(total - self.skip * rate), total - 1)
        if first >= last:
            first, last = 0, total - 1
        return np.unique(np.linspace(first, last, count, dtype=np.int64))

    def texts(self, frames: Ids, total: int, rate: float) -> list[tuple[str, str]]:
        """What stands before and behind the tokens of each view, or of each frame with tiles; of a run, around it."""
        whole = int(total / rate)
        duration = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
        intro = self.intro.replace("{count}", in_words(len(frames))).replace("{duration}", duration)
        if not self.apart:
            return [(intro, "")]
        times, found = [int(frame) / rate for frame in frames], list[tuple[str, str]]()
        for number, start in enumerate(range(0, len(times), self.group), 1):
            first, last = times[start], times[min(start + self.group, len(times)) - 1]
            words = {
                "{time}": f"{int(first // 60):02}:{int(first % 60):02}",
                "{start}": f"{first:.1f}",
                "{whole}": str(int(first)),
                "{seconds}": f"{(first + last) / 2:.1f}",
                "{number}": str(number),
            }
            stamp, close = (_filled(text, words) for text in (self.stamp, self.close))
            found.append((f"{self.join if start else intro}{stamp}{self.open}", close))
        return found

    def step(self, frames: Ids, total: int, rate: float) -> float:
        """Positions of time from one view of a run to the next."""
        return 1.0 if self.pace is None else self.pace * float(np.float32(self.group / (len(frames) / total * rate)))


def _filled(text: str, words: dict[str, str]) -> str:
    for name, said in words.items():
        text = text.replace(name, said)
    return text


_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """A whole number below 1,000 in English: "twenty-one", "one hundred and five"."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    return f"{_SMALL[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")
