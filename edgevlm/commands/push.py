"""`edgevlm push`: a bundle to the Hugging Face Hub."""

from __future__ import annotations

import click

from edgevlm.io.console import note, write
from edgevlm.io.text import shell_word


@click.command()
@click.argument("bundle")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everybody see a repository that is made, or that they see already.")
@click.option("--revision", metavar="BRANCH", help="The branch, made where it is not there.  [default: main]")
@click.option("--license", "licence", metavar="ID", help="The licence, as in apache-2.0, where the source names none.")
@click.option("--force", is_flag=True, help="Change a repository that holds something else, and write its card anew.")
def push(bundle: str, repo: str, public: bool, revision: str | None, licence: str | None, force: bool) -> None:
    """Put BUNDLE into the repository OWNER/NAME of the Hugging Face Hub.

    Every file is compared with its hash, and one commit holds them all, with a model card: what it is, the source and
    its licence, sizes, the gate's table. A repository that is made is private. One that is there is changed where it
    holds a bundle of the same model, or nothing; earlier commits stay in its history. Log in once with
    'hf auth login'. The address is the only line on standard output.
    """
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.bundle.push import PushOptions
    from edgevlm.bundle.push import push as push_bundle
    from edgevlm.commands.arguments import warn_if_failed

    warn_if_failed(open_bundle(bundle))
    address = push_bundle(bundle, repo, PushOptions(public, revision, licence, force))
    note(
        f"\nNext, on another machine: edgevlm pull {repo}" + (f" --revision {shell_word(revision)}" if revision else "")
    )
    write(address)
