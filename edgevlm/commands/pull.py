"""`edgevlm pull`: a bundle from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.io.console import note, write
from edgevlm.io.text import shell_word


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("out", metavar="[DIR]", required=False)
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@click.option("--force", is_flag=True, help="Replace a bundle at DIR, once the new one is complete.")
def pull(repo: str, out: str | None, revision: str | None, force: bool) -> None:
    """Fetch the bundle OWNER/NAME of the Hugging Face Hub into the folder DIR, by default NAME.

    The manifest comes first, and only files that it lists, with their sizes, are fetched. DIR appears when every file
    has its hash. A pull that was stopped goes on from the files that are whole. The folder is the only line on standard
    output.
    """
    from edgevlm.bundle.hub import pull as pull_bundle
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.commands.arguments import warn_if_failed

    folder = pull_bundle(repo, Path(out or repo.rpartition("/")[2] or "bundle"), revision=revision, force=force)
    warn_if_failed(open_bundle(folder))
    note(f'\nNext: edgevlm run {shell_word(str(folder))} photo.jpg "What is in the picture?"')
    write(str(folder))
