"""`edgevlm scenes`: write generated pictures and questions."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.commands.arguments import nearest
from edgevlm.io.console import note, progress_bar
from edgevlm.io.text import printable


@click.command()
@click.argument("folder", metavar="DIR")
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="[train|val|test]",
    help="Splits share no layout, no text, and not every pair of colour and object.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Another seed, other scenes.")
@click.option("--count", default=300, show_default=True, metavar="N", help="Pictures; each has 7 or 8 questions.")
@click.option("--rounds", default=1, show_default=True, metavar="N", help="Ask more of each picture, for training.")
@click.option("--force", is_flag=True, help="Replace a Scenes folder at DIR, once the new one is complete.")
def scenes(folder: str, split: str, seed: int, count: int, rounds: int, force: bool) -> None:
    """Write generated scenes and questions to DIR.

    Pictures in DIR/images, one question with its answer per line of DIR/questions.jsonl: docs/scenes.md.
    The same split, seed and count give the same pixels and questions on every machine.
    """
    from edgevlm.errors import EdgeVLMError
    from edgevlm.scenes.catalogue import SPLITS
    from edgevlm.scenes.folder import MOST_SCENES, write_scenes

    if split not in SPLITS:
        raise EdgeVLMError(f"There is no split '{split}': {nearest(split, SPLITS)}")
    if not 1 <= count <= MOST_SCENES:
        raise EdgeVLMError(f"--count {count} is no number of pictures: choose 1 to {MOST_SCENES}.")
    if not 0 <= seed < 2**63:
        raise EdgeVLMError(f"--seed {seed} is out of range: choose a whole number from 0.")
    if not 1 <= rounds <= 100:
        raise EdgeVLMError(f"--rounds {rounds} is out of range: choose 1 to 100.")
    with progress_bar() as progress:
        questions = write_scenes(Path(folder), split, seed, count, force=force, rounds=rounds, progress=progress)
    note(f"{count} pictures and {questions} questions in {printable(folder)}")
