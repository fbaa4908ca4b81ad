"""Outputs that are inputs, or one another: compared as the files that they are, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgevlm.errors import EdgeVLMError

Named = tuple[str, Path | str | None]  # what a command calls it, and where it is, if it was given


def check_apart(outputs: Sequence[Named], inputs: Sequence[Named]) -> None:
    """Refuse an output that is an input or another output, a folder that holds one, and a file inside a folder of them.

    Inputs that are no files here, such as names on the Hub, are passed over. A new file may lie in an input's folder.
    """
    written = [(name, Path(place)) for name, place in outputs if place is not None]
    read = [(name, Path(place)) for name, place in inputs if place is not None and _exists(Path(place))]
    for number, (name, out) in enumerate(written):
        for other, place in written[number + 1 :]:
            if _same(out, place):
                raise EdgeVLMError(f"{name} and {other} are both '{out}': give each a file of its own.")
        for other, place in read:
            if _same(out, place):
                raise EdgeVLMError(f"{name} is '{out}', which {other} reads: choose another output.")
            if _holds(out, place):
                raise EdgeVLMError(f"{name} '{out}' holds '{place}', which {other} reads: choose another output.")
            if out.is_file() and place.is_dir() and _holds(place, out):
                raise EdgeVLMError(
                    f"{name} is '{out}', a file of '{place}', which {other} reads: choose a file outside of it."
                )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no path at all, such as a name that is too long
        return False


def _holds(folder: Path, place: Path) -> bool:
    """Whether `place` lies in `folder`, which some systems spell in several ways: with other case, by a short name."""
    return any(_same(folder, parent) for parent in (place.resolve(), *place.resolve().parents))


def _same(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and os.path.samefile(one, other)
