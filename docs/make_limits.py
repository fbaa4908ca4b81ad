"""Write the table of limits into docs/security.md, from the constants and comments of edgevlm/io/limits.py.

python docs/make_limits.py          writes it
python docs/make_limits.py --check  exits with 1 if it would change
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgevlm.io import limits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- Written by `python docs/make_limits.py`. -->\n", "<!-- The end of the limits. -->\n"
LINE = re.compile(r"([A-Z_]+) = [^#]+?  # (.+)")


def table() -> str:
    """One row per constant, in the order of the module, a heading for each of its sections."""
    rows = ["| limit | value | what it bounds, and what is known to come near |", "|---|---|---|"]
    for line in Path(limits.__file__).read_text(encoding="utf-8").splitlines():
        if found := LINE.fullmatch(line):
            value = getattr(limits, found[1])
            rows.append(f"| `{found[1]}` | {value:,} | {found[2]} |")
        elif re.fullmatch(r"[A-Z_]+ = .*", line):
            raise ValueError(f"limits.py has no reason in the line of {line}")
    return "\n".join(rows) + "\n"


def page() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/security.md does not match edgevlm/io/limits.py: run python docs/make_limits.py")


if __name__ == "__main__":
    main()
