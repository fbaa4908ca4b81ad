"""`edgevlm chat`: a conversation with a bundle in the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import PATH, bundle_folder
from edgevlm.commands.engine import EngineChoice, show
from edgevlm.commands.sampling import sampling_options
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note
from edgevlm.io.text import printable

if TYPE_CHECKING:
    from edgevlm.generate.answer import AnswerStream
    from edgevlm.generate.chat import AskOptions, Chat

COMMANDS = {
    "/image": "PATH  show a picture, or several one after the other, with the next question",
    "/undo": "       take the last question and its answer back",
    "/clear": "      begin a new conversation",
    "/help": "       this list",
    "/quit": "       leave, as Ctrl-D does",
}
STOPPED = "(stopped: this question is not part of the conversation)"


@click.command()
@click.argument("bundle")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option("--device", default="cpu", show_default=True, metavar="[cpu|gpu|npu]", help="What to run on.")
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]")
@sampling_options(max_tokens=512)
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture; 1 is fastest.  [default: the model's]")
@click.option("--thinking/--no-thinking", default=None, help="Think before the answer, where the model has a switch.")
@click.option("--cache", metavar="DIR", help="Keep what was computed of pictures there, for later starts.")
def chat(
    bundle: str,
    system: str | None,
    runtime: str | None,
    device: str,
    threads: int | None,
    tiles: int | None,
    thinking: bool | None,
    cache: str | None,
    **sampling: Any,
) -> None:
    """Talk with the model in BUNDLE, a question a line.

    /image PATH shows it a picture, /undo takes a question back, /clear begins anew, /quit leaves. Ctrl-C stops an
    answer. Each question reads only what is new since the answer before. Questions may come from a pipe, too; there,
    the first mistake ends the conversation.
    """
    folder = bundle_folder(bundle)

    from edgevlm.generate.chat import AskOptions, Chat

    options = AskOptions(max_tiles=tiles, thinking=thinking, **sampling)
    with EngineChoice(runtime, device, threads, cache=cache).open(folder) as pipeline:
        _Session(lambda: Chat(lambda: pipeline, system), options).run()


class _Session:
    """Lines in, answers out."""

    def __init__(self, begin: Callable[[], Chat], options: AskOptions) -> None:
        self._begin, self._options = begin, options
        self._chat = begin()
        self._pictures: list[str] = []  # for the next question
        self._live = sys.stdin.isatty()

    def run(self) -> None:
        for line in self._lines():
            try:
                if self._command(line):
                    return
            except EdgeVLMError as error:
                if not self._live:
                    raise
                note(f"Error: {error}")

    def _lines(self) -> Iterator[str]:
        if not self._live:
            yield from (line for line in map(str.strip, sys.stdin) if line)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` its history and editing)
        note(f"Ask something; {', '.join(COMMANDS)}. Ctrl-C stops an answer.")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                note()
                return
            except KeyboardInterrupt:
                note("\n(/quit leaves)")
                continue
            if line:
                yield line

    def _command(self, line: str) -> bool:
        """Do what the line says; whether it ends the conversation."""
        name, _, rest = line.partition(" ")
        place = os.path.expanduser(rest.strip().strip("'\""))
        if _is_picture(dropped := line.strip("'\"")):  # a file that was dragged into the terminal
            name, place = "/image", dropped
        if name == "/quit":
            return True
        if name == "/image":
            self._show(place)
        elif name == "/undo":
            self._undo()
        elif name == "/clear":
            self._chat.close()
            self._chat, self._pictures = self._begin(), []
            note("(a new conversation)")
        elif name == "/help":
            note("\n".join(f"  {command} {what}" for command, what in COMMANDS.items()))
        elif name.startswith("/"):
            raise EdgeVLMError(f"There is no command '{name[:40]}': use {', '.join(COMMANDS)}.")
        else:
            self._ask(line)
        return False

    def _show(self, place: str) -> None:
        from edgevlm.generate.given import open_picture

        if not place:
            raise EdgeVLMError("/image needs a picture: write its path behind it.")
        width, height = open_picture(place, (255, 255, 255)).size
        self._pictures.append(place)
        note(f"(a picture of {width} x {height} for the next question)")

    def _undo(self) -> None:
        if not self._chat.turns:
            raise EdgeVLMError("There is no question to take back: the conversation is empty.")
        question = self._chat.turns[-1].question
        self._chat.rewind(1)
        note(f"(taken back: {printable(question)[:60]})")

    def _ask(self, question: str) -> None:
        stream = self._chat.ask(question, self._pictures, self._options)
        with _stopped_by_interrupts(stream):
            answer = show(stream)
        reason = answer.finish_reason
        if reason == "cancelled":
            note(STOPPED)
            return
        if reason == "length":
            note(f"(stopped after {answer.timings.answer_tokens} tokens: raise --max-tokens for longer answers)")
        self._pictures = []


@contextmanager
def _stopped_by_interrupts(stream: AnswerStream) -> Iterator[None]:
    """Ctrl-C ends the answer between two tokens, so that what was read before stays; a second one interrupts."""

    def stop(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread, which alone is interrupted
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_picture(word: str) -> bool:
    from edgevlm.inputs.kinds import looks_like_picture

    return bool(PATH.match(word)) and Path(word).is_file() and looks_like_picture(word)
