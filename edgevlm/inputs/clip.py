"""Frames of a video -> views for an encoder, and their place in a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.grounding import Frame, frame_of
from edgevlm.inputs.packing import Pooled
from edgevlm.inputs.preprocess import cut_views, plan
from edgevlm.inputs.spec import ImageSpec, VideoTokens, ViewTokens
from edgevlm.inputs.video import VideoSpec
from edgevlm.types import U8, Ids


@dataclass(frozen=True, eq=False)
class Clip:
    """A video, prepared: what a prompt and an encoder need of it, so that no frame is held at its own size.

    views: uint8 (H, W, 3 * frames of one view), those of a frame that has several one behind the other. frames: what
    the model sees of each, for boxes.
    """

    tokens: VideoTokens
    views: list[U8]
    frames: tuple[Frame, ...]


def make_clip(
    pictures: Iterable[Image.Image], numbers: Ids, total: int, rate: float, spec: ImageSpec, video: VideoSpec, room: int
) -> Clip:
    """The frames `numbers` of a video of `total` frames at `rate` per second, as RGB pictures in their order.

    There may be fewer than numbers, where a file ends before it says. Raises EdgeVLMError, before any other frame is
    looked at, for a video whose tokens do not fit into `room`, and for one without frames.
    """
    rules, frames, cut = spec.frames(video, len(numbers)), list[Frame](), list[U8]()
    of_one = list[ViewTokens]()
    for picture in _alike(pictures):
        views = plan(*picture.size, rules)
        if not frames:
            of_one = [ViewTokens(view.place, *rules.token_grid(view)) for view in views]
            _check_room(_tokens(of_one, len(numbers), numbers, total, rate, spec, video).count, len(numbers), room)
        frames.append(frame_of(picture.size, views))
        cut += cut_views(picture, views, rules)
    if not cut:
        raise EdgeVLMError("The video has no frame that can be decoded: use an intact copy.")
    tokens = _tokens(of_one, len(frames), numbers, total, rate, spec, video)
    group = video.group
    groups = (cut[start : start + group] for start in range(0, len(cut), group))
    together = [np.concatenate([*own, *own[-1:] * (group - len(own))], axis=2) for own in groups]
    return Clip(tokens, cut if group == 1 else together, tuple(frames))


def _tokens(
    of_one: list[ViewTokens], count: int, numbers: Ids, total: int, rate: float, spec: ImageSpec, video: VideoSpec
) -> VideoTokens:
    """Of the first `count` frames, each of which has these views' tokens."""
    frames, views, (whole, *tiles) = numbers[:count], -(-count // video.group), of_one
    runs = [whole] * views
    if video.pooled:
        newline = np.array(spec.packing.newline if spec.packing else (), np.float32)
        pooled = Pooled((whole.rows, whole.cols), views, newline)
        runs = [ViewTokens(None, 1, pooled.tokens, pooled)]
    elif not video.apart:
        runs = [ViewTokens(None, whole.rows, whole.cols, None, views, video.step(frames, total, rate))]
    parts = list[str | ViewTokens]()
    for run, (before, behind) in zip(runs, video.texts(frames, total, rate), strict=True):
        parts += [before, run, behind]
        for number, tile in enumerate(tiles):
            if number and _row(tile) != _row(tiles[number - 1]):
                parts.append(video.row_join)
            parts += [video.tile, tile, video.tile_close]
    return VideoTokens((*parts, video.outro), video.token, video.like_text)


def _row(tile: ViewTokens) -> int:
    return tile.place[0] if tile.place else 0


def _alike(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """All in the size of the first: a stream may change it."""
    size = None
    for picture in pictures:
        size = size or picture.size
        yield picture if picture.size == size else picture.resize(size)


def _check_room(tokens: int, frames: int, room: int) -> None:
    if tokens >= room:
        raise EdgeVLMError(
            f"{frames} frames of the video would take {tokens} tokens, and the model's context holds {room}: take "
            "fewer frames (--max-frames, --fps), or cut the video into pieces."
        )
