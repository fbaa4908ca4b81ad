"""Pictures and a question -> everything that is computed before the engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import ContextFull
from edgevlm.generate.given import Kept, conversation_of, pictures_of
from edgevlm.generate.pictures import Later, PictureCache
from edgevlm.generate.videos import with_videos
from edgevlm.inputs.clip import Clip
from edgevlm.inputs.grounding import Frame
from edgevlm.inputs.layout import Layout
from edgevlm.inputs.preprocess import array_key
from edgevlm.inputs.prompt import Prompter, Views
from edgevlm.inputs.render import Conversation
from edgevlm.inputs.spec import VideoTokens
from edgevlm.types import U8, Ids


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prepared question."""

    ids: Ids  # (S,)
    layout: Layout  # where the views' tokens lie
    views: Sequence[U8]  # of all pictures in order, (H, W, 3) each
    max_tokens: int  # what the options ask for, cut to what the context length leaves
    frames: tuple[Frame, ...] = ()  # what the model sees of each picture, for boxes
    places: str | None = None  # "boxes" | "points": what is asked of the region head, in the place of text
    label: str = ""  # ... and of what
    keys: tuple[bytes, ...] = ()  # of the views

    @property
    def image_tokens(self) -> int:
        return sum(span.tokens for span in self.layout.spans)

    @cached_property
    def picture_keys(self) -> list[tuple[bytes, ...]]:
        """The keys of each span's views."""
        found, start = [], 0
        for span in self.layout.spans:
            found.append(self.keys[start : start + len(span.features)])
            start += len(span.features)
        return found

    def views_before(self, start: int) -> int:
        """How many views' tokens lie before `start`."""
        return sum(len(span.features) for span in self.layout.spans if span.start < start)


def prepare(
    bundle: Bundle,
    prompter: Prompter,
    cache: PictureCache,
    images: Any,
    question: Any,
    max_tokens: int,
    max_tiles: int | None,
    thinking: bool | None,
) -> tuple[Conversation, int, Prompt]:
    """The conversation in the prompter's form, how many pictures it has, and the prompt."""
    spec, limit = bundle.image_spec, bundle.manifest.spec.decoder.context_length
    conversation, pictures = conversation_of(with_videos(question, spec, limit), pictures_of(images))
    stills = sum(not isinstance(picture, Clip) for picture in pictures)
    rule = spec.among(stills)
    placed: list[Views | VideoTokens] = []
    views, keys = list[Sequence[U8]](), list[bytes]()
    frames: list[Frame] = []
    image_tokens = 0
    for source in pictures:
        if isinstance(source, Clip):
            placed.append(source.tokens)
            frames += source.frames
            views.append(source.views)
            keys += map(array_key, source.views)
            image_tokens += source.tokens.count
            continue
        # Once the pictures alone are too many, only their sizes still matter: a thousand of them must end in the
        # sentence below, not in exhausted memory.
        content, tiles = (source.content, source.max_tiles) if isinstance(source, Kept) else (source, max_tiles)
        seen = cache.look(content, rule, stills > 1, tiles, limit - image_tokens)
        placed.append(seen.tokens)
        frames.append(seen.frame)
        views.append(seen.views)
        keys += seen.keys
        image_tokens += seen.count
    ids, layout = prompter.encode(conversation, placed, thinking=thinking, room=limit)
    if len(ids) >= limit:
        videos = sum(isinstance(each, VideoTokens) for each in placed)
        sentence = _too_long(len(ids), image_tokens, len(placed) - videos, videos, max_tokens, limit)
        raise ContextFull(sentence, len(ids) + max_tokens, limit)
    most = min(max_tokens, limit - len(ids))
    together = Later(len(keys), lambda: [view for part in views for view in part])
    return conversation, len(pictures), Prompt(ids, layout, together, most, tuple(frames), keys=tuple(keys))


def _too_long(prompt: int, image: int, pictures: int, videos: int, wanted: int, limit: int) -> str:
    if videos:
        what = f"{image} of them from frames of videos" + (" and pictures" if pictures else "")
        remedy = "take fewer frames (--max-frames, --fps)"
    elif image:
        pictures_are = "1 picture" if pictures == 1 else f"{pictures} pictures"
        what = f"{image} of them from {pictures_are}"
        remedy = "allow fewer tiles per picture, give fewer pictures or a shorter question"
    else:
        what, remedy = "none of them from pictures", "ask a shorter question"
    return (
        f"The prompt takes {prompt} tokens ({what}) and up to {wanted} for the answer, but the model's "
        f"context holds {limit}: {remedy}."
    )
