"""Write docs/cli.md from the program itself: `python docs/make_cli_docs.py`, or `--check` to compare."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgevlm.cli import edgevlm
from edgevlm.commands.export import REPLACED, REPLACED_SWITCHES

PAGE = Path(__file__).parent / "cli.md"
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

OPTIMUM = """## Coming from `optimum-cli export onnx`

`-m`/`--model`, the positional output folder, `--dtype fp32|fp16`, `--cache-dir`, `--task image-text-to-text`,
`--device cpu` and `--framework pt` work. The other flags end with a sentence that says what to do instead:

| flag | what `edgevlm export` says |
|---|---|
"""


def page() -> str:
    """docs/cli.md as the program stands."""
    parts = [OPENING, _help(edgevlm, "edgevlm")]
    parts += [_help(command, f"edgevlm {verb}") for verb, command in edgevlm.commands.items()]
    rows = [f"| `{flag}` | {sentence} |" for flag, sentence in {**REPLACED, **REPLACED_SWITCHES}.items()]
    return "\n".join([*parts, OPTIMUM + "\n".join(rows)]) + "\n"


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"## {name}\n\n```text\n{text}\n```\n"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"docs/cli.md does not match the program: run {COMMAND}")


if __name__ == "__main__":
    main()
