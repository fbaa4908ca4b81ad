"""The options of commands that say how tokens are chosen, by the names of `GenerateOptions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


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

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add
