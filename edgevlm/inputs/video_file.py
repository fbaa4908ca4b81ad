"""Frames of a video file, read by PyAV (FFmpeg): containers by their first bytes, frames one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.inputs.picture_limits import check_size
from edgevlm.io import limits
from edgevlm.io.regular import open_regular
from edgevlm.types import Ids

_TURN = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class VideoFile:
    """A video that is open for reading. total: its frames. rate: of them per second."""

    def __init__(self, name: str, container: Any) -> None:
        self._name, self._container = name, container
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise EdgeVLMError(f"{name} has pictures in a form that FFmpeg does not read: save it as an MP4 again.")
        self.rate = float(self._stream.average_rate or 0)
        # Some containers do not say how many frames they have.
        self.total = int(self._stream.frames) or self._count()
        check_size(name, self._stream.width, self._stream.height)
        if not self.total or not 0 < self.rate <= limits.FRAME_RATE:
            raise EdgeVLMError(f"{name} has {self.total} frames at {self.rate:g} per second: save it as an MP4 again.")
        if self.total > limits.VIDEO_FRAMES:
            raise EdgeVLMError(
                f"{name} has {self.total} frames, at most {limits.VIDEO_FRAMES} are read: cut it into pieces first."
            )

    def _count(self) -> int:
        count = 0
        for packet in self._container.demux(self._stream):
            count += packet.size > 0
            if count > limits.VIDEO_FRAMES:
                break
        self._container.seek(0)
        return count

    def frames(self, wanted: Ids) -> Iterator[Image.Image]:
        """The frames of these numbers, none lower than the one before, upright, as RGB, each as often as its number is
        there. A file that ends before gives those that it has."""
        left = Counter(wanted.tolist())
        decoded: Iterator[tuple[int, Any]] = enumerate(self._container.decode(self._stream))
        while left:
            with _sentences(self._name):
                found = next(decoded, None)
            if found is None:
                return
            number, frame = found
            check_size(self._name, frame.width, frame.height)
            if times := left.pop(number, 0):
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                turn = round(frame.rotation) % 360
                yield from [picture.transpose(_TURN[turn]) if turn in _TURN else picture] * times


@contextmanager
def open_video(path: Path) -> Iterator[VideoFile]:
    """Open a video file. Raises EdgeVLMError for what is none, and where PyAV is missing."""
    try:
        import av
    except ImportError:
        raise EdgeVLMError(
            f"Videos are read by the package av, which is not installed: {install_hint('video')}."
        ) from None
    name = f"The video '{path}'"
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise EdgeVLMError(f"There is no video '{path}': check the path.") from None
    except OSError as error:
        raise EdgeVLMError(f"{name} cannot be read ({error.strerror}): check its permissions.") from None
    with stream:
        kind = _kind(stream.read(16))
        stream.seek(0)
        if kind is None:
            raise EdgeVLMError(f"{name} is of a kind that is not read: save it as MP4, MOV, MKV, WebM or AVI.")
        with _sentences(name):
            # One reader, chosen by us, and no protocol: a playlist could have others open files and addresses.
            container = av.open(stream, format=kind, options={"protocol_whitelist": ""})
        with container:
            if not container.streams.video:
                raise EdgeVLMError(f"{name} has no pictures: choose a file with a video track.")
            with _sentences(name):
                video = VideoFile(name, container)
            yield video


def _kind(head: bytes) -> str | None:
    """FFmpeg's name of a container."""
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:11] == b"AVI" else None


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    from av import error

    try:
        yield
    except (error.FFmpegError, ValueError, IndexError) as problem:
        raise EdgeVLMError(
            f"{name} is damaged or incomplete and cannot be decoded ({str(problem)[:100]}): use an intact copy."
        ) from None
