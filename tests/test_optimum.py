"""`optimum-cli export edgevlm`: the file in optimum's folder, and optimum's own program with it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest

from edgevlm.cli import edgevlm, main
from edgevlm.commands.optimum import TEXT
from edgevlm.commands.optimum_flags import REPLACED, REPLACED_SWITCHES

ROOT = Path(__file__).parent.parent
PLUGIN = "optimum/commands/register/register_edgevlm.py"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with the form of optimum 2: namespaces, and the program."""
    site = tmp_path / "site"
    (site / "optimum" / "commands").mkdir(parents=True)
    (site / "optimum" / "commands" / "optimum_cli.py").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        del sys.modules[name]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["optimum", *words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_file_comes_and_goes(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = site / PLUGIN
    assert run(capsys) == (0, f"{path}\n", "The file is not there; --install writes it.\n")
    assert run(capsys, "--remove")[0] == 0
    for _ in range(2):
        code, out, err = run(capsys, "--install")
        assert (code, out) == (0, f"{path}\n") and "optimum-cli export edgevlm --help" in err
        assert path.read_text() == TEXT
    assert run(capsys) == (0, f"{path}\n", "")
    other = path.with_name("register_export.py")
    other.write_text("# optimum-onnx's\n")
    assert run(capsys, "--remove")[0] == 0 and not path.exists() and other.exists()


def test_what_edgevlm_did_not_write_is_kept(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = site / PLUGIN
    path.parent.mkdir()
    path.write_text("# mine\n")
    for word in ("--install", "--remove"):
        code, _, err = run(capsys, word)
        assert code == 2 and "was not written by edgevlm, and is kept" in err and path.read_text() == "# mine\n"
    path.unlink()
    path.mkdir()
    assert run(capsys, "--remove")[0] == 2 and path.is_dir()
    assert "contradict each other" in run(capsys, "--install", "--remove")[2]


def test_a_folder_that_cannot_be_written(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert "cannot be changed (Permission denied): use an environment" in run(capsys, "--install")[2]


def test_without_optimum(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = run(capsys, "--install")
    assert (code, out) == (2, "") and "optimum is not installed beside edgevlm" in err


def test_the_page_has_each_flag() -> None:
    """A row each and no more; docs/make_cli_docs.py writes the second table, and test_docs.py holds that to it."""
    page = (ROOT / "docs" / "from-optimum.md").read_text(encoding="utf-8")
    rows = dict(line[2:-2].split(" | ", 1) for line in page.splitlines() if line.startswith("| `--"))
    ours = {f"`{flag}`": sentence for flag, sentence in {**REPLACED, **REPLACED_SWITCHES}.items()}
    assert ours.items() <= rows.items()
    for row in rows.keys() - ours.keys():  # flags that work
        options = {name for parameter in edgevlm.commands["export"].params for name in parameter.opts}
        assert row.split(" ")[0].strip("`,") in options, row


# --- the real one -----------------------------------------------------------------------------------------------------


def fetched(tmp_path: Path, package: str, *how: str) -> None:
    command = [sys.executable, "-m", "pip", *how, "--no-deps", "--quiet", "--disable-pip-version-check", package]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"pip could not fetch {package}: {done.stderr.strip()[-200:]}")


@pytest.mark.heavy
def test_optimum_cli_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With the newest optimum, in a folder of its own; torch and transformers are those of the tests."""
    site = tmp_path / "site"
    fetched(tmp_path, "optimum", "install", "--target", str(site))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    program = site / "bin" / "optimum-cli"
    before = call(program, "export", "--help").stdout
    assert "edgevlm" not in before
    installed = call("-m", "edgevlm", "optimum", "--install")
    assert installed.returncode == 0 and installed.stdout == f"{site / PLUGIN}\n", installed.stderr
    assert "Export a vision-language model to an EdgeVLM bundle." in call(program, "export", "--help").stdout
    assert call(program, "export", "edgevlm", "--help").stdout == call("-m", "edgevlm", "export", "--help").stdout
    out = tmp_path / "out"
    done = call(program, "export", "edgevlm", "-m", tiny_checkpoint, "--dtype", "fp16", "--no-gate", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert json.loads((out / "manifest.json").read_text())["recipe"]["quantize"] == "fp16"
    refused = call(program, "export", "edgevlm", "-m", tiny_checkpoint, "--opset", "17", tmp_path / "other")
    assert refused.returncode == 2 and refused.stderr == f"Error: {REPLACED['--opset']}\n"
    assert call(program, "env").returncode == 0
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "edgevlm.py").write_text("raise ImportError('edgevlm was uninstalled')\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(gone), str(site)])
    assert call(program, "env").returncode == 0, "the rest of the program works"
    assert "edgevlm was uninstalled" in call(program, "export", "edgevlm", "x").stderr
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site)])
    assert call("-m", "edgevlm", "optimum", "--remove").returncode == 0
    assert call(program, "export", "--help").stdout == before


@pytest.mark.heavy
def test_every_flag_of_optimums_export_is_taken_or_answered(tmp_path: Path) -> None:
    """Read from the source of the newest optimum-onnx, which needs a transformers of its own and is not run."""
    fetched(tmp_path, "optimum-onnx", "download")
    (wheel,) = tmp_path.glob("*.whl")
    source = zipfile.ZipFile(wheel).read("optimum/commands/export/onnx.py").decode()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    flags = {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("-")
    }
    command = edgevlm.commands["export"]
    context = click.Context(command)
    known = {name for parameter in command.get_params(context) for name in parameter.opts}
    assert len(flags) > 25 and flags <= known, flags - known
