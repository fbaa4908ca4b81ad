"""Windows and macOS, wherever the tests run: what the code may not say, and commands under Windows' rules."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_house import ROOT, modules

from edgevlm.bundle.manifest import open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.array_folder import ArrayFolder
from edgevlm.io import full, program, renames
from edgevlm.io.apart import check_apart
from edgevlm.io.names import unportable
from edgevlm.io.text import shell_word

PICTURE = ROOT / "edgevlm" / "assets" / "pictures" / "scene-things.png"

# --- what the code may say ---------------------------------------------------------------------------------

# What a system other than Linux lacks, by who may ask for it. edgevlm/io/ looks first whether it is there.
POSIX_MODULES = {"fcntl", "grp", "pwd", "readline", "resource", "syslog", "termios", "tty", "msvcrt", "winreg"}
POSIX_NAMES = {
    "os": """
        fork forkpty getuid geteuid getgid setuid kill killpg setsid getpgid mkfifo chown chroot nice sync statvfs
        symlink link rename sched_getaffinity getloadavg register_at_fork uname wait waitpid O_CLOEXEC O_DIRECTORY
        O_NOFOLLOW O_NONBLOCK O_NOCTTY pread pwrite posix_fallocate posix_fadvise sendfile memfd_create getpgrp""",
    "signal": "SIGHUP SIGKILL SIGALRM SIGXCPU SIGUSR1 SIGUSR2 SIGSTOP SIGCONT alarm setitimer pthread_sigmask",
}
ALLOWED = {
    "edgevlm.bench.device_card": {"os.getloadavg"},  # behind hasattr
    "edgevlm.commands.chat": {"readline"},  # behind suppress(ImportError)
}
SYSTEM_PLACES = ("/proc/", "/tmp/", "/dev/", "/sys/", "/etc/")
PLACES_ALLOWED = {"edgevlm.bench.device_card", "edgevlm.export.survey"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(name, node) of each call of a function or a method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr, node
            elif isinstance(node.func, ast.Name):
                yield node.func.id, node


@cache
def shipped() -> list[tuple[str, ast.AST]]:
    return [(module, ast.parse(path.read_text(encoding="utf-8"))) for module, path in modules().items()]


def test_only_io_asks_for_what_one_system_has() -> None:
    found: dict[str, set[str]] = {}
    for module, tree in shipped():
        if module.startswith("edgevlm.io"):
            continue
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names} & POSIX_MODULES
            elif isinstance(node, ast.ImportFrom) and node.module:
                listed = {f"{node.module}.{alias.name}" for alias in node.names}
                names = {node.module} & POSIX_MODULES
                names |= {name for name in listed if name.split(".")[-1] in POSIX_NAMES.get(node.module, "").split()}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = (
                    {f"{node.value.id}.{node.attr}"}
                    if node.attr in POSIX_NAMES.get(node.value.id, "").split()
                    else set()
                )
            if names:
                found.setdefault(module, set()).update(names)
    assert found == ALLOWED


def test_no_place_of_one_system_is_named() -> None:
    found = set()
    for module, tree in shipped():
        if module.startswith("edgevlm.io"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(SYSTEM_PLACES):
                found.add((module, node.value))
    assert {module for module, _ in found} <= PLACES_ALLOWED, found


def test_text_has_an_encoding_and_written_text_one_form_of_line_ends() -> None:
    """Windows takes its code page for the one and "\\r\\n" for the other: files would not be the same bytes there."""
    wrong = []
    for module, tree in shipped():
        for name, node in calls(tree):
            named = {keyword.arg for keyword in node.keywords}
            words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            mode = next((word for word in words if isinstance(word, str) and set(word) <= set("rwaxbt+")), "")
            ours = isinstance(node.func, ast.Name)  # edgevlm.io.files.write_text, which does both
            opens = name in ("open", "fdopen") and (name == "fdopen" or mode or (ours and node.args))
            if opens and "b" not in mode and "opener" not in named and not _is_numbered(node):
                wrong += [(module, node.lineno, "encoding")] if "encoding" not in named else []
                wrong += (
                    [(module, node.lineno, "newline")] if set(mode) & set("wax") - {"x"} and not _fine(node) else []
                )
            if name == "read_text" and not ours and "encoding" not in named:
                wrong.append((module, node.lineno, "encoding"))
            if name == "write_text" and not ours and not {"encoding", "newline"} <= named:
                wrong.append((module, node.lineno, "encoding, newline"))
            if named & {"text", "universal_newlines"} and name in ("run", "Popen") and "encoding" not in named:
                wrong.append((module, node.lineno, "encoding of a child"))
    assert wrong == []


def _is_numbered(node: ast.Call) -> bool:
    """os.open, which gives a number."""
    return (
        isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "os"
        and node.func.attr == "open"
    )


def _fine(node: ast.Call) -> bool:
    """Written with an explicit newline, or to nobody's file: a pipe's other end, the system's bin."""
    text = ast.unparse(node)
    return "newline=" in text or "os.dup(" in text or "os.devnull" in text


