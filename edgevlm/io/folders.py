"""Output folders: written beside their final name, put there in one step, and replaced only where edgevlm wrote them.

How a replacement goes: the new folder is filled as `.OUT.edgevlm/new`, brought to the disk, renamed to
`.OUT.edgevlm/whole`, and exchanged with OUT in one step; the old one, which then lies in the hidden folder, is renamed
to `gone` and removed. Where the system has no exchange, OUT is renamed to `.OUT.edgevlm/old` first. A process that is
killed between the two leaves no OUT, and the next that claims OUT puts the old one back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.apart import Named, check_apart
from edgevlm.io.claims import claimed, work_folder
from edgevlm.io.console import note
from edgevlm.io.full import FULL, disk_errors
from edgevlm.io.json import read_json
from edgevlm.io.renames import exchange, rename_free, rename_new, sync, sync_tree

_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in every folder that they show
_SHOWN = 3  # files that a sentence names


@dataclass(frozen=True)
class Kind:
    """A kind of folder that edgevlm writes, and therefore may replace.

    marker: the JSON file that says so. own: from its content to the names of all of the folder's files, "/" between
    parts, the marker among them; None where the content is not of this kind. seal: writes the marker into a whole
    folder, where its writer does not.
    """

    name: str
    marker: str
    own: Callable[[Any], Collection[str] | None]
    seal: Callable[[Path], None] | None = None

    def files(self, folder: Path) -> Collection[str] | None:
        """The names of the folder's own files; None where it is not of this kind."""
        try:
            return self.own(read_json(folder / self.marker, "")) if (folder / self.marker).is_file() else None
        except EdgeVLMError:
            return None


class Replacement:
    """An output folder in the making: fill `new`, then `publish`. `scratch` is for what is not kept."""

    def __init__(self, out: Path, place: Path, kind: Kind, force: bool, work: Path) -> None:
        self.out, self._place, self._kind, self._force, self._work = out, place, kind, force, work
        self.new, self.scratch = work / "new", work / "scratch"
        for folder in (self.new, self.scratch):
            folder.mkdir()

    def publish(self) -> None:
        """Give the finished folder its name.

        Raises EdgeVLMError where something has appeared there that must not be replaced: it is kept, and the new folder
        lies beside it.
        """
        whole = self._finish()
        try:
            if self._force and _is_filled(self._place):
                check_replaceable(self.out, True, self._kind)
                self._replace(whole, self._place)
            else:
                rename_new(whole, self._place)
        except (EdgeVLMError, OSError) as error:
            if not whole.exists() or (isinstance(error, OSError) and error.errno in FULL):
                raise
            kept = rename_free(whole, self._place)
            why = error if isinstance(error, EdgeVLMError) else f"'{self.out}' could not be replaced ({error.strerror})"
            if isinstance(error, FileExistsError):
                why = f"'{self.out}' appeared while this ran, and was kept."
            raise EdgeVLMError(f"{why} The new {self._kind.name} lies in '{self.out.with_name(kept.name)}'.") from None
        sync([self._place.parent])

    def set_aside(self, name: str) -> Path:
        """Give the finished folder the name `name` beside the output, or `name`-2, -3, ... where that is a user's."""
        whole, place = self._finish(), self._place.with_name(name)
        if _is_filled(place) and not place.is_symlink() and _strangers(place, self._kind) == []:
            self._replace(whole, place)
        else:
            place = rename_free(whole, place)
        sync([place.parent])
        return self.out.with_name(place.name)

    def _finish(self) -> Path:
        if self._kind.seal is not None:
            self._kind.seal(self.new)
        sync_tree(self.new)
        return self.new.rename(self._work / "whole")

    def _replace(self, whole: Path, place: Path) -> None:
        old = whole
        if not exchange(whole, place):
            old = place.rename(self._work / "old")
            try:
                rename_new(whole, place)
            except OSError:
                rename_new(old, place)
                raise
        with suppress(OSError):  # the new folder has its name, and the rest is tidying
            old = old.rename(self._work / "gone")
            _discard(old, place, self._kind)


