"""What a device must do to an image and to a conversation: the contents of preprocess.json and prompt.json.

Every rule of a checkpoint's own processors is a value here, so that Python, Kotlin and Swift implement one
document (docs/preprocessing.md) and hold no rule of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.check import check
from edgevlm.inputs.frame_rules import NativeFrames
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.packing import Framed, Joined, Packed, Packing, Pooled
from edgevlm.inputs.resample import FILTERS
from edgevlm.inputs.rules import PaddedTiles, Rule, TilesThenWhole
from edgevlm.inputs.video import VideoSpec
from edgevlm.inputs.views import Place, View
from edgevlm.io import limits

IMAGE_SPEC_VERSION = 2
PROMPT_SPEC_VERSION = 2
SYSTEM_PLACES = ("turn", "in_first_user")
PLACES = ("boxes", "points")


class ViewTokens(NamedTuple):
    """A view's image tokens in a prompt, those of a picture whose views are packed, or of a video in one run."""

    place: Place | None  # row and column of a tile, from 1; None is the whole picture
    rows: int  # of image tokens
    cols: int
    packed: Packed | Pooled | Framed | Joined | None = None
    frames: int = 1  # as in `Span`
    step: float = 1.0


@dataclass(frozen=True)
class VideoTokens:
    """A video in a prompt: control text, and among it its views' tokens.

    token: the special token that stands there; empty: the image token. like_text: as in `VideoSpec`.
    """

    parts: tuple[str | ViewTokens, ...]
    token: str
    like_text: bool

    def numbered(self, index: int) -> Iterator[str | ViewTokens]:
        """The parts of the prompt's `index`-th video, from 0."""
        for part in self.parts:
            yield part.replace("{index}", str(index)) if isinstance(part, str) else part

    @property
    def count(self) -> int:
        """Of its views' tokens."""
        return sum(part.frames * part.rows * part.cols for part in self.parts if isinstance(part, ViewTokens))


@dataclass(frozen=True)
class ImageSpec:
    """RGB picture -> views, and what each pixel of them becomes (docs/preprocessing.md, sections 2 to 6).

    packing: how the views' features become tokens; None: each view's stand for themselves (section 9).
    several: the rule for each picture of a prompt that has several; None: the same.
    video: how a video becomes pictures and words; None: the model takes none.
    """

    version: int
    rule: Rule | NativeFrames
    resample: str  # of resample.FILTERS
    background: tuple[int, int, int]  # RGB under transparent pixels
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    token_pixels: int | None  # pixels per side that one image token covers; None: every view has `tokens`
    tokens: int | None = None
    packing: Packing | None = None
    several: Rule | None = None
    video: VideoSpec | None = None

    def __post_init__(self) -> None:
        check(self.version == IMAGE_SPEC_VERSION, "image", "version", IMAGE_SPEC_VERSION, self.version)
        check(self.resample in FILTERS, "image", "resample", " or ".join(FILTERS), self.resample)
        check(all(0 <= v <= 255 for v in self.background), "image", "background", "0 to 255", self.background)
        numbers = (self.rescale_factor, *self.mean, *self.std)
        check(all(abs(v) < 1e30 for v in numbers), "image", "rescale_factor, mean and std", "finite", numbers)
        check(all(abs(v) > 1e-30 for v in self.std), "image", "std", "other than 0", self.std)  # of float32
        found, most = (self.token_pixels, self.tokens), limits.VIEW_SIDE
        check([n is None for n in found].count(True) == 1, "image", "token_pixels and tokens", "one of them", found)
        check(all(n is None or 1 <= n <= most for n in found), "image", "token_pixels", f"1 to {most}", found)

    def token_grid(self, view: View) -> tuple[int, int]:
        """Rows and columns of a view's image tokens."""
        if self.token_pixels is None:
            return 1, self.tokens or 0
        width, height = view.size
        more = self.token_pixels - 1 if isinstance(self.rule, PaddedTiles) else 0  # what begins a unit has its token
        return (height + more) // self.token_pixels, (width + more) // self.token_pixels

    def frames(self, video: VideoSpec, count: int) -> ImageSpec:
        """The rules for each of `count` frames of a video."""
        rule = replace(video.rule, count=count) if isinstance(video.rule, NativeFrames) else video.rule
        return replace(self, rule=rule, resample=video.resample, several=None)

    def among(self, pictures: int) -> ImageSpec:
        """The rules for each of a prompt's `pictures`."""
        return replace(self, rule=self.several) if self.several is not None and pictures > 1 else self

    def view_tokens(self, views: Sequence[View], picture: tuple[int, int]) -> list[ViewTokens]:
        """The views of a picture as a prompt names them. picture: its width and height in pixels."""
        found = [ViewTokens(view.place, *self.token_grid(view)) for view in views]
        if self.packing is not None:
            packed = self.packing.plan(picture, views, [self.token_grid(view) for view in views])
            found = [ViewTokens(None, 1, packed.tokens, packed)]
        if (tokens := sum(view.rows * view.cols for view in found)) > limits.PICTURE_TOKENS:
            raise EdgeVLMError(
                f"A picture would take {tokens} image tokens, at most {limits.PICTURE_TOKENS} are made: scale it down "
                "first, or export the bundle again."
            )
        return found


