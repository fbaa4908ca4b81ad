"""`edgevlm chat` and `edgevlm run --input`: many questions in one start, as a user meets them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.cli import main

ROOT = Path(__file__).parent.parent
Done = tuple[int, str, str]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run one command line in this process, with text on standard input."""

    def run(*args: object, given: str | bytes = "") -> Done:
        content = given if isinstance(given, bytes) else given.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return int(exit_info.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a folder")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "below").mkdir()
    return folder


SHORT = ("--tiles", 1, "--max-tokens", 4, "--threads", 1)


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- edgevlm run --input -----------------------------------------------------------------------------------


def test_each_line_gets_its_answer_or_its_error(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    picture = str(pictures / "0.png")
    lines: list[Any] = [
        {"id": "a", "image": picture, "question": "What is this?"},
        {"images": [picture, str(pictures / "1.png")], "question": "Which is larger?", "options": {"max_tokens": 2}},
        {"id": 7, "question": "What?"},
        {"id": None, "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}],
         "image": picture},
        {"id": "no file", "image": "none.png", "question": "What?"},
        {"id": "typo", "qestion": "What?"},
        {"id": "both", "question": "What?", "image": picture, "images": [picture]},
        {"id": "numbers", "question": "What?", "images": [5]},
        {"id": "no list", "question": "What?", "images": picture},
        {"id": "nothing asked", "image": picture},
        {"id": "empty", "question": "  "},
        {"id": "option", "question": "What?", "options": {"tokens": 2}},
        {"id": "value", "question": "What?", "options": {"max_tokens": 0}},
        {"id": "list", "question": "What?", "options": [1]},
        {"id": "long", "question": "word " * 3000},
        {"id": {"any": ["value"]}, "question": "What?"},
        [1, 2],
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, lines)) + '\n\n  \nno json\n{"a": 1, "a": 2}\n' + '{"question": "\\ud800"}\n'
    (tmp_path / "in.jsonl").write_text(text)
    code, out, err = cli("run", tiny_bundle, "--input", tmp_path / "in.jsonl", *SHORT)
    found = rows(out)
    assert code == 0 and len(found) == len(lines) + 3
    assert err == '15 of 20 questions had no answer: see their lines\' "error".\n'
    assert [row["id"] for row in found[:4]] == ["a", 2, 7, 4]
    assert [row["id"] for row in found[4:16]] == [line["id"] for line in lines[4:16]]
    assert [row["id"] for row in found[16:]] == [17, 20, 21, 22]
    answered = [row for row in found if "answer" in row]
    assert [row["id"] for row in answered] == ["a", 2, 7, 4, {"any": ["value"]}]
    assert found[1]["answer_tokens"] == 2 and found[1]["image_tokens"] == 2 * found[0]["image_tokens"]
    for row in found:
        assert set(row) == {"id", "error"} or {"answer", "prompt_tokens", "finish_reason"} <= set(row)
        if "error" in row:
            assert row["error"].endswith(".") and len(row["error"]) < 1000
    said = {row["id"]: row["error"] for row in found if "error" in row and isinstance(row["id"], str)}
    assert said["typo"] == "The key 'qestion' is unknown: use id, question, messages, image, images, options."
    assert said["no file"].startswith("The image 'none.png' does not exist")
    assert "2048" in said["long"]

    code, out, _ = cli("run", tiny_bundle, picture, "What is this?", *SHORT, "--json")
    assert code == 0 and json.loads(out)["answer"] == found[0]["answer"]
    assert set(json.loads(out)) | {"id"} == set(found[0])


def test_lines_from_a_pipe_are_answered_as_they_come(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "edgevlm", "run", tiny_bundle, "--input", "-", *SHORT]
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for number in range(3):
            child.stdin.write(json.dumps({"id": number, "question": f"{number}?"}) + "\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["id"] == number  # before the next line is written
        child.stdin.close()
        assert child.wait(60) == 0


def test_a_folder_of_pictures_and_one_question(
    tiny_bundle: Path, pictures: Path, cli: Callable[..., Done], tmp_path: Path
) -> None:
    code, out, err = cli("run", tiny_bundle, "--input", pictures, "What is this?", *SHORT)
    assert code == 0 and err == ""
    assert [row["id"] for row in rows(out)] == [str(pictures / f"{number}.png") for number in range(3)]
    assert all("answer" in row for row in rows(out))
    given = f'{{"image": "{pictures}/0.png"}}\n{{"image": "{pictures}/0.png", "question": "How?"}}\n'
    code, out, _ = cli("run", tiny_bundle, "--input", "-", "What is this?", *SHORT, given=given)
    assert code == 0 and rows(out)[1]["reused_tokens"] > 0
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", "-"):
        code, out, err = cli("run", tiny_bundle, "--input", place, "What?", *SHORT)
        assert (code, out) == (2, "") and re.search("holds no (question|picture)", err)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--input", "nosuch.jsonl"], "There is no file 'nosuch.jsonl'"),
        (["--input", "-", "--draw", "x.png"], "--draw is for one question, and --input has many"),
        (["--input", "-", "--timings"], "--timings is for one question"),
        (["--input", "-", "a.png", "What?"], "With --input, pictures are named in its lines"),
        (["--input", "/dev/zero"], "is a device, expected a regular file"),
    ],
)
def test_what_does_not_go_together(
    words: list[str], sentence: str, tiny_bundle: Path, cli: Callable[..., Done]
) -> None:
    code, out, err = cli("run", tiny_bundle, *words)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