@contextmanager
def replacing(
    out: Path, kind: Kind, force: bool = False, inputs: Sequence[Named] = (), name: str = "--out"
) -> Iterator[Replacement]:
    """Claim the folder `out` until the end, to write a folder of that kind.

    force: replace one that is there. inputs: what else the command reads, which `out` must not touch; `name` is what
    the command calls `out`. Raises EdgeVLMError where `out` cannot be written or must not be replaced, before any work.
    """
    check_apart([(name, out)], inputs)
    parent = out.parent.resolve()
    place = parent / out.name
    if not work_folder(place).exists():  # what a stopped run left is put right first
        check_replaceable(out, force, kind)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeVLMError(f"'{parent}' cannot be written ({error.strerror}): choose another output folder.") from None
    with (
        disk_errors(out, work_folder(place)),
        claimed(place, lambda work: _recover(work, place, kind)) as work,
    ):
        check_replaceable(out, force, kind)
        yield Replacement(out, place, kind, force, work)


def check_replaceable(out: Path, force: bool, kind: Kind) -> None:
    """Refuse an output folder that exists, unless it is empty, or with `force` a `kind` with only its own files."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise EdgeVLMError(f"'{out}' exists and is no folder: choose another output folder.")
    if not out.is_dir():
        return
    here = Path.cwd()
    if here.samefile(out):
        raise EdgeVLMError(f"'{out}' is the current folder, which cannot be replaced: name a folder inside it.")
    if os.path.ismount(out):
        raise EdgeVLMError(f"'{out}' is where a disk is mounted, which cannot be replaced: name a folder inside it.")
    if not _is_filled(out):
        return
    if not force:
        raise EdgeVLMError(f"'{out}' already exists: choose another output folder, or replace it with --force.")
    if here.is_relative_to(out.resolve()):
        raise EdgeVLMError(f"'{out}' holds the current folder, and cannot be replaced: choose another output folder.")
    strangers = _strangers(out, kind)
    if strangers is None:
        raise EdgeVLMError(
            f"'{out}' holds something that is not a {kind.name}, and --force replaces {kind.name}s only: "
            "choose another output folder."
        )
    if strangers:
        named = ", ".join(f"'{name}'" for name in strangers[:_SHOWN])
        more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
        raise EdgeVLMError(
            f"'{out}' holds files that are not of the {kind.name} ({named}{more}), which --force would delete: "
            "move them away, or choose another output folder."
        )


def _is_filled(folder: Path) -> bool:
    return os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir()))


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """All that lies below `folder` and is no folder itself, links to folders among it, by its name."""
    for root, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if (Path(root) / name).is_symlink())]:
            path = Path(root) / name
            yield path.relative_to(folder).as_posix(), path


def _strangers(folder: Path, kind: Kind) -> list[str] | None:
    """The names of files that are not the folder's own; None where it is not of that kind."""
    own = kind.files(folder)
    if own is None:
        return None
    return sorted(name for name, path in _entries(folder) if name not in own and path.name not in _LITTER)


def _discard(folder: Path, place: Path, kind: Kind) -> None:
    """Remove the files that are a folder's own by its marker, the marker last; what else is there is kept."""
    own = kind.files(folder) or ()
    with suppress(OSError):  # what cannot be removed is kept
        for name, path in _entries(folder):
            if name != kind.marker and (name in own or (own and path.name in _LITTER)):
                path.unlink()
        if own:
            (folder / kind.marker).unlink(missing_ok=True)
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(root)
    if folder.exists():
        kept = rename_free(folder, place.with_name(f"{place.name}.old"))
        note(f"'{kept}' holds what was in '{place.name}' and is not edgevlm's.")


def _recover(work: Path, place: Path, kind: Kind) -> None:
    """Put right what a process that was killed has left of a replacement."""
    old = work / "old"
    if old.is_dir() and not os.path.lexists(place):
        rename_new(old, place)
        note(f"'{place.name}' is back: a stopped run had moved it aside.")
    for name in ("old", "whole", "gone"):  # `whole` is the new folder before the exchange, and the old one after it
        if (work / name).is_dir():
            _discard(work / name, place, kind)