def tiled(spec: ImageSpec) -> ImageSpec:
    """The same, but a picture is cut into tiles where the rule knows how, even if the model's own way is not to."""
    if isinstance(spec.rule, TilesThenWhole):
        return replace(spec, rule=replace(spec.rule, split=True))
    return spec


@dataclass(frozen=True)
class RoleText:
    """The control text around one message."""

    open_text: str  # before a message whose first item is text
    open_image: str | None  # before a message whose first item is an image; None: it takes none
    close: str
    trim: bool = False  # as `Chat.trim`, of this role's messages alone
    image_after: str | None = None  # in the place of `Chat.image_after`; None: the same
    places: str | None = None  # "boxes" | "points": the answer is no text, but these, out of the model's region head

    def __post_init__(self) -> None:
        check(self.places in (None, *PLACES), "prompt", "roles.places", " or ".join(PLACES), self.places)
        found = len(self.open_text) + len(self.open_image or "") + len(self.close) + len(self.image_after or "")
        check(found <= limits.TEXT, "prompt", "roles", f"at most {limits.TEXT} characters each", found)


@dataclass(frozen=True)
class Chat:
    """A chat template as literal text. Every field that is not a flag is control text.

    roles: none for "system" means that the model takes no system message.
    """

    prefix: str  # before everything
    roles: dict[str, RoleText]
    generation: str  # asks for the answer
    default_system: str = ""  # after the prefix, where the conversation does not start with a system message
    system: str = "turn"  # "turn": a message like others; "in_first_user": its text is the first user message's first
    images_first: bool = False  # a message's images come before its texts
    text_open: str = ""  # before each text
    text_close: str = ""  # after each text
    text_join: str = ""  # between two texts that follow each other in one message
    image_before: str = ""  # before an image that is not the first item of its message
    image_after: str = ""  # after one that is not the last
    trim: bool = False  # no white space at the beginning of a message that starts with text, or at the end
    trim_each: bool = False  # ... and none around any text, but a system message's, which is kept as it is
    pictures: int | None = None  # the most that a conversation has; None: any number
    thinking: str | None = None  # in the place of `generation`, where the model is to think before it answers
    direct: str | None = None  # ... and where it is not; both are None for a model that has no such switch
    system_first: bool = False  # no message but the first is a system message
    join: str = ""  # between any two items of one message
    direct_mark: str = ""  # behind each of the user's messages, where it is not
    thinking_system: str | None = None  # in the place of `default_system`, where it is to think; None: the same
    thinking_mark: str = ""  # before the text of a system message that comes first, where it is
    system_mark: str = ""  # ... before such a text in any case

    def __post_init__(self) -> None:
        check("user" in self.roles, "prompt", "roles", "at least 'user'", sorted(self.roles))
        check(self.system in SYSTEM_PLACES, "prompt", "system", " or ".join(SYSTEM_PLACES), self.system)
        good = self.pictures is None or 1 <= self.pictures <= limits.COUNT
        check(good, "prompt", "pictures", "1 or more", self.pictures)
        check(len(self.roles) <= limits.ROLES, "prompt", "roles", f"at most {limits.ROLES}", sorted(self.roles))
        texts = {}
        for name in (
            "prefix",
            "generation",
            "default_system",
            "text_open",
            "text_close",
            "text_join",
            "join",
            "image_before",
            "image_after",
            "direct_mark",
            "thinking_mark",
            "system_mark",
        ):
            texts[name] = getattr(self, name)
        check((self.thinking is None) == (self.direct is None), "prompt", "thinking", "with direct", self.thinking)
        switches = ("thinking", "direct", "thinking_system")
        texts |= {name: getattr(self, name) or "" for name in switches}
        for name, text in texts.items():
            check(len(text) <= limits.TEXT, "prompt", name, f"at most {limits.TEXT} characters", text)

    def switched(self, thinking: bool | None) -> Chat:
        """The same with the model's thinking turned on or off; None leaves it as the template has it."""
        if thinking is None:
            return self
        generation = self.thinking if thinking else self.direct
        if generation is None:
            raise EdgeVLMError("This model has no switch for thinking: leave it as it is.")
        user = self.roles["user"]
        user = user if thinking else replace(user, close=self.direct_mark + user.close)
        made = replace(self, generation=generation, roles={**self.roles, "user": user})
        if not thinking or self.thinking_system is None:
            return made
        return replace(made, default_system=self.thinking_system, system_mark=self.thinking_mark)


