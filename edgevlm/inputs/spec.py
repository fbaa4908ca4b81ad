"""What a device must do to an image and to a conversation: the contents of preprocess.json and prompt.json.

Every rule of a checkpoint's own processors is a value here, so that Python, Kotlin and Swift implement one
document (docs/preprocessing.md) and hold no rule of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.errors import EdgeVLMError

IMAGE_SPEC_VERSION = 1
PROMPT_SPEC_VERSION = 1
STRATEGIES = ("tiles_then_global",)
FILTERS = ("bilinear", "bicubic", "lanczos")

# More than any encoder takes, small enough that a hostile bundle cannot ask for terabytes.
_LARGEST_EDGE = 16384


@dataclass(frozen=True)
class ImageSpec:
    """RGB picture -> float32 tiles (docs/preprocessing.md, sections 2 to 6)."""

    version: int
    strategy: str  # "tiles_then_global": the grid row by row, then the whole picture as the last tile
    tile_size: int  # S: height and width of every tile, in pixels
    longest_edge: int | None  # the picture is first scaled to this longest edge; None leaves it as it is
    max_edge: int  # ... and then, if that is larger, down to this one
    short_edge_multiple: int  # the short edge of that first resize is rounded up to a multiple of this
    split: bool  # True: a grid of tiles and the whole picture; False: the whole picture only
    resample: str  # "bilinear" | "bicubic" | "lanczos"
    background: tuple[int, int, int]  # RGB under transparent pixels
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        _check(self.version == IMAGE_SPEC_VERSION, "image", "version", IMAGE_SPEC_VERSION, self.version)
        _check(self.strategy in STRATEGIES, "image", "strategy", " or ".join(STRATEGIES), self.strategy)
        _check(self.resample in FILTERS, "image", "resample", " or ".join(FILTERS), self.resample)
        for name in ("tile_size", "longest_edge", "max_edge", "short_edge_multiple"):
            value = getattr(self, name)
            if value is not None:
                _check(1 <= value <= _LARGEST_EDGE, "image", name, f"1 to {_LARGEST_EDGE}", value)
        _check(all(0 <= v <= 255 for v in self.background), "image", "background", "0 to 255", self.background)
        numbers = (self.rescale_factor, *self.mean, *self.std)
        _check(all(map(math.isfinite, numbers)), "image", "rescale_factor, mean and std", "finite", numbers)
        _check(all(v != 0 for v in self.std), "image", "std", "other than 0", self.std)


@dataclass(frozen=True)
class RoleText:
    """The control text around one message."""

    open_text: str  # before a message whose first item is text
    open_image: str  # before a message whose first item is an image
    close: str


@dataclass(frozen=True)
class PromptSpec:
    """Conversation and tile grids -> token ids (docs/preprocessing.md, section 7).

    Every `str` field but `image_token` is control text: special tokens of tokenizer.json count in it.
    In the user's text they never do.
    """

    version: int
    prefix: str  # before the first message
    roles: dict[str, RoleText]
    generation: str  # asks for the answer
    image_token: str
    image_token_id: int
    image_tokens: int  # how many of them stand for one tile
    tile_open: str  # before a tile's image tokens; {row} and {col} count from 1
    row_close: str  # after each row of tiles
    global_open: str  # before the image tokens of the whole picture, when tiles came before it
    single_open: str  # ... when none did
    image_close: str
    stop_ids: tuple[int, ...]
    bos_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        _check(self.version == PROMPT_SPEC_VERSION, "prompt", "version", PROMPT_SPEC_VERSION, self.version)
        _check(1 <= self.image_tokens <= 65536, "prompt", "image_tokens", "1 to 65536", self.image_tokens)
        _check(self.image_token_id >= 0, "prompt", "image_token_id", "0 or more", self.image_token_id)
        _check("user" in self.roles, "prompt", "roles", "at least 'user'", sorted(self.roles))
        _check(bool(self.stop_ids), "prompt", "stop_ids", "at least one token id", self.stop_ids)


def _check(good: bool, which: str, name: str, expected: object, found: object) -> None:
    if not good:
        raise EdgeVLMError(
            f"The {which} spec has {name} = {found!r}, expected {expected}: export the bundle again, "
            "or update edgevlm if the bundle is newer."
        )
