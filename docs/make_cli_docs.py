"""Write docs/cli.md, and the table of docs/from-optimum.md, from the program itself.

python docs/make_cli_docs.py          writes them
python docs/make_cli_docs.py --check  exits with 1 if it would change one
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgevlm.cli import edgevlm
from edgevlm.commands.optimum_flags import REPLACED, REPLACED_SWITCHES

PAGE = Path(__file__).parent / "cli.md"
OPTIMUM = Path(__file__).parent / "from-optimum.md"
COMMAND = "python docs/make_cli_docs.py"

OPENING = f"""# Command line

<!-- Written by `{COMMAND}` from the program's own help. Do not edit. -->

Answers and results go to standard output, everything else to standard error. A terminal gets control characters
(escape sequences, overrides of the direction of text) as escapes such as `\\x1b`; a file or a pipe gets an answer as
the model wrote it. What the encoding of the output lacks is escaped, too, as in `\\u6a21`. Long work without a
terminal says a line twice a minute.

Exit codes: 0 done, 1 an artifact missed a bound of the gate, 2 something you can change (one sentence says what),
70 a fault of edgevlm itself, with a traceback to report, 130 interrupted, 129 hung up, 143 terminated, 141 the reader
of the output went away.
"""

BEGIN, END = f"<!-- Written by `{COMMAND}`. -->\n", "<!-- The end of the flags. -->\n"


def page() -> str:
    """docs/cli.md as the program stands."""
    parts = [OPENING, _help(edgevlm, "edgevlm")]
    parts += [_help(command, f"edgevlm {verb}") for verb, command in edgevlm.commands.items()]
    return "\n".join(parts)


def optimum_page() -> str:
    """docs/from-optimum.md with the flags that an export answers with a sentence."""
    before, _, rest = OPTIMUM.read_text(encoding="utf-8").partition(BEGIN)
    rows = [f"| `{flag}` | {sentence} |" for flag, sentence in {**REPLACED, **REPLACED_SWITCHES}.items()]
    head = "| flag | what `edgevlm export` says |\n|---|---|\n"
    return f"{before}{BEGIN}\n{head}" + "\n".join(rows) + f"\n\n{END}{rest.partition(END)[2]}"


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"## {name}\n\n```text\n{text}\n```\n"


def main() -> None:
    for path, text in ((PAGE, page()), (OPTIMUM, optimum_page())):
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{path.name} does not match the program: run {COMMAND}")


if __name__ == "__main__":
    main()
