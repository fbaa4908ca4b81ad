"""`edgevlm label`: one question about many pictures, into a table."""

from __future__ import annotations

from typing import Any

import click

from edgevlm.commands.arguments import bundle_folder, warn_if_failed
from edgevlm.commands.sampling import ask_options, form_options, sampling_options
from edgevlm.io.console import meter, note
from edgevlm.io.signals import Stopped


@click.command()
@click.argument("bundle")
@click.argument("pictures")
@click.option("-q", "--question", required=True, metavar="TEXT", help="What is asked about every picture.")
@click.option("-o", "--out", required=True, metavar="FILE", help="The table: .parquet or .jsonl.")
@form_options
@sampling_options(max_tokens=128)
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture; 1 is fastest.  [default: the model's]")
@click.option("--thinking/--no-thinking", default=None, help="Think before the answer, where the model has a switch.")
@click.option("--column", metavar="NAME", help="Of a Parquet file: the column with paths or bytes.")
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option(
    "--device", default="cpu", show_default=True, metavar="[cpu|gpu|npu]", help="What to run on, as of `edgevlm run`."
)
@click.option("--threads", type=int, metavar="N", help="CPU threads of a session.  [default: its share of the cores]")
@click.option("--workers", type=int, metavar="N", help="Sessions beside each other.  [default: 1; on Ray, what fits]")
@click.option(
    "--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help="Compute on a Ray cluster, or a local Ray."
)
@click.option("--retry-errors", is_flag=True, help="Ask again about pictures that had an error.")
@click.option("--force", is_flag=True, help="Replace FILE.")
def label(
    bundle: str,
    pictures: str,
    question: str,
    out: str,
    tiles: int | None,
    thinking: bool | None,
    column: str | None,
    runtime: str | None,
    device: str,
    threads: int | None,
    workers: int | None,
    ray: str | None,
    retry_errors: bool,
    force: bool,
    **chosen: Any,
) -> None:
    """Ask the model in BUNDLE one question about each of many PICTURES.

    PICTURES is a folder, with all below it; a text file with a path in each line; JSON lines, {"image": "photo.jpg"};
    or a Parquet file with paths or the bytes of files. The table has a row for each picture: its path, the hash of its
    file, the answer, or the error. With --schema, an answer's properties are columns of Parquet.

    A run that was stopped, however it was, goes on where it was when the same command is given again.
    """
    folder = bundle_folder(bundle)

    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.label import label as run

    options = ask_options(max_tiles=tiles, thinking=thinking, **chosen)
    warn_if_failed(open_bundle(folder))
    begun = False
    with meter("pictures") as show:

        def progress(done: int, total: int, new: int, errors: int) -> None:
            nonlocal begun
            begun = True
            show(done, total, new, f"{errors} {'error' if errors == 1 else 'errors'}")

        try:
            found = run(
                folder, pictures, question, out, options, progress, runtime=runtime, device=device, threads=threads,
                workers=workers, column=column, ray=ray, retry_errors=retry_errors, force=force,
            )  # fmt: skip
        except (KeyboardInterrupt, Stopped):
            if begun:
                note(f"What is done lies beside '{out}': the same command goes on.")
            raise
    wrong = f", {found.errors} of them with an error: see their column of that name" if found.errors else ""
    note(f"'{out}' has {found.rows} rows{wrong}.")
    if found.again:
        note(f"{found.again} of the pictures were listed before, and have one row each.")
