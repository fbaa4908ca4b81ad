"""Every block of code in README.md, CONTRIBUTING.md, docs/ and bench/ is right.

The rules, for who writes a page:

- A block is fenced and names its language. `sh` holds commands, `console` commands behind `$ ` and what they print
  (compared, where it is given), `text` is anything that is neither program nor data.
- A page's `python` and shell blocks run in order, in one namespace and one temporary folder, offline. In that folder
  lie the bundles BUNDLES (the shipped model), its checkpoint as CHECKPOINTS, and the files of `prepare`. What a
  command writes (`-o`) may be there already; it is removed first.
- Of a shell block, the `edgevlm` commands run. Of others it is checked that scripts and `make` targets exist.
- `<!-- not run: WHY, in words -->` on the line before a block: it cannot run here. It still has to compile, and its
  commands have to parse. `<!-- heavy: WHY -->`: it runs with the heavy tests alone. Say as much with few of these.
- `json`, `jsonl`, `yaml` and `toml` are parsed; `js` goes through `node --check`. Other languages are listed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from documents import PAGES, ROOT, Block, Command, blocks, commands, name
from PIL import Image

from edgevlm.bundle.manifest import Bundle
from edgevlm.cli import edgevlm, main

BUNDLES = (
    "smolvlm",
    "tiny",
    "bundle",
    "BUNDLE",
    "qwen",
    "mine",
    "smolvlm-fp32",
    "smolvlm-fp16",
    "smolvlm-int8",
    "smolvlm-int4",
)
CHECKPOINTS = ("HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "my-smolvlm", "FOLDER")
ENDLESS = ("serve",)
SHELLS = ("sh", "console")
RUN = ("python", *SHELLS)
PARSED = ("json", "jsonl", "yaml", "toml", "js")
LISTED = ("text", "swift", "kotlin", "cpp", "html", "nginx", "caddyfile", "dockerfile", "ini", "promql")


@pytest.fixture(scope="session")
def shipped_bundle(gguf_bundle: Callable[..., Bundle]) -> Path:
    """The default model in int4, for ONNX and llama.cpp. Do not change it."""
    return gguf_bundle("int4", "default").folder


def prepare(folder: Path, bundle: Path) -> None:
    """What the pages' reader has at hand."""
    for each in BUNDLES:
        (folder / each).symlink_to(bundle)
    for each in CHECKPOINTS:
        (folder / each).parent.mkdir(exist_ok=True)
        (folder / each).symlink_to(ROOT / "edgevlm" / "assets" / "default")
    (folder / "photos").mkdir()
    pictures = ("photo", "before", "after", "kitchen", "photos/one", "photos/two")
    with Image.open(ROOT / "edgevlm" / "assets" / "scenes" / "demo.png") as image:
        for each in pictures:
            image.convert("RGB").save(folder / f"{each}.jpg", quality=95)
    asked = [{"image": "kitchen.jpg", "question": "How many balloons are there?"}, {"question": "What is red?"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    (folder / "questions.txt").write_text("/image photo.jpg\nHow many balloons are there?\n", encoding="utf-8")
    (folder / "questions").mkdir()
    shutil.copy(folder / "photo.jpg", folder / "questions" / "cup.jpg")
    line = {"image": "cup.jpg", "question": "What colour is the car?", "answer": "red"}
    (folder / "questions" / "questions.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (folder / "edgevlm" / "assets" / "scenes").mkdir(parents=True)
    shutil.copy(ROOT / "edgevlm" / "assets" / "scenes" / "demo.png", folder / "edgevlm" / "assets" / "scenes")
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    for each in ("vehicle", "form"):
        (folder / f"{each}.json").write_text(json.dumps(schema), encoding="utf-8")


class Reader:
    """Someone who does what a page says, from its beginning to its end."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        self.names: dict[str, Any] = {"__name__": "__main__"}
        monkeypatch.chdir(folder)
        monkeypatch.setattr(socket.socket, "connect", _no_network)

    def do(self, block: Block) -> None:
        if block.language == "python":
            source = "\n" * block.line + block.text
            exec(compile(source, str(block), "exec", dont_inherit=True), self.names)
            return
        for line, printed in block.lines():
            found = commands(line)
            if any(command.words[0] == "edgevlm" for command in found):
                assert len(found) == 1, f"{block}: more than one command in '{line}'; mark it as not run"
                assert found[0].words[1] not in ENDLESS, f"{block}: '{line}' does not end by itself; mark it as not run"
                said = self.say(block, *found)
                assert not printed or said.strip() == printed, f"{block}: '{line}' printed {said!r}"

    def say(self, block: Block, found: Command) -> str:
        """Standard output of an `edgevlm` command that succeeds."""
        for before, word in zip(found.words, found.words[1:], strict=False):
            if before in ("-o", "--out"):
                _remove(self.folder / word)
        self.capsys.readouterr()
        with open(found.stdin or os.devnull, encoding="utf-8") as stdin, pytest.raises(SystemExit) as done:
            self.monkeypatch.setattr("sys.stdin", stdin)
            main(found.words[1:])
        said, told = self.capsys.readouterr()
        assert done.value.code == 0, f"{block}: {' '.join(found.words)}\n{told}"
        if found.stdout:
            (self.folder / found.stdout).write_text(said, encoding="utf-8")
        return said


def _no_network(self: socket.socket, address: object) -> None:
    raise AssertionError(f"a page reached for the network: {address}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def runs(page: Path, heavy: bool) -> list[Block]:
    notes = ("", "heavy") if heavy else ("",)
    return [block for block in blocks(page) if block.language in RUN and block.note in notes]


def has_heavy(page: Path) -> bool:
    return any(block.note == "heavy" for block in blocks(page))


@pytest.fixture
def reader(
    shipped_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Reader:
    """In a folder with the files that pages speak of."""
    prepare(tmp_path, shipped_bundle)
    return Reader(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page, heavy=False)], ids=name)
def test_blocks_run(page: Path, reader: Reader) -> None:
    for block in runs(page, heavy=False):
        reader.do(block)


@pytest.mark.heavy
@pytest.mark.parametrize("page", [page for page in PAGES if has_heavy(page)], ids=name)
def test_heavy_blocks_run(page: Path, reader: Reader) -> None:
    for block in runs(page, heavy=True):
        reader.do(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_text_parse(page: Path) -> None:
    """`edgevlm VERB ...` between backticks."""
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"`(edgevlm [a-z][^`]*)`", text):
        for found in commands(line):
            check_command(Block(page, text[: text.index(line)].count("\n") + 1, "", line), found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_well_formed(page: Path) -> None:
    """Those that do not run, too."""
    for block in blocks(page):
        check(block)


def check(block: Block) -> None:
    assert block.language != "indented", f"{block}: an indented block; fence it, and name its language"
    assert block.language in (*RUN, *PARSED, *LISTED), f"{block}: which language is '{block.language}'?"
    assert not block.note or block.language in RUN or block.language in PARSED, f"{block} is never run"
    if block.language in SHELLS:
        for line, _ in block.lines():
            for found in commands(line):
                check_command(block, found)
    elif block.language == "python":
        check_python(block)
    elif block.language in PARSED:
        check_data(block)


def check_python(block: Block) -> None:
    """An excerpt may be the inside of a function, and may leave out what a function does."""
    inside = textwrap.indent(textwrap.dedent(block.text), " ")
    ast.parse(block.text if not block.note else f"async def excerpt():\n{inside}", str(block))


def check_data(block: Block) -> None:
    if block.language in ("json", "jsonl"):
        for text in block.text.splitlines() if block.language == "jsonl" else [block.text]:
            json.loads(text)
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif node := shutil.which("node"):
        check = [node, "--check", "--input-type=module", "-"]
        done = subprocess.run(check, input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}: {done.stderr}"


def check_command(block: Block, found: Command) -> None:
    """A line of a shell block: what it names of this project exists."""
    program, *words = found.words
    if program == "edgevlm" and words:
        check_verb(block, words)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets), f"{block}: make {words}"
    elif program in ("python", "python3") and words[0] != "-m":
        scripts = [word for word in words[:1] if word.startswith(("bench/", "docs/", "tests/"))]
        assert all((ROOT / script).is_file() for script in scripts), f"{block}: {words[0]} is not there"
    elif program == "python" and words[1] == "edgevlm":
        check_verb(block, words[2:])


def check_verb(block: Block, words: list[str]) -> None:
    """The verb and its flags exist, the number of arguments fits, and values have their types; files may be missing."""
    verb, *rest = words
    assert verb in edgevlm.commands or verb.startswith("-"), f"{block}: edgevlm {verb}"
    if verb.startswith("-"):
        return
    verbs = edgevlm.commands[verb]
    context = click.Context(verbs, info_name=verb)
    try:
        given, left, _ = verbs.make_parser(context).parse_args([word for word in rest if word != "..."])
    except click.BadOptionUsage:  # in a sentence, a flag may stand without its value, at the end
        assert not block.language and rest[-1] in {flag for option in verbs.params for flag in option.opts}, block
        return
    assert not left, f"{block}: edgevlm {verb} takes no {left}"
    for option in verbs.params:
        value = given.get(option.name or "")
        # N, OUT and the like stand for a value.
        if isinstance(value, str) and not value.isupper() and not isinstance(option.type, click.Path | click.File):
            option.type.convert(value, option, context)


def test_what_is_not_run_is_few_and_said_why(request: pytest.FixtureRequest) -> None:
    """-rP shows the list."""
    found = [block for page in PAGES for block in blocks(page) if block.language in RUN]
    counts = Counter(block.note or "run" for block in found)
    print(f"{counts['run']} blocks run, {counts['heavy']} in the heavy tests, {counts['not run']} cannot:")
    for block in found:
        if block.note:
            print(f"  {block} ({block.note}): {block.reason}")
            assert len(block.reason) > 10, f"{block}: why is it not run?"
    listed = Counter(b.language for page in PAGES for b in blocks(page) if b.language in LISTED)
    print("not checked:", ", ".join(f"{count} {language}" for language, count in listed.items()))


def test_the_readme_answers_in_three_lines_of_python() -> None:
    (block,) = (block for block in blocks(ROOT / "README.md") if block.language == "python")
    lines = [line for line in block.text.splitlines() if line]
    assert len(lines) == 3 and not block.note and ";" not in block.text


@pytest.mark.parametrize(
    "language, text",
    [
        ("sh", "edgevlm exprot default -o out"),
        ("sh", "edgevlm run bundle photo.jpg what --max-tokns 3"),
        ("sh", "edgevlm run bundle photo.jpg what --max-tokens many"),
        ("console", "$ ls && edgevlm export default --out"),
        ("sh", "make coffee"),
        ("sh", "python bench/nothing.py"),
        ("python", "print('a'"),
        ("json", '{"a": 1,}'),
        ("jsonl", '{"a": 1}\n{"b": }'),
        ("yaml", "a: [1"),
        ("toml", "a = = 1"),
        ("brainfuck", "+"),
    ],
)
def test_a_wrong_block_is_found(language: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n<!-- not run: it is wrong -->\n```{language}\n{text}\n```\n", encoding="utf-8")
    monkeypatch.setattr("documents.ROOT", tmp_path)
    (block,) = blocks(page)
    assert (block.text, block.note, block.reason) == (text, "not run", "it is wrong")
    with pytest.raises((AssertionError, click.ClickException, SyntaxError, ValueError, yaml.YAMLError)):
        check(block)


def test_a_reader_stops_where_a_page_is_wrong(
    shipped_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, shipped_bundle)
    reader = Reader(tmp_path, capsys, monkeypatch)
    reader.do(Block(ROOT / "page.md", 1, "console", "$ edgevlm run tiny photo.jpg 'How many balloons are there?'\n3"))
    wrong = {
        "console": "$ edgevlm run tiny photo.jpg 'How many balloons are there?'\n4",
        "sh": "edgevlm run tiny missing.jpg 'How many balloons are there?'",
        "python": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    }
    for language, text in wrong.items():
        with pytest.raises(AssertionError):
            reader.do(Block(ROOT / "page.md", 1, language, text))


def test_an_indented_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("documents.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("- an item\n\n    that goes on\n\nText:\n\n    edgevlm demo\n", encoding="utf-8")
    (block,) = blocks(page)
    with pytest.raises(AssertionError, match=r"page\.md:7: an indented block"):
        check(block)
