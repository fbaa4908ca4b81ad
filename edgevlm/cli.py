"""`edgevlm VERB`: the command line.

Exit codes: 0 done, 1 a bound of the gate was missed, 2 something the user can change, 130 interrupted, 143 terminated,
129 hung up, 70 a fault of edgevlm itself. Nothing heavy is imported here or at the head of a verb's module: `--help`
and mistakes answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from edgevlm import __version__
from edgevlm.commands.arguments import nearest
from edgevlm.commands.bench import bench
from edgevlm.commands.chat import chat
from edgevlm.commands.compose import compose
from edgevlm.commands.demo import demo
from edgevlm.commands.distill import distill
from edgevlm.commands.eval import eval
from edgevlm.commands.export import export
from edgevlm.commands.info import info
from edgevlm.commands.label import label
from edgevlm.commands.optimum import optimum
from edgevlm.commands.pull import pull
from edgevlm.commands.push import push
from edgevlm.commands.report import report
from edgevlm.commands.run import run
from edgevlm.commands.scenes import scenes
from edgevlm.commands.serve import serve
from edgevlm.commands.train import train
from edgevlm.commands.verify import verify
from edgevlm.errors import EdgeVLMError
from edgevlm.io.notes import warnings_as_lines
from edgevlm.io.program import run_program


class _Verbs(click.Group):
    """A group that answers an unknown verb with the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise EdgeVLMError(f"There is no verb '{args[0]}': {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgevlm", message="%(prog)s %(version)s")
def edgevlm() -> None:
    """Export small vision-language models to edge runtimes, prove the export, and run it.

    \b
      edgevlm demo                                            export, check and ask the shipped model
      edgevlm export MODEL --target onnx -o BUNDLE            checkpoint folder or Hub id to a bundle
      edgevlm run BUNDLE photo.jpg "What is on the table?"    ask about a picture

    Answers go to standard output, everything else to standard error.
    """


for _verb in (
    *(
        export,
        run,
        chat,
        serve,
        label,
        verify,
        eval,
        bench,
        report,
        info,
        push,
        pull,
        demo,
        scenes,
        train,
        distill,
        compose,
        optimum,
    ),
):
    edgevlm.add_command(_verb)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (default: this process's own) and exit with its code."""
    words = list(sys.argv[1:] if args is None else args)
    sys.exit(run_program(lambda: _run(words)))


def _run(words: list[str]) -> int:
    try:
        with warnings_as_lines(), edgevlm.make_context("edgevlm", words or ["--help"]) as context:
            edgevlm.invoke(context)
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "edgevlm"
        raise EdgeVLMError(f"{error.format_message().rstrip('.')} (see '{verb} --help').") from None
    except click.ClickException as error:
        raise EdgeVLMError(error.format_message()) from None
    return 0
