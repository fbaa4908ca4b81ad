"""Pictures that were asked about before: their views and features are made once, and kept within a limit of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import PIL
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.given import load_picture
from edgevlm.generate.stored_pictures import StoredPictures
from edgevlm.inputs.decode import decode_image
from edgevlm.inputs.grounding import Frame, frame_of
from edgevlm.inputs.preprocess import array_key, cut_views, plan
from edgevlm.inputs.spec import ImageSpec, ViewTokens
from edgevlm.io.options import shown
from edgevlm.runtimes.base import Encoder
from edgevlm.types import F32, U8

LIMIT = 64 << 20  # bytes: 4 pictures of 17 tiles of 512 pixels, or 60 of one, with their features


class Later(Sequence[U8]):
    """Arrays that are made when one of them is asked for."""

    def __init__(self, count: int, make: Callable[[], Sequence[U8]]) -> None:
        self._count, self._make = count, make
        self._made: Sequence[U8] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> U8: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[U8]: ...
    def __getitem__(self, place: int | slice) -> U8 | Sequence[U8]:
        if self._made is None:
            self._made = self._make()
        return self._made[place]


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture, prepared: what a prompt and an encoder need of it."""

    tokens: list[ViewTokens]
    frame: Frame  # what the model sees of it, for boxes
    views: Sequence[U8]  # (H, W, 3) each; none of a picture that there was no room for
    keys: list[bytes]  # of the views

    @property
    def count(self) -> int:
        return sum(view.rows * view.cols for view in self.tokens)


class PictureCache:
    """Of one bundle and one encoder: prepared pictures by their files' content, and features by their views' pixels.

    What was used least recently goes first. Any thread may use it.
    """

    def __init__(self, limit: int = LIMIT, stored: StoredPictures | None = None) -> None:
        """limit: bytes of memory; 0 keeps nothing. stored: what is kept on disk, too."""
        if type(limit) is not int or limit < 0:
            raise EdgeVLMError(f"The limit of the picture cache is {shown(limit)}: give a whole number of bytes, or 0.")
        self.limit, self.stored = limit, stored
        self._kept: OrderedDict[tuple[Any, ...], tuple[int, Any]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def look(self, source: Any, spec: ImageSpec, several: bool, max_tiles: int | None, room: int) -> Seen:
        """A picture in any form, prepared by the rules of `spec`.

        several: whether these are the rules for one of several pictures. room: image tokens that the context has left;
        of a picture that takes more, only its tokens are made.
        """
        name, content = load_picture(source)
        if isinstance(content, Image.Image):
            content = decode_image(content, spec.background, name)
            digest = array_key(np.asarray(content))
        else:
            digest = hashlib.sha256(content).digest()
        key = (digest, several, max_tiles)
        seen: Seen | None = self._get(key)
        if seen is not None:
            return seen

        def picture() -> Image.Image:
            return content if isinstance(content, Image.Image) else decode_image(content, spec.background, name)

        place = repr((*key, PIL.__version__)).encode()
        if self.stored is not None and (known := self.stored.views(place)) is not None:
            size, keys = known
            planned = plan(*size, spec, max_tiles=max_tiles)
            if len(keys) == len(planned):
                views = Later(len(keys), lambda: cut_views(picture(), planned, spec))
                return Seen(spec.view_tokens(planned, size), frame_of(size, planned), views, keys)
        whole = picture()
        planned = plan(*whole.size, spec, max_tiles=max_tiles)
        tokens, frame = spec.view_tokens(planned, whole.size), frame_of(whole.size, planned)
        seen = Seen(tokens, frame, [], [])
        if seen.count < room:
            cut = cut_views(whole, planned, spec)
            seen = Seen(tokens, frame, cut, [array_key(view) for view in cut])
            self._put(key, seen, sum(view.nbytes for view in cut))
            if self.stored is not None:
                self.stored.write_views(place, whole.size, seen.keys)
        return seen

    def features(
        self, encoder: Encoder, views: Sequence[U8], keys: Sequence[bytes], stopped: Callable[[], bool], start: int = 0
    ) -> list[F32]:
        """Each view's features (tokens, D), from view `start` on; fewer where `stopped` says in between that they are
        not wanted any more."""
        found = list[F32]()
        for number, key in enumerate(keys[start:], start):
            if stopped():
                break
            features = self._get((key,))
            if features is None and self.stored is not None:
                features = self.stored.read(key)
            if features is None:
                (features,) = encoder.encode([views[number]])
                if self.stored is not None:
                    self.stored.write(key, features)
            self._put((key,), features, features.nbytes)
            found.append(features)
        return found

    def clear(self) -> None:
        """Forget what is in memory."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self._bytes

    def _get(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def _put(self, key: tuple[Any, ...], value: Any, size: int) -> None:
        if size > self.limit:
            return
        with self._lock:
            self._bytes += size - self._kept.pop(key, (0, None))[0]
            self._kept[key] = size, value
            while self._bytes > self.limit:
                self._bytes -= self._kept.popitem(last=False)[1][0]