def test_bytes_that_are_no_text_and_lines_without_end(tiny_bundle: Path, cli: Callable[..., Done]) -> None:
    long = b'{"question": "' + b"x" * (17 << 20) + b'"}'
    lines = [b'\xff\xfe{"question": 1}', b"[" * 100_000, long, b'{"id": "last", "question": "What?"}']
    code, out, _ = cli("run", tiny_bundle, "--input", "-", *SHORT, given=b"\n".join(lines))
    found = rows(out)
    assert code == 0 and ["error" in row for row in found] == [True, True, True, False]
    assert [row["id"] for row in found] == [1, 2, 3, "last"] and max(map(len, out.splitlines())) < 1200


def test_features_and_states_are_kept_in_a_folder(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    words = ("run", tiny_bundle, pictures / "0.png", "What is this?", *SHORT, "--cache", tmp_path / "kept")
    first, second = cli(*words), cli(*words)
    assert first == second and first[0] == 0 and len(list((tmp_path / "kept").iterdir())) == 3
    (tmp_path / "file").write_text("")
    code, _, err = cli(*words[:-1], tmp_path / "file")
    assert code == 2 and "cannot be used" in err


# --- edgevlm chat ------------------------------------------------------------------------------------------


def test_a_conversation_from_a_pipe(tiny_bundle: Path, pictures: Path, cli: Callable[..., Done]) -> None:
    shutil.copy(pictures / "0.png", pictures / "with blanks.png")
    lines = [
        f"/image {pictures}/0.png", "What is this?", "", "And its colour?", "/undo", "And its colour?",
        "/clear", f'/image "{pictures}/with blanks.png"', "What is this?", "/quit", "never asked",
    ]  # fmt: skip
    code, out, err = cli("chat", tiny_bundle, *SHORT, given="\n".join(lines))
    assert code == 0, err
    said = out.splitlines()
    assert len(said) == 4 and said[1] == said[2] and said[0] == said[3]
    assert "(a picture of 60 x 40 for the next question)" in err and "(taken back: And its colour?)" in err
    assert "(a new conversation)" in err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/image", "/image needs a picture: write its path behind it."),
        ("/image none.png", "The image 'none.png' does not exist"),
        ("/undo", "There is no question to take back"),
        ("/imgae x.png", "There is no command '/imgae': use /image, /undo, /clear, /help, /quit."),
        ("word " * 3000, "the model's context holds 2048"),
    ],
)
def test_a_mistake_in_a_pipe_ends_the_conversation(
    line: str, sentence: str, tiny_bundle: Path, cli: Callable[..., Done]
) -> None:
    code, out, err = cli("chat", tiny_bundle, *SHORT, given=f"{line}\nWhat?\n")
    assert (code, out) == (2, "") and err.startswith("Error: ") and sentence in err


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *args: object) -> None:
        self._end, other = pty.openpty()
        command = [sys.executable, "-m", "edgevlm", "chat", *map(str, args)]
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.child = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, cwd=ROOT, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(other)
        self.shown = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown up to `text`, which is then left out of what follows."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._end], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._end, 65536).decode("utf-8", "replace")
        found, _, self.shown = self.shown.partition(text)
        return found

    def sees(self, text: str) -> bool:
        """Whether it is shown by now."""
        while select.select([self._end], [], [], 0)[0]:
            self.shown += os.read(self._end, 65536).decode("utf-8", "replace")
        return text in self.shown

    def stop_answer(self) -> None:
        """Ctrl-C as soon as a word of it is shown: a fast machine is through within half a second."""
        if not self.shown:
            ready, _, _ = select.select([self._end], [], [], 60)
            assert ready, "no answer begins"
        self.type("\x03")

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(10)
        os.close(self._end)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tiny_bundle: Path, tmp_path: Path) -> Iterator[Terminal]:
    """With a model that never ends an answer."""
    endless = Path(shutil.copytree(tiny_bundle, tmp_path / "endless"))
    prompt = json.loads((endless / "prompt.json").read_text())
    prompt["stop_ids"] = [prompt["image_token_id"]]
    content = json.dumps(prompt).encode()
    (endless / "prompt.json").write_bytes(content)
    manifest = json.loads((endless / "manifest.json").read_text())
    manifest["files"]["prompt.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (endless / "manifest.json").write_text(json.dumps(manifest))
    made = Terminal(endless, "--max-tokens", 1900, "--threads", 1, "--temperature", 1.0)
    yield made
    made.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.until("> ")
    for _ in range(30):  # Python's readline misses a signal between its prompt and its waiting
        terminal.type("\x03")
        time.sleep(0.3)
        if terminal.sees("(/quit leaves)"):
            break
    terminal.until("(/quit leaves)")
    terminal.type("\n")
    terminal.until("\n> ")
    for _ in range(3):
        terminal.type("Tell me everything.\n")
        terminal.until("everything.\r\n")
        terminal.stop_answer()
        terminal.until("(stopped: this question is not part of the conversation)\r\n> ")
    terminal.type("/imgae x\n")
    terminal.until("Error: There is no command '/imgae'")
    terminal.until("\n> ")
    terminal.type("\x1b[A\x1b[A\n")  # two lines up in the history
    terminal.until("everything.\r\n")
    terminal.stop_answer()
    terminal.until("(stopped: this question is not part of the conversation)\r\n> ")
    terminal.type("/quit\n")
    assert terminal.child.wait(30) == 0
