"""The project's Markdown as tests read it: pages, blocks of code, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *DOCS, *sorted((ROOT / "bench").glob("*.md"))]
OTHERS = [ROOT / name for name in ("SECURITY.md", "CHANGELOG.md")]

FENCE = re.compile(r"^( *)(```+|~~~+)\s*(\S*)(.*)$")
NOTE = re.compile(r"<!-- (not run|heavy): (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. note: "", "not run" or "heavy", as the comment before it says, with its reason."""

    page: Path
    line: int  # of the fence, counted from 1
    language: str
    text: str
    note: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each line of a shell block with what the page says that it prints: in `console`, behind `$ `."""
        if self.language != "console":
            yield from ((line, "") for line in _shell_lines(self.text))
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            line = next(_shell_lines(part))
            yield line, part.replace("\\\n", " ")[len(line) :].strip()


def _shell_lines(text: str) -> Iterator[str]:
    """Lines as a shell takes them: with those that a backslash or an open quote adds, without what `<<END` holds."""
    whole, end = "", ""
    for line in text.replace("\\\n", " ").splitlines():
        if end:
            end = "" if line.strip() == end else end
            continue
        whole = f"{whole}\n{line}" if whole else line
        try:
            empty = not shlex.split(whole, comments=True)
        except ValueError:  # an open quote
            continue
        if here := re.search(r"<<-?\s*['\"]?(\w+)", whole):
            end = here[1]
        if not empty:
            yield whole
        whole = ""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Fenced blocks, in order; of an indented one each first line, with the language "indented"."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, above, at = [], [""], 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence:
            indent, ticks, language, _ = fence.groups()
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == ticks)
            text = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end])
            note = NOTE.fullmatch(next((line for line in reversed(above) if line.strip()), "").strip())
            found.append(Block(page, at + 1, language, text, *(note.groups() if note else ())))
            above, at = [""], end + 1
            continue
        if re.match(r" {4}\S", lines[at]) and not lines[at - 1].strip() and not _in_list(lines, at):
            found.append(Block(page, at + 1, "indented", lines[at]))
        above.append(lines[at])
        at += 1
    return found


def _in_list(lines: list[str], at: int) -> bool:
    """Whether the text before an indented line, up to the last one at the margin, is an item of a list."""
    before = next((line for line in reversed(lines[:at]) if line[:1].strip()), "")
    return re.match(r"([-*+]|\d+\.) ", before) is not None


@dataclass
class Command:
    """One command of a line: its words, and the files that it reads from and writes to."""

    words: list[str]
    stdin: str | None = None
    stdout: str | None = None


def commands(line: str) -> list[Command]:
    """Those of a line of a shell, between `|`, `&&`, `;` and `&`, without the variables set for them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";<>|&")
    lexer.wordchars += "@%^{}[]$+!,:()"
    found, tokens = [Command([])], iter(lexer)
    for token in tokens:
        if token == "<":
            found[-1].stdin = next(tokens)
        elif token == ">":
            found[-1].stdout = next(tokens)
        elif set(token) <= set(";<>|&"):
            found.append(Command([]))
        elif found[-1].words or not re.match(r"[A-Z_]+=", token):
            found[-1].words.append(token)
    return [command for command in found if command.words]


def prose(text: str) -> str:
    """A page without its fenced blocks, its comments and its code between backticks."""
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->|(`+)[^`].*?\1", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """What can follow `#` in a link to a page, by GitHub's rule."""
    found: set[str] = set()
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = next(i for i in range(1000) if (f"{slug}-{i}" if i else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def links(text: str) -> list[str]:
    """Targets of links and pictures: of Markdown, and of `src` and `href` in HTML."""
    text = prose(text)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    return inline + re.findall(r"^\[[^\]]+\]: *(\S+)", text, re.MULTILINE) + re.findall(r'(?:src|href)="([^"]+)"', text)
