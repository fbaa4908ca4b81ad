"""Image processor settings -> ImageSpec."""

from __future__ import annotations

import math
from dataclasses import replace

from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.inputs.native import Native, Within
from edgevlm.inputs.rules import Dense, Rule
from edgevlm.inputs.spec import IMAGE_SPEC_VERSION, ImageSpec
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.projector import Pool, Queries, Resample, Shuffle
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.window_queries import WindowQueries

RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
BACKGROUND = (255, 255, 255)  # a constant of the processors' code


def image_spec(files: ProcessorFiles, model: ModelSpec, rule: Rule, *, usual: int | None = None) -> ImageSpec:
    """`rule`, and the settings that every image processor has; EdgeVLMError names the file and key that are wrong.

    usual: the filter that the processor's code takes where its file names none.
    """
    file = files.image
    mean, std = mean_std(file)
    return make_spec(
        model, rule, resample=resample_of(file, usual), mean=mean, std=std,
        rescale_factor=file.number("rescale_factor", 1 / 255) if file.flag("do_rescale", True) else 1.0,
    )  # fmt: skip


def make_spec(
    model: ModelSpec,
    rule: Rule,
    *,
    resample: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    rescale_factor: float = 1 / 255,
    tokens: int | None = None,
) -> ImageSpec:
    """The same, from values that no file has. tokens: of a view of any size; None: by its pixels."""
    queries = [step.count for step in model.projector if isinstance(step, Queries | Resample)] or (
        [tokens] if tokens else []
    )
    return ImageSpec(
        version=IMAGE_SPEC_VERSION,
        rule=rule,
        resample=resample,
        background=BACKGROUND,
        rescale_factor=rescale_factor,
        mean=mean,
        std=std,
        token_pixels=None if queries else token_pixels(model),
        tokens=queries[0] if queries else None,
    )


def with_newline(image: ImageSpec, weights: Weights) -> ImageSpec:
    """`image` with the weights that end rows of features and stand around them, where the model has such."""
    if image.packing is None:
        return image
    packing = replace(image.packing, newline=_row(weights, "newline"))
    if packing.framed:
        packing = replace(packing, begin=_row(weights, "begin"), end=_row(weights, "end"))
    if packing.whole_last:
        packing = replace(packing, separator=_row(weights, "separator"))
    return replace(image, packing=packing)


def _row(weights: Weights, name: str) -> tuple[float, ...]:
    return tuple(float(value) for value in weights.read(name))


def native_spec(
    files: ProcessorFiles, model: ModelSpec, *names: str, least: int = 56 * 56, most: int = 28 * 28 * 1280,
    frames: int = 2, counted: int = 1, kind: type[Native] = Native,
) -> ImageSpec:  # fmt: skip
    """Views near a picture's own size, between two areas, by an image processor of one of the classes `names`, or of
    any where there are none.

    least, most, frames: what the class takes where the file leaves them out. kind: of rule.
    counted: frames of a still picture whose pixels the areas count.
    transformers 4 has the areas under keys of their own, transformers 5 in size, where they are called edges.
    """
    file = files.image
    if names:
        processor_type(file, *names)
    file.require(True, "do_resize")
    file.choice("temporal_patch_size", frames, {frames: ""})
    unit = file.count("patch_size", 14) * file.count("merge_size", 2)
    if unit != token_pixels(model):
        raise file.wrong("patch_size", f"with merge_size, the {token_pixels(model)} pixels of a token in config.json")
    return image_spec(files, model, kind(unit, *areas(file, least, most, counted)), usual=3)


def areas(file: JsonFile, least: int, most: int, frames: int = 1) -> tuple[int, int]:
    """The least and the most pixels of a view; the arguments are what its class takes where the file has none.

    frames: of a still picture, whose pixels the file counts.
    """
    found = (("min_pixels", "shortest_edge", least), ("max_pixels", "longest_edge", most))
    fewest, largest = (_area(file, *each, frames) for each in found)
    return fewest, largest


