"""The options of commands that say how tokens are chosen and what form an answer has, by the names of `AskOptions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgevlm.generate.chat import AskOptions


def sampling_options(max_tokens: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds them to a command. max_tokens: the default of --max-tokens."""
    options = (
        click.option(
            "--max-tokens", type=int, default=max_tokens, show_default=True, metavar="N", help="Longest answer."
        ),
        click.option("--temperature", type=float, default=0.0, show_default=True, metavar="T", help="0 is greedy."),
        click.option("--top-p", type=float, default=1.0, show_default=True, metavar="P", help="Nucleus."),
        click.option("--top-k", type=int, default=0, show_default=True, metavar="K", help="0 keeps every token."),
        click.option("--repetition-penalty", type=float, default=1.0, show_default=True, metavar="R", help="1: off."),
        click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="For sampling."),
    )
    return lambda function: _added(options, function)


def form_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what form an answer has."""
    options = (
        click.option("--schema", metavar="FILE", help="Answer in JSON that this JSON Schema allows."),
        click.option(
            "--choice", "choices", multiple=True, metavar="TEXT", help="Answer with this text, or another --choice."
        ),
        click.option("--scores", is_flag=True, help="Also say how probable each --choice is."),
        click.option(
            "--regex", metavar="R", help="Answer with a text that this regular expression matches as a whole."
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be repeated."),
    )
    return _added(options, function)


def ask_options(schema: str | None, choices: tuple[str, ...], **chosen: Any) -> AskOptions:
    """What `sampling_options` and `form_options` gave, and further fields. schema: a file's name."""
    from edgevlm.generate.chat import AskOptions
    from edgevlm.io import limits
    from edgevlm.io.json import read_object

    form = None
    if schema is not None:
        form = read_object(Path(schema), "name the file of a JSON Schema", largest=limits.SCHEMA)
    return AskOptions(schema=form, choices=choices or None, **chosen)


def _added(options: Sequence[Callable[..., Any]], function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function
