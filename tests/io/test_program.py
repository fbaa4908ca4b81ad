"""How a program ends: sentences, exit codes, and streams that are closed, broken or in an old encoding."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.io.program import run_module, run_program

ROOT = Path(__file__).parent.parent.parent


class Panic(BaseException):
    """As the Rust packages' panics, no Exception."""


def raising(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (EdgeVLMError("It is wrong: mend it."), 2, "Error: It is wrong: mend it.\n"),
        (EdgeVLMError("'a\x1b[2J\nGate passed.' is wrong."), 2, "Error: 'a\\x1b[2J\\nGate passed.' is wrong.\n"),
        (EdgeVLMError("'\udcff' is wrong."), 2, "Error: '\\udcff' is wrong.\n"),
        (GateError("The gate failed: try int8."), 1, "Error: The gate failed: try int8.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (MemoryError(), 2, "Error: The machine has no memory left for this: close other programs, "),
        (OSError(errno.ENOSPC, "", "/a", None, "/b"), 2, "Error: The disk is full at '/b': free some space"),
        (PermissionError(errno.EACCES, "", b"/\xff"), 2, "Error: Permission denied at '/\\udcff': choose a place"),
        (ModuleNotFoundError("", name="jinja2.ext"), 2, "Error: This needs the package jinja2"),
        (ModuleNotFoundError("", name="colour"), 70, "Traceback (most recent call last):\n"),
        (FileNotFoundError(errno.ENOENT, "", "/there"), 70, "Traceback (most recent call last):\n"),
        (ZeroDivisionError("\x1b[2J"), 70, "Traceback (most recent call last):\n"),
        (Panic("in Rust"), 70, "Traceback (most recent call last):\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_a_sentence_and_a_code(
    error: BaseException, code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program(raising(error)) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(text) and "\x1b" not in err
    if code == 70:
        assert "This is a fault of edgevlm " in err.splitlines()[-1]
    else:
        assert err.count("\n") == 1


def test_a_result_and_a_code_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: None) == 0 and run_program(lambda: 5) == 5
    assert run_module(lambda: Path("out")) == 0 and run_module(lambda: None) == 0
    assert capsys.readouterr() == ("out\n", "")
    with pytest.raises(SystemExit):  # argparse's
        run_program(raising(SystemExit(2)))


# --- in a process of its own -------------------------------------------------------------------------------


def process(command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A shell command, in which $E is edgevlm."""
    environment = {**os.environ, "E": f"{sys.executable} -m edgevlm", "PYTHONPATH": str(ROOT)}
    environment |= options.pop("env", {})
    return subprocess.run(["sh", "-c", command], capture_output=True, env=environment, **options)


CLOSED = b"Error: Standard output is closed: send it somewhere, such as > answer.txt or > /dev/null.\n"


def test_closed_streams(tmp_path: Path) -> None:
    done = process("$E info --devices >&-")
    assert (done.returncode, done.stderr) == (2, CLOSED)
    done = process("$E scenes place --count 1 2>&- <&-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    # Standard error's number must not go to a file that is being written.
    assert b"1 pictures" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_reader_of_messages_that_goes_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "edgevlm", "run", "nowhere", "q"], cwd=ROOT, stderr=writing)
    os.close(writing)
    assert done.returncode == 2


def test_a_deleted_current_folder(tmp_path: Path) -> None:
    done = process(f"mkdir gone && cd gone && rmdir ../gone && $E scenes {tmp_path}/../x/../s --count 1", cwd=tmp_path)
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr, done.stderr
    done = process("mkdir gone && cd gone && rmdir ../gone && $E export default -o here", cwd=tmp_path)
    sentence = b"Error: The current folder was deleted: change to another one and run the command again.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", sentence)


OLD = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", OLD)
def test_names_in_an_old_encoding(name: str, tmp_path: Path) -> None:
    """One that the encoding lacks is escaped, in results and in messages."""
    environment = {**OLD[name], "O": "模型"}
    done = process("$E export default --no-gate -o $O", cwd=tmp_path, env=environment)
    if name == "cp1252":  # of the streams; files have names in UTF-8
        assert (done.returncode, done.stdout) == (0, b"\\u6a21\\u578b\n"), done.stderr
    else:
        assert done.returncode == 2 and done.stderr.endswith(
            b" is no text in ascii, so that engines cannot open it: choose another name, or a UTF-8 locale.\n"
        )
    done = process("$E run $O $O.png q", cwd=tmp_path, env=environment)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"Error: There is no picture '") and done.stderr.count(b"\n") == 1


@pytest.mark.heavy
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    script = "mv m $O; $E run $O q; $E export default -o $O/b --no-gate; $E scenes $O/s --count 1; ls $O"
    done = process(script, cwd=tmp_path, env={"O": b"m\xff"})
    lines = done.stderr.decode().splitlines()
    assert done.stdout == b"s\n"
    refused = r"Error: The name of '.*/m\\udcff(/b)?' is no text in utf-8, so that engines cannot open it: choose.*"
    assert all(re.fullmatch(refused, line) for line in lines[:2])
    assert lines[2].startswith("1 pictures and ") and lines[2].endswith(" in m\\udcff/s")


def test_an_interrupt_while_the_program_is_being_imported() -> None:
    code = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["edgevlm", "--version"]
runpy.run_module("edgevlm", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"Interrupted.\n")


def test_the_installed_program_begins_there_too() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"edgevlm": "edgevlm.__main__:main"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
