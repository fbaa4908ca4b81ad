"""Text from outside (answers, names, templates) on its way to a terminal, and into JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError

# What a terminal obeys, or what hides or turns around the text beside it: C0, DEL and C1; line separators; embedding,
# override and isolation of directions (Trojan Source, CVE-2021-42574); halves of characters, which no encoding has.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:/\\+@=,~-]+")  # what both of Windows' shells take as it is
_HALF = re.compile("[\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """`text` with every unsafe character escaped as in Python, as in \\x1b; those in `keep` stay."""

    def escape(found: re.Match[str]) -> str:
        char = found[0]
        return char if char in keep else char.encode("unicode_escape", "backslashreplace").decode("ascii")

    return _UNSAFE.sub(escape, text)


def shell_word(text: str) -> str:
    """`text` as one word of a command line, in this system's quotes."""
    if sys.platform != "win32":
        return shlex.quote(text)
    return text if _PLAIN.fullmatch(text) else f'"{text}"'


def check_place(path: Path) -> None:
    """Refuse a place whose name, or a parent's, is no text: libraries that take paths as text cannot open it."""
    whole, encoding = os.path.join(os.getcwd(), path), sys.getfilesystemencoding()
    if _HALF.search(whole):
        remedy = "choose another name" if encoding == "utf-8" else "choose another name, or a UTF-8 locale"
        raise EdgeVLMError(f"The name of '{whole}' is no text in {encoding}, so that engines cannot open it: {remedy}.")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every encoding of Unicode can hold: halves of characters are escaped, all else is text."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
