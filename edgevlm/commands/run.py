"""`edgevlm run`: ask a bundle about pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import bundle_folder, given, pictures_and_question
from edgevlm.commands.engine import EngineChoice, show
from edgevlm.commands.requests import answer_lines, check_input, figures
from edgevlm.commands.sampling import ask_options, form_options, sampling_options
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, seconds, size, table, write_json
from edgevlm.io.files import check_new, writing

if TYPE_CHECKING:
    from edgevlm.generate.answer import Answer, Timings
    from edgevlm.inputs.render import Conversation


@click.command()
@click.argument("bundle")
@click.argument("inputs", nargs=-1, metavar="[IMAGE...] QUESTION")
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option("--storage", default="fp16", metavar="[fp16|fp32]", help="What the CoreML evaluator rounds values to.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="[cpu|gpu|npu]",
    help="What to run on; for onnxruntime also a provider: cuda, tensorrt, coreml, webgpu, xnnpack, qnn.",
)
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]")
@sampling_options(max_tokens=128)
@click.option("--lookup/--no-lookup", default=None, help="Repeat known words faster.  [default: if exact]")
@form_options
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture; 1 is fastest.  [default: the model's]")
@click.option("--video", metavar="FILE", help="A video to ask about, after the pictures: MP4, MOV, MKV, WebM, AVI.")
@click.option("--fps", type=float, metavar="F", help="Frames per second of a video.  [default: the model's]")
@click.option("--max-frames", type=int, metavar="N", help="Most frames of a video.  [default: the model's]")
@click.option("--thinking/--no-thinking", default=None, help="Think before the answer, where the model has a switch.")
@click.option("--task", metavar="ROLE", help="What is asked, where the model has tasks: detect, caption, ...")
@click.option("--input", "place", metavar="FILE", help="Questions as JSON lines, or a folder of pictures; - is stdin.")
@click.option("--cache", metavar="DIR", help="Keep what was computed of pictures there, for later starts.")
@click.option("--draw", metavar="FILE", help="Write the picture with the answer's boxes and points drawn on it.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--timings", is_flag=True, help="Show the four stages on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Write answer and timings as one JSON object instead.")
def run(
    bundle: str,
    inputs: tuple[str, ...],
    runtime: str | None,
    storage: str,
    device: str,
    threads: int | None,
    lookup: bool | None,
    tiles: int | None,
    video: str | None,
    fps: float | None,
    max_frames: int | None,
    thinking: bool | None,
    task: str | None,
    place: str | None,
    cache: str | None,
    draw: str | None,
    force: bool,
    timings: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Ask the model in BUNDLE a QUESTION about pictures.

    One picture, several, or none. The answer streams to standard output. With --json it also has the boxes and points
    that the answer names, in pixels of the picture, where the model's way of writing them is known. With --task,
    QUESTION is what that task takes, such as the thing to find; a caption takes none. --schema, --choice and --regex
    say what form the answer has to have.

    With --input, every line of a file is a question, {"image": "photo.jpg", "question": "What is this?"}, and its
    answer is a line of JSON, in order; a line with a mistake gets an "error". QUESTION is then for lines without one,
    and for the pictures of a folder.
    """
    if place is not None:
        check_input(place)
        if extra := given("video", "fps", "max_frames", "task", "draw", "timings"):
            raise EdgeVLMError(f"{extra[0]} is for one question, and --input has many: leave one of the two out.")
        if len(inputs) > 1:
            raise EdgeVLMError("With --input, pictures are named in its lines: give at most a question beside it.")
        pictures, question = list[str](), " ".join(inputs)
    else:
        pictures, question = pictures_and_question(bundle, inputs, optional=task is not None)
    folder = bundle_folder(bundle)
    if draw is not None:
        _check_drawing(Path(draw), pictures, force)
    if video is None and (extra := given("fps", "max_frames")):
        raise EdgeVLMError(f"{extra[0]} is of a video: add --video FILE, or leave it out.")

    options = ask_options(lookup=lookup, max_tiles=tiles, thinking=thinking, **chosen)
    engine = EngineChoice(runtime, device, threads, storage, cache)
    if place is not None:
        with engine.open(folder) as pipeline:
            answer_lines(pipeline, place, question or None, options)
        return
    from edgevlm.generate.chat import put

    asked: Conversation = question
    if video is not None or task is not None:
        clip = {"type": "video", "video": video, "fps": fps, "max_frames": max_frames}
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
        content += [clip] * (video is not None) + [{"type": "text", "text": question}] * bool(question)
        asked = [{"role": task or "user", "content": content}]
    with engine.open(folder) as pipeline:
        stream = put(pipeline, asked, pictures, options)
        answer = stream.answer if as_json else show(stream)
    if as_json:
        write_json(figures(answer))
    if draw is not None:
        _draw(Path(draw), pictures[0], answer, force)
    if as_json:
        return
    if answer.scores is not None:
        note(table([(choice, f"{100 * math.exp(score):.1f} %") for choice, score in answer.scores.items()]))
    if answer.finish_reason == "length":
        note(f"(stopped after {answer.timings.answer_tokens} tokens: raise --max-tokens for a longer answer)")
    if timings:
        note("\n" + timings_table(answer.timings))


def _check_drawing(path: Path, pictures: Sequence[str], force: bool) -> None:
    if len(pictures) != 1:
        raise EdgeVLMError(f"--draw draws on one picture, and {len(pictures)} are given: give one.")
    if path.suffix.lower() not in _DRAWN:
        raise EdgeVLMError(f"'{path}' is no name of a picture that --draw writes: end it in {' or '.join(_DRAWN)}.")
    check_new(path, force)


_DRAWN = (".png", ".jpg", ".webp")


def _draw(path: Path, picture: str, answer: Answer, force: bool) -> None:
    from edgevlm.generate.draw import draw
    from edgevlm.generate.given import open_picture

    drawn = draw(open_picture(picture, (255, 255, 255)), answer.boxes, answer.points)
    with writing(path, force) as new:
        drawn.save(new, format={".jpg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper()))
    note(f"Boxes drawn in {path}: {len(answer.boxes)}, points: {len(answer.points)}.")


def timings_table(timings: Timings) -> str:
    """Time and amount of work of the four stages, and the peak memory."""
    speed = f"{timings.answer_tokens} tokens, {timings.tokens_per_second:.1f} per second"
    read = f"{timings.prompt_tokens} prompt tokens"
    read += f", {timings.reused_tokens} of them read before" if timings.reused_tokens else ""
    rows = [
        ("preprocess", seconds(timings.preprocess), ""),
        ("encode", seconds(timings.encode), f"{timings.image_tokens} image tokens"),
        ("prefill", seconds(timings.prefill), read),
        ("decode", seconds(timings.decode), speed),
    ]
    if timings.peak_memory:
        rows.append(("peak memory", size(timings.peak_memory), ""))
    return table(rows)
