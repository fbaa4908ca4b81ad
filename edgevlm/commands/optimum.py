"""`edgevlm optimum`: `optimum-cli export edgevlm`, where optimum is installed.

optimum-cli takes subcommands from the files in optimum/commands/register, and from nowhere else: it has no entry
points. A wheel of ours that brought such a file would make `import optimum` succeed where there is no optimum, and
other libraries ask for it that way; so the file is written when a user asks for it.
"""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, write

FILE = "register_edgevlm.py"
# It imports edgevlm when it runs only: where edgevlm is gone, every other command of optimum-cli still works.
TEXT = '''"""`optimum-cli export edgevlm`. Written by `edgevlm optimum --install`; `--remove` removes it."""

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EdgeVLMExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="edgevlm", help="Export a vision-language model to an EdgeVLM bundle.")

    @staticmethod
    def parse_args(parser):
        parser.prefix_chars = ""  # every word, --help too, is for edgevlm's own parser
        parser.add_argument("words", nargs="*")

    def run(self):
        from edgevlm.cli import main

        main(["export", *self.args.words])


REGISTER_COMMANDS = [(EdgeVLMExportCommand, ExportCommand)]
'''


@click.command()
@click.option("--install", is_flag=True, help="Write the file.")
@click.option("--remove", is_flag=True, help="Remove it: before edgevlm or optimum is uninstalled.")
def optimum(install: bool, remove: bool) -> None:
    """Make `optimum-cli export edgevlm -m MODEL OUT` work, or stop it.

    optimum-cli reads its subcommands from a folder of its own, so --install writes one file into the optimum of this
    Python. What it runs is `edgevlm export`. Without an option, the file's place is shown, and whether it is there.
    """
    if install and remove:
        raise EdgeVLMError("--install and --remove contradict each other: give one.")
    path = plugin_path()
    there = path.exists()
    if (install or remove) and there and not _is_ours(path):
        raise EdgeVLMError(f"'{path}' was not written by edgevlm, and is kept: move it away first.")
    try:
        if install:
            path.parent.mkdir(exist_ok=True)
            path.write_text(TEXT, encoding="utf-8", newline="\n")
            note("Next: optimum-cli export edgevlm --help")
        elif remove and there:
            path.unlink()
            note("`optimum-cli export edgevlm` is gone; the rest of optimum-cli is as it was.")
        elif remove or not there:
            note("The file is not there; --install writes it.")
    except OSError as error:
        raise EdgeVLMError(
            f"'{path}' cannot be changed ({error.strerror}): use an environment that you may write to."
        ) from None
    write(str(path))


def plugin_path() -> Path:
    """Where the optimum that this Python imports looks for the file. Raises EdgeVLMError where there is none."""
    from importlib.util import find_spec

    try:
        spec = find_spec("optimum.commands")
    except ImportError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "optimum_cli.py").is_file():
            return Path(folder) / "register" / FILE
    raise EdgeVLMError(
        "optimum is not installed beside edgevlm: install it with pip install optimum, or use `edgevlm export`, which "
        "takes the same flags."
    )


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:200].startswith(TEXT.encode()[:40])
