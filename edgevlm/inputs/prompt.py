"""Conversation and views -> token ids, and token ids -> text (docs/preprocessing.md, section 7).

Needs `tokenizers` and nothing else: the checkpoint's chat template was turned into a PromptSpec at export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from edgevlm.errors import ContextFull, EdgeVLMError
from edgevlm.inputs.layout import Layout, Marker, Span, on_canvas
from edgevlm.inputs.render import AnswerText, ControlText, Conversation, UserText, check_length, render
from edgevlm.inputs.spec import PictureText, PromptSpec, VideoTokens, ViewTokens
from edgevlm.inputs.tokenizer import StreamDecoder, decode, encode, inner_tokenizer, load_tokenizer, longest_token
from edgevlm.types import Ids

Views = Sequence[ViewTokens]
USUAL = 8  # characters of a token; who writes more for each position is looked at more closely


class Prompter:
    """Builds prompts and reads answers with one bundle's tokenizer."""

    def __init__(self, spec: PromptSpec, tokenizer_json: Path | str, vocab_size: int | None = None) -> None:
        """vocab_size: rows of the model's embedding table, which each token's id must lie in; None leaves that open."""
        self.spec = spec
        self.tokenizer = load_tokenizer(Path(tokenizer_json), vocab_size)
        self.inner = inner_tokenizer(self.tokenizer)  # for text behind a prompt's beginning
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: int(id_) for id_, token in added.items() if token.special}
        if self._special.get(spec.image_token) != spec.image_token_id:
            raise EdgeVLMError(
                f"'{tokenizer_json}' does not have '{spec.image_token[:100]}' as the special token "
                f"{spec.image_token_id}: it belongs to another model; export the bundle again."
            )
        longest_first = sorted(self._special, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def longest_token(self) -> float:
        """Characters that one token stands for, at most."""
        return longest_token(self.tokenizer)

    @property
    def image_token_id(self) -> int:
        """The id whose positions image features replace, in order."""
        return self.spec.image_token_id

    def encode(
        self,
        conversation: Conversation,
        pictures: Sequence[Views | VideoTokens] = (),
        *,
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        room: int | None = None,
    ) -> tuple[Ids, Layout]:
        """Token ids int64 (n,) of a question, or of messages [{"role", "content"}], and where its views' tokens lie.

        pictures: of each, its views in order, as `ImageSpec.view_tokens` gives them, or a video (`make_clip`).
        thinking: as `Chat.switched`. room: positions; a text that cannot fit into them whatever it says is refused by
        its length, with ContextFull, and not encoded.
        Equal to Hugging Face's processor and chat template, but for special tokens spelled out in the user's
        text: here they are text, so that a question can neither end its turn nor add an image.
        """
        spec, text = self.spec, _Text(self, room)

        def control(written: str) -> None:
            for number, piece in enumerate(self._splitter.split(written)):
                if number % 2:
                    text.token(self._special[piece])
                else:
                    text.write(piece)

        switched = spec.chat.switched(thinking)
        chat = render(switched, conversation, len(pictures), add_generation_prompt=add_generation_prompt)
        spans, places = list[Span](), list[tuple[int, int] | None]()
        for piece in chat:
            if isinstance(piece, ControlText):
                control(piece.text)
            elif isinstance(piece, UserText):
                text.write(piece.text)
            elif isinstance(piece, AnswerText):
                text.tokens(piece.ids)
            else:
                own, token = pictures[piece.index], spec.image_token_id
                video = isinstance(own, VideoTokens)
                index = sum(isinstance(each, VideoTokens) == video for each in pictures[: piece.index])
                if isinstance(own, VideoTokens):
                    token, parts = self._token(own.token), own.numbered(index)
                else:
                    if len(pictures) > 1:
                        control(spec.picture.number.replace("{index}", str(index)))
                    parts = picture_parts(spec.picture, own, index)
                for part in parts:
                    if isinstance(part, str):
                        control(part)
                    else:
                        spans.append(_span(spec, text, control, part, token))
                        places.append(part.place)
        ids = np.array([spec.bos_id] * spec.add_bos + text.ids(), dtype=np.int64)
        markers = self._markers(ids) if pictures else ()
        laid = on_canvas(spans, places, ids, spec.canvas) if spec.canvas else spans
        return ids, Layout(len(ids), tuple(laid), markers, tuple(ids.tolist()))

    def _token(self, token: str) -> int:
        """The id of a video's token; of none, the image token's."""
        found = self._special.get(token) if token else self.image_token_id
        if found is None:
            raise EdgeVLMError(
                f"The tokenizer has no special token '{token[:100]}' for videos: export the bundle again."
            )
        return found

    def _markers(self, ids: Ids) -> tuple[Marker, ...]:
        rows = {marker.token_id: np.array(marker.row, np.float32) for marker in self.spec.markers}
        return tuple(Marker(place, rows[i]) for place, i in enumerate(ids.tolist()) if i in rows)

    def decode(self, ids: Sequence[int] | Ids, *, special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 read as U+FFFD. special: with special tokens spelled."""
        return decode(self.tokenizer, [int(i) for i in ids if i >= 0], special=special)

    def stream(self) -> StreamDecoder:
        """The same, token by token."""
        return StreamDecoder(self.tokenizer)


def picture_parts(around: PictureText, views: Views, index: int) -> Iterator[str | ViewTokens]:
    """The control text of the prompt's `index`-th picture, from 0, and among it each view's image tokens."""
    yield around.open.replace("{index}", str(index))
    before = None
    for number, view in enumerate(views):
        place = view.place
        if place is None:
            yield around.whole if len(views) > 1 else around.alone
        else:
            if before is not None:
                yield around.tile_join if before[0] == place[0] else around.row_join
            yield around.tile.replace("{row}", str(place[0])).replace("{col}", str(place[1]))
        if min(view.rows, view.cols) < 1:
            raise EdgeVLMError(f"A view of {view.rows} x {view.cols} image tokens is none: give a larger picture.")
        yield view
        before = place
        if place is None:
            yield around.whole_close
        following = views[number + 1].place if number + 1 < len(views) else None
        if place is not None and (following is None or following[0] != place[0]):
            yield around.row_close
    yield around.close


def _span(spec: PromptSpec, text: _Text, control: Callable[[str], None], view: ViewTokens, token: int) -> Span:
    """Write a view's image tokens, row by row where something stands between rows."""
    lines = view.rows if spec.picture.line_break else 1
    count = view.frames * view.rows * view.cols
    starts = []
    for line in range(lines):
        control(spec.picture.line_break if line else "")
        starts.append(text.token(token, count // lines) + spec.add_bos)
    gap = starts[1] - starts[0] - view.cols if lines > 1 else 0
    return Span(starts[0], (view.rows, view.cols), view.packed, gap, view.frames, view.step)


class _Text:
    """Ids so far. Text up to the next special token, the template's and the user's, is encoded in one piece."""

    def __init__(self, prompter: Prompter, room: int | None) -> None:
        self._ids: list[int] = []
        self._pending: list[str] = []
        self._prompter, self._room = prompter, room
        self._written = 0

    def write(self, text: str) -> None:
        self._written += len(text)
        check_length(self._written)
        if self._room is not None and self._written > USUAL * self._room:
            tokens = math.ceil(self._written / self._prompter.longest_token)
            if tokens > self._room:
                raise ContextFull(
                    f"The text has {self._written} characters or more, which are at least {tokens} tokens, but the "
                    f"model's context holds {self._room}: shorten it.",
                    tokens,
                    self._room,
                )
        self._pending.append(text)

    def token(self, token_id: int, times: int = 1) -> int:
        """Append `token_id` `times` times; its first position."""
        start = len(self.ids())
        self._ids += [token_id] * times
        return start

    def tokens(self, ids: Sequence[int]) -> None:
        self.ids().extend(ids)

    def ids(self) -> list[int]:
        text = "".join(self._pending)
        self._pending.clear()
        if text:
            rules = self._prompter.inner if self._ids else self._prompter.tokenizer
            self._ids += encode(rules, text)
        return self._ids