def test_no_file_of_the_source_has_a_name_that_a_system_cannot_have() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no checkout")
    names = [name for name in done.stdout.decode().split("\0") if name]
    assert len(names) > 400 and unportable(names) is None
    assert max(map(len, names)) < 120, "Windows takes 260 characters of a path, the user's own folders among them"
    done = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, check=True)
    assert not [line for line in done.stdout.decode().splitlines() if line.startswith("120000")], "links"


# --- commands under Windows' rules -------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc")


def as_on_windows(place: Path, *commands: list[str], given: str = "") -> tuple[list[int], str, str]:
    """Exit codes, standard output and error of commands, in a process under the rules of windows_rules.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", ROOT / "tests" / "windows_rules.py", json.dumps(commands)],
        cwd=place, env=environment, input=given.encode("cp1252"), capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    out, err = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    assert done.returncode == 0, err
    return json.loads(out.splitlines()[-1]), out, err


@pytest.fixture
def place(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with a name that a careless program stumbles over: the model, a picture, and questions by Notepad."""
    home = tmp_path / "Ärger mit Leer 🎈"
    home.mkdir()
    shutil.copytree(tiny_checkpoint, home / "modèle")
    shutil.copyfile(PICTURE, home / "Foto é 🎈.png")
    shutil.copyfile(PICTURE, home / "Foto é.png")
    rows = [{"image": "Foto é 🎈.png", "question": "Was?"}, {"image": "Foto é.png", "question": "Wo?\r\nHier?"}]
    lines = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (home / "fragen.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{lines}\r\n".encode())
    (home / "form.json").write_bytes(b'{\r\n  "type": "boolean"\r\n}\r\n')
    return home


@linux
def test_an_export_there_gives_the_same_bytes(place: Path, tiny_bundle: Path) -> None:
    export = ["export", "modèle", "-o", "Bündel 🎈", "--quantize", "fp32", "--no-gate"]
    codes, _, err = as_on_windows(
        place, export, export, [*export, "--force"], ["verify", "Bündel 🎈", "--json", "prüf.json"],
        ["run", "Bündel 🎈", "Foto é 🎈.png", "Was ist das?", "--max-tokens", "3"],
        ["run", "Bündel 🎈", "--input", "fragen.jsonl", "--max-tokens", "3"],
    )  # fmt: skip
    assert codes == [0, 2, 0, 0, 0, 0], err
    assert "'B\xfcndel \\U0001f388' already exists: choose another output folder" in err
    here, there = open_bundle(tiny_bundle).manifest.files, open_bundle(place / "Bündel 🎈", "hash").manifest.files
    assert here == there
    for path in place.rglob("*"):
        if path.suffix in (".json", ".jinja") and path.name != "form.json":
            assert b"\r" not in path.read_bytes(), path
    left = {path.name for path in place.iterdir()}
    assert not {name for name in left if "edgevlm" in name or name.endswith((".part", ".old", ".failed"))}


