"""Names of files that strangers chose: inside the folder that they belong to, on whatever system they are used."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

# What Windows takes for a device in any folder, with any ending; superscripts count as digits there.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\.|$)", re.IGNORECASE)
_UNKNOWN = re.compile(r'[\x00-\x1f<>"|?*\ud800-\udfff]')
_LONGEST = 255  # bytes of one part on Linux, and units of UTF-16 elsewhere, which are fewer


def is_below(name: str) -> bool:
    """Whether `name`, "/" between its parts, stays below a folder on every system.

    Windows knows other ways out: "\\" between parts, a drive's letter, and a second stream of a file behind ":".
    """
    parts = PurePosixPath(name).parts
    return bool(parts) and name[0] != "/" and ".." not in parts and not any(char in name for char in "\\:\0")


def unportable(names: Iterable[str]) -> tuple[str, str] | None:
    """A name that is not below its folder as it is on every system, and why; None where all are.

    Of two names that are one on a file system that ignores case (those of Windows and macOS), the second is found.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not is_below(name):
            return name, "is outside the bundle"
        for part in name.split("/"):
            if part in ("", ".") or part[-1] in ". " or _UNKNOWN.search(part) or _DEVICE.match(part):
                return name, "Windows cannot have"
            if len(part.encode()) > _LONGEST:
                return name, f"has a part of over {_LONGEST} bytes"
        if (other := seen.setdefault(folded(name), name)) != name:
            return name, f"is one with '{other[:200]}' where case does not count"
    return None


def folded(name: str) -> str:
    """What is the same for two names that a file system which ignores case takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
