"""Video processor settings -> VideoSpec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import areas, check_side, mean_std, resample_of
from edgevlm.inputs.frame_rules import NativeFrames
from edgevlm.inputs.rules import Rule, TilesThenWhole
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.squares import Stretch
from edgevlm.inputs.video import VideoSpec
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

Numbers = tuple[tuple[float, float, float], tuple[float, float, float]]  # a mean and a deviation
FPS = 2.0  # where a processor's class has none: what Qwen's own package of helpers takes


def with_video(image: ImageSpec, files: ProcessorFiles, kind: str, rule: TilesThenWhole, **texts: Any) -> ImageSpec:
    """`image` with the rules of frames, where the files have any: sampling of so many per second, the ends left out.

    kind: the video processor's class. rule: of a picture that is no tile; its first resize is to the video's own size.
    texts: of `VideoSpec`.
    """
    file = files.video
    sampling = file.section("video_sampling").renamed(num_frames="max_frames")
    sampling = sampling if sampling.given else file
    if sampling.value("fps") is None or sampling.value("num_frames") is None:
        return image
    _check_type(file, kind)
    # As the code does: a size beside the sampling's own is taken for frames, too.
    size = file.edge("size") if file.value("size") is not None else sampling.edge("video_size")
    video = VideoSpec(
        fps=sampling.number("fps"),
        most=sampling.count("num_frames", most=limits.FRAMES),
        skip=1,
        rule=replace(rule, longest_edge=size if file.flag("do_resize", True) else None),
        resample=image.resample,
        like_text=True,
        **texts,
    )
    return replace(image, video=video)


def with_pairs(
    image: ImageSpec,
    files: ProcessorFiles,
    kind: str | None,
    *,
    unit: int,
    tokens: int,
    together: bool = False,
    **fields: Any,
) -> ImageSpec:
    """`image` with the rules of frames near a video's own size, two of which are one view.

    kind: the video processor's class, or None for any. unit, tokens: pixels per side of a token, and the most tokens
    of a video (`together`: of a frame), that the class has for its sizes. together: sizes are of all frames. fields:
    of `VideoSpec`.
    """
    file = _pairs_file(image, files, kind, unit)
    sizes = file.without("min_pixels").without("max_pixels") if together else file  # which that class does not know
    least, most = areas(sizes, 128 * unit**2, 768 * unit**2)
    budget = file.count("max_video_tokens", tokens) * (image.token_pixels or 1) ** 2
    cap = (budget if together else int(budget * 0.9)) if file.flag("cap_pixels_per_frame", False) else None
    video = VideoSpec(
        fps=file.number("fps", FPS, least=1e-3, most=limits.FRAME_RATE),
        least=file.count("min_frames", 4, most=limits.FRAMES),
        most=file.count("max_frames", 768, most=limits.FRAMES),
        rule=NativeFrames(image.token_pixels or 1, least, most, together=together, cap=cap),
        resample=resample_of(file, 3),
        group=2,
        **fields,
    )
    return replace(image, video=video)


def with_timed_pairs(
    image: ImageSpec,
    files: ProcessorFiles,
    kind: str,
    *,
    unit: int = 28,
    least: int = 112 * 112,
    area: int = 28 * 28 * 60000,
    fps: float | None = None,
    longest: float | None = None,
    most: int = limits.FRAMES,
    **fields: Any,
) -> ImageSpec:
    """The same, of a processor whose sizes are of all frames and whose frames stand for times.

    least, area: the fewest and the most pixels of all frames, where the file does not say. fps, longest: what the class
    has for any file; None: the file's. fields: of `VideoSpec`.
    """
    file = _pairs_file(image, files, kind, unit)
    sizes = areas(file.without("min_pixels").without("max_pixels"), least, area)  # which the class does not know
    video = VideoSpec(
        fps=fps or file.number("fps", FPS, least=1e-3, most=limits.FRAME_RATE),
        longest=longest or file.number("max_duration", 300.0),
        most=most,
        rule=NativeFrames(image.token_pixels or 1, *sizes, together=True),
        resample=resample_of(file, 3),
        group=2,
        **fields,
    )
    return replace(image, video=video)


def _pairs_file(image: ImageSpec, files: ProcessorFiles, kind: str | None, unit: int) -> JsonFile:
    """The settings of a processor that puts two frames into one view, checked but for its sizes and numbers."""
    file = files.video
    _check_same(file, kind, image)
    file.choice("temporal_patch_size", 2, {2: "2"})
    if file.count("patch_size", unit // 2) * file.count("merge_size", 2) != image.token_pixels:
        raise file.wrong("patch_size", f"with merge_size, the {image.token_pixels} pixels of a token")
    return file


def with_frames(
    image: ImageSpec, files: ProcessorFiles, kind: str, rule: Rule, *, most: int, fps: float | None = None,
    numbers: Numbers | None = None, **fields: Any,
) -> ImageSpec:  # fmt: skip
    """`image` with the rules of frames that are pictures of their own, cut by `rule`.

    kind: the video processor's class. numbers: as of `_check_same`. most, fps and the rest: of `VideoSpec`.
    """
    _check_same(files.video, kind, image, numbers)
    return replace(image, video=VideoSpec(fps, most, rule, resample_of(files.video, 3), **fields))


def with_squares(
    image: ImageSpec, files: ProcessorFiles, model: ModelSpec, kind: str, *, most: int, **fields: Any
) -> ImageSpec:
    """`image` with the rules of frames that are stretched to the tower's square.

    kind: the video processor's class. most: frames, where the file does not say. fields: of `VideoSpec`.
    """
    file = files.video
    _check_same(file, kind, image)
    fps = file.number("fps", least=1e-3, most=limits.FRAME_RATE) if file.value("fps") is not None else None
    most, side = (
        file.count("num_frames", most, most=limits.FRAMES),
        check_side(file, "size", file.square("size"), model),
    )
    return with_video_of(image, side, fps=fps, most=most, resample=resample_of(file, 3), **fields)


def with_video_of(
    image: ImageSpec, side: int, *, most: int, fps: float | None = None, resample: str = "bicubic", **fields: Any
) -> ImageSpec:
    """`image` with the rules of frames that are stretched to side x side pixels. most and the rest: of `VideoSpec`."""
    return replace(image, video=VideoSpec(fps, most, Stretch(side), resample, **fields))


def numbered(open: str, close: str, most: int) -> dict[str, Any]:
    """Fields of `VideoSpec`: the middle frames of `most` parts, each on a line of its own behind its number.

    open, close: around a frame's tokens.
    """
    line = {"stamp": "Frame{number}: ", "open": open, "close": close, "join": "\n", "outro": "\n"}
    return {"most": most, "spread": "middles", **line}


def _check_type(file: JsonFile, kind: str | None) -> None:
    if kind is not None and file.value("video_processor_type", kind) != kind:
        raise file.wrong("video_processor_type", kind)


def _check_same(file: JsonFile, kind: str | None, image: ImageSpec, numbers: Numbers | None = None) -> None:
    """A video's pixels are resized, and then are numbers as a picture's.

    numbers: the mean and deviation that the file has for these, where the model does the rest.
    """
    _check_type(file, kind)
    file.require(True, "do_resize")
    if file.value("do_center_crop"):
        raise file.wrong("do_center_crop", "false")
    mean, std = numbers or (image.mean, image.std)
    if file.value("image_mean") is not None and mean_std(file) != (mean, std):
        raise file.wrong("image_mean", f"{list(mean)}, with an image_std of {list(std)}")