@linux
@pytest.mark.heavy
def test_every_verb_there(place: Path) -> None:
    bundle, scenes = "Bündel 🎈", "Szenen 🎈"
    evaluate = [
        "eval",
        bundle,
        "--data",
        scenes,
        "--out",
        "antworten.jsonl",
        "--json",
        "wert.json",
        "--max-tokens",
        "2",
    ]
    row = {"image": "Foto é.png", "question": "Was?", "answer": "ein Hund"}
    (place / "muster.jsonl").write_bytes(f"{json.dumps(row)}\r\n".encode())
    commands: list[list[str]] = [
        ["export", "modèle", "-o", bundle],
        ["export", "modèle", "-o", "beide", "--target", "onnx,gguf", "--no-gate"],
        ["export", "modèle", "-o", "beide", "--target", "onnx,gguf", "--no-gate", "--force"],
        ["scenes", scenes, "--count", "2"],
        ["scenes", scenes, "--count", "3", "--force"],
        [*evaluate, "--limit", "2"],
        [*evaluate, "--limit", "3", "--force"],
        ["info", bundle],
        ["bench", bundle, "--json", "zeit.json", "--repeat", "1", "--tokens", "2"],
        ["report", bundle, "-o", "Bericht.html", "--questions", "2", "--repeat", "1"],
        ["run", bundle, "Foto é 🎈.png", "?", "--cache", "Lager 🎈", "--max-tokens", "2"],
        ["run", bundle, "Foto é 🎈.png", "?", "--schema", "form.json"],
        ["export", "modèle", "-o", "kalibriert", "--calibrate", "muster.jsonl", "--no-gate"],
        ["chat", bundle, "--max-tokens", "3"],
        ["demo"],
        ["demo"],
        ["info", "nirgends"],
    ]
    codes, out, err = as_on_windows(place, *commands, given='Was?\r\n/image "Foto é.png"\r\nWo?\r\n/quit\r\n')
    assert codes == [0] * (len(commands) - 1) + [2], err
    assert "Traceback" not in err and "(a picture of 320 x 240 for the next question)" in err
    assert any(line.strip() in ("true", "false") for line in out.splitlines())
    for name in ("antworten.jsonl", "wert.json", "zeit.json", "Bericht.html"):
        assert b"\r\n" not in (place / name).read_bytes(), name
    assert len(list((place / "Lager 🎈").glob("*.arrays"))) > 0


@linux
@pytest.mark.heavy
def test_a_server_there(tiny_bundle: Path, tmp_path: Path) -> None:
    """A question with a picture and features on disk; two servers get no one port."""
    shutil.copytree(tiny_bundle, tmp_path / "Bündel 🎈")
    code = """if True:
        import httpx, h11, prometheus_client, starlette.applications, starlette.responses, uvicorn.server
        import uvicorn.protocols.http.h11_impl
        from pathlib import Path
        import serving
        for name in [name for name in __import__("sys").modules if name.split(".")[0] in ("edgevlm", "serving")]:
            del __import__("sys").modules[name]
        import windows_rules
        windows_rules.install()
        from serving import ask, image, serving
        with serving(Path("Bündel 🎈"), cache_folder=Path("Lager 🎈")) as server:
            for _ in range(2):
                made = server.post(ask([image(), {"type": "text", "text": "Was?"}]))
                assert made.status_code == 200 and made.json()["usage"]["completion_tokens"], made.text
            assert server.client.get("/").text.startswith("<!doctype html>")
            assert "edgevlm_answers_total" in server.client.get("/metrics").text
        assert list(Path("Lager 🎈").glob("*.arrays"))
        """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@linux
