"""Videos in a conversation: files become frames, as each model was trained to see them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, Unsupported
from edgevlm.inputs.clip import make_clip
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.video import VideoSpec
from edgevlm.inputs.video_file import open_video
from edgevlm.io import limits
from edgevlm.io.options import shown


def with_videos(question: Any, spec: ImageSpec, room: int) -> Any:
    """The conversation with each item {"type": "video", "video": PATH} of it as one that holds a `Clip`.

    "fps" and "max_frames" of an item are taken in the place of the model's own. room: positions of the model's context.
    Raises EdgeVLMError for a file that is no video, for a model that takes none, and where its frames are too many.
    """
    if isinstance(question, str | bytes | bytearray | memoryview) or not isinstance(question, Sequence):
        return question  # conversation_of says what is wrong with it
    return [_message(message, spec, room) for message in question]


def _message(message: Any, spec: ImageSpec, room: int) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    video = [isinstance(item, Mapping) and item.get("type") == "video" for item in content]
    items = [_item(item, spec, room) if own else item for item, own in zip(content, video, strict=True)]
    return {**message, "content": items}


def _item(item: Mapping[str, Any], spec: ImageSpec, room: int) -> dict[str, Any]:
    if spec.video is None:
        raise Unsupported("This model takes no videos: ask about single frames, as pictures.")
    path = item.get("video", item.get("path"))
    if not isinstance(path, str | os.PathLike):
        raise EdgeVLMError(f"A video item of a message holds {type(path).__name__}: give the path of a file.")
    video = _asked(spec.video, item.get("fps"), item.get("max_frames"))
    with open_video(Path(path)) as file:
        chosen = video.frames(file.total, file.rate)
        clip = make_clip(file.frames(chosen), chosen, file.total, file.rate, spec, video, room)
    return {"type": "video", "video": clip}


def _asked(video: VideoSpec, fps: Any, most: Any) -> VideoSpec:
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps <= limits.FRAME_RATE):
        raise EdgeVLMError(f"The frames per second are {shown(fps)}: give a number up to {limits.FRAME_RATE:g}.")
    if most is not None and not (type(most) is int and 1 <= most <= limits.FRAMES):
        raise EdgeVLMError(f"The most frames are {shown(most)}: give a whole number from 1 to {limits.FRAMES}.")
    most = most or video.most
    slower = () if fps else video.slower
    return replace(video, fps=fps or video.fps, slower=slower, most=most, least=min(video.least, most))