@dataclass(frozen=True)
class PictureText:
    """The control text around a picture's image tokens."""

    open: str = ""  # {index} counts the prompt's pictures, without videos, from 0
    tile: str = ""  # before a tile's image tokens; {row} and {col} count from 1
    tile_join: str = ""  # between tiles of one row
    row_join: str = ""  # between rows of tiles
    row_close: str = ""  # after each row of tiles
    line_break: str = ""  # between two rows of a view's image tokens
    whole: str = ""  # before the image tokens of the whole picture, where there are tiles too
    alone: str = ""  # ... where there are none
    whole_close: str = ""  # after them, in both cases
    close: str = ""
    number: str = ""  # before `open`, where the prompt has several pictures; {index} as there

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            most = limits.PICTURE_TEXT
            check(len(text) <= most, "prompt", f"picture.{name}", f"at most {most} characters", text)


@dataclass(frozen=True)
class MarkerRow:
    """The embedding that a control token has in a prompt with pictures, in place of its row of the table."""

    token_id: int
    row: tuple[float, ...]  # (D,)

    def __post_init__(self) -> None:
        check(0 <= self.token_id <= limits.COUNT, "prompt", "markers", "ids of 31 bits", self.token_id)
        check(len(self.row) <= limits.WIDTH, "prompt", "markers", "rows of an embedding", len(self.row))


@dataclass(frozen=True)
class PromptSpec:
    """Conversation and views -> token ids (docs/preprocessing.md, section 7).

    In control text, special tokens of tokenizer.json count. In the user's text they never do.
    """

    version: int
    chat: Chat
    picture: PictureText
    image_token: str
    image_token_id: int
    stop_ids: tuple[int, ...]
    add_bos: bool = False  # bos_id comes before the text, which does not have it
    bos_id: int | None = None
    pad_id: int | None = None
    grounding: Grounding | None = None  # how answers have boxes, where they do
    markers: tuple[MarkerRow, ...] = ()  # tokens of `picture` with embeddings of their own
    canvas: tuple[int, ...] = ()  # tokens that stand on the canvas of the picture before them

    def __post_init__(self) -> None:
        most = limits.MARKERS
        check(len(self.markers) <= most, "prompt", "markers", f"at most {most} tokens", len(self.markers))
        check(self.version == PROMPT_SPEC_VERSION, "prompt", "version", PROMPT_SPEC_VERSION, self.version)
        check(len(self.canvas) <= most, "prompt", "canvas", f"at most {most} tokens", len(self.canvas))
        for name in ("image_token_id", "stop_ids", "bos_id", "pad_id", "canvas"):
            found = getattr(self, name)
            ids = found if isinstance(found, tuple) else [found]
            check(all(i is None or 0 <= i <= limits.COUNT for i in ids), "prompt", name, "0 or more, of 31 bits", found)
        good = 1 <= len(self.stop_ids) <= limits.STOP_TOKENS
        check(good, "prompt", "stop_ids", f"1 to {limits.STOP_TOKENS} token ids", self.stop_ids)
        check(len(self.image_token) <= limits.PICTURE_TEXT, "prompt", "image_token", "a token's text", self.image_token)
        check(not self.add_bos or self.bos_id is not None, "prompt", "bos_id", "a token id", self.bos_id)