def test_the_rules_bite(tmp_path: Path) -> None:
    """A simulation that forgives everything would prove nothing."""
    code = """if True:
        import os, shutil, sys, tempfile
        from pathlib import Path
        import windows_rules
        windows_rules.install()
        def refused(call, *words):
            try:
                call(*words)
            except (OSError, AssertionError, ImportError):
                return
            raise SystemExit(f"allowed: {call} {words}")
        Path("f").mkdir()
        with open("f/a", "wb") as stream:
            stream.write(b"x" * 5000)
            stream.flush()
            refused(os.rename, "f", "g")
            refused(os.unlink, "f/a")
            refused(shutil.rmtree, "f")
            refused(Path("f/a").rename, "f/b")
        import numpy
        mapped = numpy.memmap("f/a", "u1", "r")
        refused(Path("f").rename, "g")
        del mapped
        Path("f").rename("g")
        Path("h").mkdir()
        refused(os.rename, "g", "h")
        refused(os.open, "g", os.O_RDONLY)
        number = os.open("g/a", os.O_RDONLY)
        refused(os.fsync, number)
        os.close(number)
        refused(Path("G").touch)
        refused(Path("nul.txt").write_bytes, b"")
        refused(Path("l").symlink_to, "g")
        refused(open, "/proc/self/status")
        refused(__import__, "fcntl")
        assert not hasattr(os, "fork") and sys.platform == "win32"
        Path("t").write_text("a\\n", encoding="ascii")
        assert Path("t").read_bytes() == b"a\\r\\n"
        """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


# --- single rules ------------------------------------------------------------------------------------------


