"""What MiniCPM-V 4.6 and 4.7 do to pictures, videos and conversations, by their processor files: slices, each between
tokens of its own; a video's frames are pictures of one number."""

from __future__ import annotations

from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.processor.images import image_spec, processor_type, token_pixels
from edgevlm.checkpoint.processor.prompts import ReadPrompt, prompt_spec
from edgevlm.checkpoint.processor.videos import with_frames
from edgevlm.inputs.slices import WholeThenSlices
from edgevlm.inputs.spec import ImageSpec, PictureText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec

MODES = {"16x": "16", "4x": "4"}  # patches that become one token


def image(files: ProcessorFiles, model: ModelSpec) -> ImageSpec:
    file, video, (text, _) = files.image, files.video, _written(files)
    processor_type(file, "MiniCPMV4_6ImageProcessor")
    spec = image_spec(files, model, _rule(file, model), usual=3)
    video.choice("stack_frames", 1, {1: "1"})  # more frames of a second would be one picture, side by side
    most = video.count("max_num_frames", 128, most=limits.FRAMES)
    return with_frames(
        spec, files, "MiniCPMV4_6VideoProcessor", _rule(video, model), most=most, fps=1.0, spread="seconds",
        token=files.token("video_token", "<|video_pad|>"), intro=text.open, open=text.whole, close=text.whole_close,
        tile=text.tile, tile_close=text.row_close, row_join=text.row_join,
    )  # fmt: skip


def _rule(file: JsonFile, model: ModelSpec) -> WholeThenSlices:
    """Of pictures, and of frames, too."""
    file.require(True, "do_resize")
    unit, side = token_pixels(model), 2 if file.choice("downsample_mode", "16x", MODES) == "4" else 4
    if file.count("patch_size", 14) * side != unit:
        raise file.wrong("downsample_mode", f"with patch_size, the {unit} pixels of a token in config.json")
    most = file.count("max_slice_nums", 9) if file.flag("slice_mode", True) else 1
    return WholeThenSlices(unit, file.count("scale_resolution", 448), most)


def _written(files: ProcessorFiles) -> tuple[PictureText, tuple[str, ...]]:
    """What stands around a picture's tokens, and the tokens in it."""
    open_, close, tile, tile_close, number, number_close = needed = tuple(
        files.token(f"{part}_token", usual)
        for part, usual in (
            ("image_start", "<image>"), ("image_end", "</image>"), ("slice_start", "<slice>"),
            ("slice_end", "</slice>"), ("image_id_start", "<image_id>"), ("image_id_end", "</image_id>"),
        )
    )  # fmt: skip
    numbered = files.processor.flag("use_image_id", files.image.flag("use_image_id", True))
    text = PictureText(
        open=f"{number}{{index}}{number_close}" if numbered else "",
        whole=open_, alone=open_, whole_close=close, tile=tile, tile_join=tile_close, row_join="\n",
        row_close=tile_close,
    )  # fmt: skip
    return text, needed


def prompt(files: ProcessorFiles, model: ModelSpec, canvas: tuple[int, ...] = ()) -> ReadPrompt:
    text, needed = _written(files)
    return prompt_spec(files, model, picture=text, needed=needed, canvas=canvas)
