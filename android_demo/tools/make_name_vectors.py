"""Write vectors/names.json: names of files, and whether `edgevlm.io.names` takes them.

python android_demo/tools/make_name_vectors.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgevlm.io.names import unportable

OUT = Path(__file__).parent.parent / "vectors/names.json"
PARTS = (
    "a",
    "onnx",
    "a.b",
    "..",
    ".",
    "",
    "...",
    " a",
    "a ",
    "a.",
    ".a",
    "a b",
    "a\tb",
    "a\0",
    "a\x7f",
    "a\u0085",
    "a:b",
    "a\\b",
    "a|b",
    "a?b",
    "a*b",
    'a"b',
    "a<b",
    "a>b",
    "con",
    "CON",
    "Con.txt",
    "con .txt",
    "con.",
    "console",
    "com1",
    "com1.a",
    "COM¹",
    "com¹.x",
    "com10",
    "lpt9",
    "lpt",
    "nul.bin",
    "aux",
    "prn",
    "conin$",
    "CONOUT$",
    "conin",
    "é",
    "e\u0301",
    "ß",
    "日本",
    "😀",
    "\ud83d",
    "\ude00",
    "x" * 255,
    "x" * 256,
    "é" * 127,
    "é" * 128,
    "~",
    "-",
    "a\n",
    "con\n",
    "con.\n",
    "%2e%2e",
    "a\u202eb",
    "\ufeff",
)
PAIRS = (
    ("a", "A"),
    ("a/b", "A/B"),
    ("a/b", "a/c"),
    ("é", "É"),
    ("é", "e\u0301"),
    ("ß", "SS"),
    ("ß", "ẞ"),
    ("K", "\u212a"),
    ("k", "\u212a"),
    ("Σ", "ς"),
    ("σ", "ς"),
    ("ﬁ", "fi"),
    ("ſ", "s"),
    ("Å", "\u212b"),
    ("ö", "o"),
    ("a", "b"),
    ("Ω", "\u2126"),
    ("µ", "μ"),
    ("straße", "STRASSE"),
)


def vectors() -> str:
    names = [
        *PARTS,
        *(f"a/{part}" for part in PARTS),
        *(f"{part}/a" for part in PARTS),
        "/a",
        "//a",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        "c:/a",
    ]
    data = {
        "names": [[name, unportable([name]) is None] for name in names],
        "pairs": [[*pair, unportable(pair) is None] for pair in PAIRS],
    }
    return json.dumps(data, indent=0) + "\n"


if __name__ == "__main__":
    found = vectors()
    if "--check" in sys.argv:
        sys.exit(0 if OUT.read_text("utf-8") == found else f"{OUT.name} is out of date: run this without --check")
    OUT.write_text(found, "utf-8")
