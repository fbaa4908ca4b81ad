"""Videos in a conversation: each becomes pictures and the words between them, as its model was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.grounding import Frame, frame_of
from edgevlm.inputs.preprocess import cut_views, plan
from edgevlm.inputs.prompt import Views
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.video import VideoSpec
from edgevlm.inputs.video_file import open_video
from edgevlm.io import limits
from edgevlm.types import U8


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """A frame, prepared: what a prompt and an encoder need of it, so that no frame is held at its own size."""

    tokens: Views
    views: list[U8]
    frame: Frame


def with_videos(question: Any, spec: ImageSpec) -> Any:
    """The conversation with each item {"type": "video", "video": PATH} in it as texts and `VideoFrame`s.

    "fps" and "max_frames" of an item are taken in the place of the model's own. Raises EdgeVLMError for a file that is
    no video, and for a model that takes none.
    """
    if isinstance(question, str | bytes | bytearray | memoryview) or not isinstance(question, Sequence):
        return question  # conversation_of says what is wrong with it
    return [_message(message, spec) for message in question]


def _message(message: Any, spec: ImageSpec) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    items: list[Any] = []
    for item in content:
        if isinstance(item, Mapping) and item.get("type") == "video":
            items += _items(item, spec)
        else:
            items.append(item)
    return {**message, "content": items}


def _items(item: Mapping[str, Any], spec: ImageSpec) -> list[dict[str, Any]]:
    if spec.video is None:
        raise EdgeVLMError("This model takes no videos: ask about single frames, as pictures.")
    path = item.get("video", item.get("path"))
    if not isinstance(path, str | os.PathLike):
        raise EdgeVLMError(f"A video item of a message holds {type(path).__name__}: give the path of a file.")
    video = _asked(spec.video, item.get("fps"), item.get("max_frames"))
    rules = spec.frames(video)
    with open_video(Path(path)) as file:
        chosen = video.frames(file.total, file.rate)
        frames = []
        for picture in file.frames(chosen):
            views = plan(*picture.size, rules)
            tokens = rules.view_tokens(views, picture.size)
            frames.append(VideoFrame(tokens, cut_views(picture, views, rules), frame_of(picture.size, views)))
        if not frames:
            raise EdgeVLMError(f"The video '{path}' has no frame that can be decoded: use an intact copy.")
        texts = video.texts(chosen[: len(frames)], file.total, file.rate)
    made: list[dict[str, Any]] = []
    for text, frame in zip(texts, [*frames, None], strict=True):
        made += [{"type": "text", "text": text}] if text else []
        made += [{"type": "image", "image": frame}] if frame else []
    return made


def _asked(video: VideoSpec, fps: Any, most: Any) -> VideoSpec:
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps <= limits.FRAME_RATE):
        raise EdgeVLMError(f"The frames per second are {fps!r}: give a number up to {limits.FRAME_RATE:g}.")
    if most is not None and not (type(most) is int and 1 <= most <= limits.FRAMES):
        raise EdgeVLMError(f"The most frames are {most!r}: give a whole number from 1 to {limits.FRAMES}.")
    return replace(video, fps=fps or video.fps, most=most or video.most)