def test_a_folder_under_another_spelling_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows, where file systems ignore case and Python's paths of macOS do not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jsonl").touch()
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: real(Path(str(path).replace("DATA", "data"))))
    monkeypatch.setattr(os.path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
    with pytest.raises(EdgeVLMError, match="which --data reads"):
        check_apart([("--out", tmp_path / "DATA")], [("--data", tmp_path / "data")])
    with pytest.raises(EdgeVLMError, match=r"holds '.*', which --data reads"):
        check_apart([("--out", tmp_path / "DATA")], [("--data", tmp_path / "data" / "x.jsonl")])


def test_a_folder_in_use_stays_and_the_new_one_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows renames no folder of which another program has a file open."""
    from edgevlm.scenes.folder import read_questions, write_scenes

    out, real = tmp_path / "out", os.rename
    write_scenes(out, "test", 0, 1, size=(64, 64))
    before = (out / "questions.jsonl").read_bytes()

    def rename(source: Any, target: Any) -> None:
        if Path(source) == out:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(renames, "_call", lambda: None)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(EdgeVLMError, match=r"could not be replaced .* The new Scenes folder lies in '.*out-2'"):
        write_scenes(out, "test", 1, 2, size=(64, 64), force=True)
    assert (out / "questions.jsonl").read_bytes() == before and read_questions(tmp_path / "out-2").count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-2"]


def test_an_unknown_error_is_no_full_disk(tmp_path: Path) -> None:
    """Windows has words for few numbers of errors; those that it has none for all read "Unknown error"."""
    assert full._number("Unknown error") is None
    assert full._number("There is not enough space on the disk. (os error 112)") == errno.ENOSPC
    with pytest.raises(RuntimeError, match="Unknown error"), full.disk_errors(tmp_path, tmp_path):
        raise RuntimeError("Unknown error in the engine")


def test_a_reader_that_went_ends_the_program_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def gone() -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        raise OSError(errno.EINVAL, "Invalid argument")

    with capfd.disabled():
        monkeypatch.setattr(program, "drop", lambda *streams: None)
    assert program.run_program(gone) == program.PIPE
    assert capfd.readouterr().err == ""


def test_advice_is_quoted_for_the_shell_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert shell_word("my bundle") == "'my bundle'" and shell_word("bundle") == "bundle"
    monkeypatch.setattr(sys, "platform", "win32")
    assert shell_word("my bundle") == '"my bundle"' and shell_word("C:\\b\\x") == "C:\\b\\x"
    assert shell_word("a&b") == '"a&b"'


def test_features_that_another_process_reads_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Windows replaces and removes no file that is open."""
    folder, arrays = ArrayFolder(tmp_path / "kept"), {"features": np.ones((4, 8), np.float32)}
    folder.write(b"a", arrays)

    def denied(*words: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(os, "replace", denied)
    folder.write(b"a", arrays)
    assert folder.limit > 0 and not recwarn.list
    found = folder.read(b"a")
    assert found is not None and np.array_equal(found["features"], arrays["features"])
    monkeypatch.setattr(os, "unlink", denied)
    ArrayFolder(tmp_path / "kept", limit=1)
    folder.write(b"b", arrays)  # nothing of that name is there, so this is a folder that cannot be written to
    assert folder.limit == 0 and len(recwarn.list) == 1


def test_a_picture_dragged_into_the_terminal_of_windows() -> None:
    from edgevlm.commands.arguments import PATH

    assert all(PATH.match(word) for word in ("C:\\Users\\a b.png", "/home/a.png", "~/a.png", ".\\a.png", "../a.png"))
    assert not any(PATH.match(word) for word in ("a.png", "What is C:?", "12:/"))


# --- line ends ---------------------------------------------------------------------------------------------


def test_training_data_of_windows_are_the_same_records(tmp_path: Path) -> None:
    from edgevlm.train.records import Records

    shutil.copyfile(PICTURE, tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A\r\ndog."}]
    rows = [{"image": "a.png", "conversations": turns} for _ in range(3)]
    unix = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "unix.jsonl").write_bytes(unix)
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + unix.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    (tmp_path / "unix.json").write_bytes(json.dumps(rows, indent=1).encode())
    (tmp_path / "windows.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode().replace(b"\n", b"\r\n")
    )
    for kind in ("jsonl", "json"):
        found = [Records(tmp_path / f"{system}.{kind}") for system in ("unix", "windows")]
        assert len(found[0]) == len(found[1]) == 3
        assert [found[0][i].dialogues for i in range(3)] == [found[1][i].dialogues for i in range(3)]


def test_scenes_and_calibration_of_windows(tmp_path: Path) -> None:
    from edgevlm.export.calibrate.data import read_source
    from edgevlm.scenes.folder import read_questions, write_scenes

    write_scenes(tmp_path / "unix", "test", 0, 2, size=(64, 64))
    shutil.copytree(tmp_path / "unix", tmp_path / "windows")
    for path in (tmp_path / "windows").glob("*.json*"):
        mark = b"\xef\xbb\xbf" if path.suffix == ".jsonl" else b""
        path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    unix, windows = read_questions(tmp_path / "unix"), read_questions(tmp_path / "windows")
    assert unix.questions == windows.questions and not windows.problems
    shutil.copyfile(PICTURE, tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "question": "What?", "answer": "a dog"})
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{row}\r\n".encode())
    found = read_source(str(tmp_path / "c.jsonl"))
    assert [[example.question for example in examples] for examples in found.pictures] == [["What?", "What?"]]


def test_a_checkpoint_of_windows_is_the_same_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One that git has given "\\r\\n"."""
    from edgevlm.export.pipeline import ExportOptions, export_model

    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    changed = 0
    for path in (tmp_path / "model").iterdir():
        if path.suffix in (".json", ".jinja"):
            changed += b"\n" in path.read_bytes()
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert changed > 3
    files: list[dict[str, bytes]] = []
    for model in (tiny_checkpoint, tmp_path / "model"):
        out = tmp_path / f"out{len(files)}"
        export_model(ExportOptions(str(model), out, quantize="fp32", gate=False))
        names = open_bundle(out).manifest.files
        files.append({name: (out / name).read_bytes() for name in names})
    assert files[0].keys() == files[1].keys() and files[0]["preprocess.json"] == files[1]["preprocess.json"]
    for name, data in files[1].items():  # some are the checkpoint's own, as they are
        assert (data.replace(b"\r\n", b"\n") if name.endswith((".json", ".jinja")) else data) == files[0][name], name


def test_the_command_line_runs_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevlm.cli import edgevlm as program_of

    for name in ("HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH"):
        monkeypatch.delenv(name, raising=False)
    assert CliRunner().invoke(program_of, ["--version"]).exit_code == 0
