"""A video becomes pictures and the words between them: which frames, how large, and what is said of their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.inputs.check import check
from edgevlm.inputs.resample import FILTERS
from edgevlm.inputs.rules import Rule
from edgevlm.io import limits
from edgevlm.types import Ids


@dataclass(frozen=True)
class VideoSpec:
    """Frames are spread evenly from the first to the last, `fps` for each second of the video, at most `most`.

    skip: seconds left out at both ends of a video that is longer than `most` * `fps` seconds without them.
    rule, resample: of a frame, which is one view. {count} is the number of frames in words, {duration} H:MM:SS, {time}
    MM:SS of a frame.
    """

    fps: float
    most: int
    skip: int
    rule: Rule
    resample: str
    intro: str  # before the frames
    stamp: str  # before each frame
    outro: str  # after them

    def __post_init__(self) -> None:
        check(0 < self.fps <= limits.FRAME_RATE, "image", "video.fps", f"up to {limits.FRAME_RATE}", self.fps)
        check(1 <= self.most <= limits.FRAMES, "image", "video.most", f"1 to {limits.FRAMES}", self.most)
        check(0 <= self.skip <= 60, "image", "video.skip", "0 to 60", self.skip)
        check(self.resample in FILTERS, "image", "video.resample", " or ".join(FILTERS), self.resample)
        for name in ("intro", "stamp", "outro"):
            text, long = getattr(self, name), limits.PICTURE_TEXT
            check(len(text) <= long, "image", f"video.{name}", f"at most {long} characters", text)

    def frames(self, total: int, rate: float) -> Ids:
        """Which of a video's `total` frames are taken, int64 (n,), rising; rate: of its frames per second."""
        seconds = total / rate
        count = max(1, min(round(self.fps * seconds), self.most))
        first, last = 0, total - 1
        if self.skip and seconds - 2 * self.skip > self.most * self.fps:
            first, last = int(self.skip * rate), min(int(total - self.skip * rate), total - 1)
        if first >= last:
            first, last = 0, total - 1
        return np.unique(np.linspace(first, last, count, dtype=np.int64))

    def texts(self, frames: Ids, total: int, rate: float) -> list[str]:
        """What stands before each frame, and behind the last."""
        whole = int(total / rate)
        duration = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
        intro = self.intro.replace("{count}", in_words(len(frames))).replace("{duration}", duration)
        times = [int(frame) / rate for frame in frames]
        stamps = [self.stamp.replace("{time}", f"{int(t // 60):02}:{int(t % 60):02}") for t in times]
        return [intro + stamps[0], *stamps[1:], self.outro]


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