def _area(file: JsonFile, key: str, edge: str, usual: int, frames: int) -> int:
    """Pixels of one of the `frames` that the file counts."""
    size, found = file.value("size"), file.value(key)
    if found is None:
        found = size.get(edge, usual) if isinstance(size, dict) else usual
    if type(found) is not int or found < 1 or found % frames:
        raise file.wrong(key, "a number of pixels" if frames == 1 else f"a number of pixels of {frames} frames")
    return found // frames


def token_pixels(model: ModelSpec) -> int:
    """Pixels per side that one image token covers."""
    if isinstance(model.vision, QwenVit):
        return model.vision.patch_size * model.vision.unit
    merged = math.prod(step.scale for step in model.projector if isinstance(step, Shuffle | Pool | WindowQueries))
    return model.vision.patch_size * merged


def within_spec(files: ProcessorFiles, model: ModelSpec, kind: str) -> ImageSpec:
    """Pictures of no more than some length, in whole image tokens. kind: the image processor's class."""
    file = files.image
    processor_type(file, kind)
    file.require(True, "do_resize")
    file.require(False, "do_center_crop")
    size = file.value("size", {"longest_edge": 1024})
    longest = file.edge("size") if isinstance(size, dict) and "longest_edge" in size else file.square("size")
    return image_spec(files, model, Within(token_pixels(model), longest), usual=3)


def offered_grids(files: ProcessorFiles, side: int, usual: list[list[int]]) -> tuple[tuple[int, int], ...]:
    """image_grid_pinpoints, heights and widths in pixels, as rows and columns of tiles.

    usual: where neither config.json nor the image processor's file has them. Both must say the same.
    """
    key = "image_grid_pinpoints"
    found = files.image.value(key, usual)
    if files.config.value(key, usual) != found:
        raise files.image.wrong(key, f"the {key} of config.json")
    sizes = [tuple(size) for size in found if isinstance(size, list)] if isinstance(found, list) else []
    if not sizes or len(sizes) < len(found) or not all(len(size) == 2 for size in sizes):
        raise files.image.wrong(key, "pairs of heights and widths")
    if not all(type(edge) is int and edge > 0 and edge % side == 0 for size in sizes for edge in size):
        raise files.image.wrong(key, f"heights and widths that are multiples of {side}")
    return tuple((high // side, wide // side) for high, wide in sizes)


def dense_pages(file: JsonFile) -> Dense | None:
    """Pages that get other tiles. Zeros say that something does not matter; without scale and shape, nothing does."""
    scale, above, below = (
        file.number(key) if file.value(key, 0) != 0 else None
        for key in ("dense_max_scale", "dense_min_aspect", "dense_max_aspect")
    )
    if file.value("dense_max_patches", 0) == 0 or (scale is None and above is None):
        return None
    return Dense(file.count("dense_max_patches"), scale, above, below)


def processor_type(file: JsonFile, *known: str) -> str:
    """The image processor's class, without the endings of its implementations."""
    name = file.value("image_processor_type")
    plain = name.removesuffix("Fast").removesuffix("Pil") if isinstance(name, str) else ""
    if plain not in known:
        raise file.wrong("image_processor_type", " or ".join(known))
    return plain


def check_side(file: JsonFile, key: str, found: int, model: ModelSpec) -> int:
    """`found`, which must be the side of the encoder's square."""
    side = getattr(model.vision, "image_size", found)
    if found != side:
        raise file.wrong(key, f"the {side} pixels of the vision encoder in config.json")
    return found


def resample_of(file: JsonFile, usual: int | None) -> str:
    """The filter. usual: of the processor's class; None where a file has to name one."""
    value = file.value("resample", usual)
    if type(value) is not int or value not in RESAMPLE:
        raise file.wrong("resample", "1 (lanczos), 2 (bilinear) or 3 (bicubic)")
    return RESAMPLE[value]


def mean_std(file: JsonFile) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if not file.flag("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    std = file.triple("image_std")
    if 0.0 in std:
        raise file.wrong("image_std", "three numbers other than 0")
    return file.triple("image_mean"), std


def mean_color(file: JsonFile) -> tuple[int, int, int]:
    """What some processors pad with."""
    red, green, blue = (int(value * 255) for value in file.triple("image_mean"))
    return red, green, blue
