"""Video processor settings -> VideoSpec."""

from __future__ import annotations

from dataclasses import replace

from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.spec import ImageSpec
from edgevlm.inputs.video import VideoSpec
from edgevlm.io import limits


def with_video(
    image: ImageSpec, files: ProcessorFiles, kind: str, rule: TilesThenWhole, intro: str, stamp: str
) -> ImageSpec:
    """`image` with the rules of frames, where the files have any: sampling of so many per second, the ends left out.

    kind: the video processor's class. rule: of a picture that is no tile; its first resize is to the video's own size.
    """
    file = files.video
    sampling = file.section("video_sampling").renamed(num_frames="max_frames")
    sampling = sampling if sampling.given else file
    if sampling.value("fps") is None or sampling.value("num_frames") is None:
        return image
    if file.value("video_processor_type", kind) != kind:
        raise file.wrong("video_processor_type", kind)
    # As the code does: a size beside the sampling's own is taken for frames, too.
    size = file.edge("size") if file.value("size") is not None else sampling.edge("video_size")
    video = VideoSpec(
        fps=sampling.number("fps"),
        most=sampling.count("num_frames", most=limits.FRAMES),
        skip=1,
        rule=replace(rule, longest_edge=size if file.flag("do_resize", True) else None),
        resample=image.resample,
        intro=intro,
        stamp=stamp,
        outro="\n\n",
    )
    return replace(image, video=video)
