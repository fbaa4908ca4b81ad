"""`edgevlm report`: one page on a set of bundles."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.commands.arguments import bundle_folder, warn_if_failed
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, progress_bar, size, write
from edgevlm.io.text import printable, shell_word


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("-o", "--out", required=True, metavar="FILE.html", help="The page.")
@click.option("--eval", "evals", multiple=True, metavar="JSON", help="A result of `edgevlm eval`; may be repeated.")
@click.option("--bench", "benches", multiple=True, metavar="JSON", help="... of `edgevlm bench`, of any device.")
@click.option(
    "--questions",
    type=int,
    default=300,
    show_default=True,
    metavar="N",
    help="Scenes questions for a bundle without --eval; 0: none.",
)
@click.option(
    "--repeat",
    type=int,
    default=6,
    show_default=True,
    metavar="N",
    help="Warm questions for a bundle without --bench; 0: none.",
)
@click.option("--picture", "pictures", multiple=True, metavar="FILE", help="For the gallery, in place of shipped ones.")
@click.option("--question", metavar="TEXT", help="What the gallery asks.")
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture.  [default: the model's]")
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: the engine's own choice]")
@click.option("--force", is_flag=True, help="Replace FILE.html.")
def report(
    bundles: tuple[str, ...],
    out: str,
    evals: tuple[str, ...],
    benches: tuple[str, ...],
    questions: int,
    repeat: int,
    pictures: tuple[str, ...],
    question: str | None,
    tiles: int | None,
    threads: int | None,
    force: bool,
) -> None:
    """Draw one page on BUNDLE... and what they cost.

    What each costs, loses and gains against the one with most bits, in words and in figures; scores by skill, time by
    stage, answers side by side, divergence by layer, the gates' tables. Differences that chance may have made are
    called so. The page needs nothing but itself. What no JSON file holds is measured here, briefly.
    """
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.io.apart import check_apart
    from edgevlm.io.files import check_new, write_text
    from edgevlm.report import ReportOptions, gather, page

    path = Path(out)
    read = {"BUNDLE": bundles, "--eval": evals, "--bench": benches, "--picture": pictures}
    check_apart([("--out", path)], [(name, place) for name, places in read.items() for place in places])
    if path.suffix.lower() not in (".html", ".htm") and (path.is_file() or not path.exists()):
        raise EdgeVLMError(
            f"The report is a page in HTML: name it so, as in -o {shell_word(str(path.with_suffix('.html')))}."
        )
    check_new(path, force)
    options = ReportOptions(
        evals=tuple(map(Path, evals)),
        benches=tuple(map(Path, benches)),
        questions=questions,
        repeat=repeat,
        pictures=tuple(map(Path, pictures)),
        question=question,
        tiles=tiles,
        threads=threads,
    )
    folders = [bundle_folder(bundle) for bundle in bundles]
    for folder in folders:
        warn_if_failed(open_bundle(folder))
    with progress_bar() as progress:
        found = gather(folders, options, progress)
    for line in found.notes:
        note(printable(line))
    text = page(found)
    write_text(path, text, force)
    note(f"{size(len(text.encode()))}, opens in any browser:")
    write(str(path))
