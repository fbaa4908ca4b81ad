"""What each family's video processor does to a frame, where that depends on how many are taken."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.inputs import grids
from edgevlm.inputs.native import Native
from edgevlm.io import limits

_MORE = 1.05  # of the least pixels: a share is never smaller


@dataclass(frozen=True)
class NativeFrames(Native):
    """A frame near its own size, as `Native`, of a video of which `count` are taken, `group` for each view.

    together: `least` and `most` are of all frames (Qwen3-VL), not of each (Qwen2-VL). cap: further pixels that are not
    exceeded: of each frame where the others are of all, and of all where they are of each, shared evenly.
    """

    together: bool = False
    group: int = 2
    cap: int | None = None
    count: int = 1
    kind: str = "native_frames"

    def bounds(self) -> dict[str, int]:
        most = limits.NATIVE_PIXELS * (limits.FRAMES if self.together else 1)
        return {**super().bounds(), "most": most, "cap": limits.COUNT, "count": limits.FRAMES}

    def edges(self, width: int, height: int) -> tuple[int, int]:
        if self.together and min(width, height) < self.unit:
            scale = max(self.unit / height, self.unit / width)
            return int(width * scale), int(height * scale)
        return width, height

    def near(self, width: int, height: int) -> tuple[int, int]:
        most, floor, frames = self.most, int(self.least * _MORE), max(self.count, self.group)
        if not self.together:
            most = most if self.cap is None else max(min(most, self.cap * self.group // frames), floor)
            return grids.near(width, height, self.unit, self.least, most, begin=0)
        if self.cap is not None:
            most = max(min(self.cap, most // frames), floor) * frames
        return grids.near(width, height, self.unit, self.least, most, 0, frames, self.group)
