"""Commands and the files that they write: nothing of a user's is lost, whatever is there and whoever stops them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli import main
from edgevlm.io.claims import claimed, work_folder
from edgevlm.scenes.folder import write_scenes

PICTURE = Path(__file__).parent.parent / "edgevlm" / "assets" / "pictures" / "scene-things.png"


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Any:
    """told(code, *words): run one command line; its standard error, after a look at its exit code."""

    def run(code: int, *words: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        err = capfd.readouterr().err
        assert done.value.code == code, err
        return err

    return run


@pytest.fixture
def place(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a bundle B, and Scenes D with a question for it."""
    shutil.copytree(tiny_bundle, tmp_path / "B")
    write_scenes(tmp_path / "D", "test", 0, 1, size=(64, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CLASHES = {
    "eval --out X --json X": "--out and --json are both 'X'",
    "eval --out X --json ./X": "--out and --json are both 'X'",
    "eval --data D --out D/questions.jsonl --force": "a file of 'D', which --data reads",
    "eval --data D --json D/images/000000.png --force": "a file of 'D', which --data reads",
    "eval --data D/questions.jsonl --suite jsonl --out D/questions.jsonl --force": "which --data reads",
    "eval --json B/manifest.json --force": "a file of 'B', which BUNDLE reads",
    "eval --out B/tokenizer.json --force --resume": "a file of 'B', which BUNDLE reads",
    "verify --json B/onnx/decoder_model_merged.onnx_data --force": "a file of 'B', which BUNDLE reads",
    "verify --answers D --json D/dataset.json --force": "a file of 'D', which --answers reads",
    "bench --json B/weights.json --force": "a file of 'B', which BUNDLE reads",
    "bench --vs C@eager --json C/weights.json --force": "a file of 'B', which BUNDLE reads",
    "bench --picture p.png --json p.png --force": "which --picture reads",
    "report -o B/config.json --force": "a file of 'B', which BUNDLE reads",
    "report --eval s.json -o s.json --force": "which --eval reads",
    "report --bench s.json -o l.json --force": "which --bench reads",
    "report --picture p.png -o p.png --force": "which --picture reads",
}


@pytest.mark.parametrize("words", CLASHES)
def test_an_output_that_is_an_input_is_refused(words: str, told: Any, place: Path) -> None:
    (place / "C").symlink_to("B")
    (place / "s.json").write_text("{}")
    (place / "l.json").symlink_to("s.json")
    shutil.copyfile(PICTURE, place / "p.png")
    before = tree(place)
    verb, *rest = words.split()
    err = told(2, verb, "B", *rest)
    assert err.startswith("Error: ") and CLASHES[words] in err and err.count("\n") == 1, err
    assert tree(place) == before


def test_an_export_over_what_it_reads_is_refused(told: Any, place: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, place / "M")
    shutil.copytree(tiny_checkpoint, place / "B" / "M")
    before = tree(place)
    for model, out, words in (("M", "M", "is 'M', which MODEL"), ("B/M", "B", "'B' holds 'B/M', which MODEL")):
        assert f"--out {words}" in told(2, "export", model, "-o", out, "--force")
    for name in ("--adapter", "--calibrate", "--answers"):
        assert f"which {name} reads" in told(2, "export", "default", "-o", "B", "--force", name, "./B")
    assert tree(place) == before


def test_a_browser_extension_and_a_web_app_are_kept(told: Any, place: Path) -> None:
    for name, manifest in (("extension", {"manifest_version": 3}), ("app", {"start_url": "."})):
        (place / name).mkdir()
        (place / name / "manifest.json").write_text(json.dumps(manifest))
        (place / name / "dataset.json").write_text("{}")
    before = tree(place)
    for name in ("extension", "app"):
        assert "is not a bundle, and --force replaces bundles only" in told(2, "export", "default", name, "--force")
        assert "is not a Scenes folder" in told(2, "scenes", name, "--force")
    assert tree(place) == before


def test_two_exports_to_one_folder(told: Any, place: Path, tiny_checkpoint: Path) -> None:
    with claimed(place / "out"):
        assert "Another edgevlm (process" in told(2, "export", tiny_checkpoint, "-o", "out")
    assert not (place / "out").exists()


# --- answers -----------------------------------------------------------------------------------------------


def test_answers_of_an_earlier_run_stay_until_the_new_ones_are_all_there(told: Any, place: Path) -> None:
    told(0, "eval", "B", "--data", "D", "--out", "a.jsonl", "--max-tokens", "1", "--limit", "3")
    first = (place / "a.jsonl").read_bytes()
    (place / "D" / "images" / "000000.png").write_bytes(b"no picture")
    words = ("eval", "B", "--data", "D", "--out", "a.jsonl", "--max-tokens", "1", "--limit", "3")
    assert "already exists" in told(2, *words)
    assert "000000.png" in told(2, *words, "--force")
    assert (place / "a.jsonl").read_bytes() == first and not (place / "a.jsonl.part").exists()


def test_a_stopped_runs_answers_are_gone_on_with_or_begun_again(told: Any, place: Path) -> None:
    words = ("eval", "B", "--data", "D", "--out", "a.jsonl", "--max-tokens", "1", "--limit", "3")
    told(0, *words)
    whole = (place / "a.jsonl").read_bytes()
    (place / "a.jsonl").unlink()
    (place / "a.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"id"')
    err = told(2, *words)
    assert "'" + str(place / "a.jsonl.part") + "' has the answers of a run that was stopped" in err
    told(0, *words, "--resume")
    assert (place / "a.jsonl").read_bytes() == whole and not (place / "a.jsonl.part").exists()
    (place / "a.jsonl.part").write_text("my own notes\n")
    assert "is not what an eval writes: move it away" in told(2, *words, "--force")
    assert (place / "a.jsonl.part").read_text() == "my own notes\n"
    (place / "a.jsonl.part").write_bytes(whole[:9])  # killed in its first line
    for more in ("--force", "--resume"):
        told(0, *words, more)
        assert (place / "a.jsonl").read_bytes() == whole and not (place / "a.jsonl.part").exists()


# --- signals -----------------------------------------------------------------------------------------------


def stopped(place: Path, sign: int, before: str = "") -> tuple[int, str]:
    """The exit code and the last words of a command that is sent a signal in the midst of its work."""
    code = f"{before}\nfrom edgevlm.cli import main; main(['scenes', 'out', '--count', '100000'])"
    run = subprocess.Popen([sys.executable, "-c", code], cwd=place, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(work_folder(place / "out").glob("new/images/*.png")) and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(sign)
    try:
        return run.wait(2 if before else 60), run.communicate()[1]
    except subprocess.TimeoutExpired:
        run.kill()
        return run.wait(), run.communicate()[1]


@pytest.mark.parametrize(
    ("sign", "code", "words"),
    [
        (signal.SIGTERM, 143, "Terminated.\n"),
        pytest.param(signal.SIGHUP, 129, "Hung up.\n", marks=pytest.mark.heavy),
        (signal.SIGINT, 130, "Interrupted.\n"),
    ],
)
def test_a_signal_cleans_up(sign: int, code: int, words: str, tmp_path: Path) -> None:
    assert stopped(tmp_path, sign) == (code, words)
    assert not list(tmp_path.iterdir())


def test_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert stopped(tmp_path, signal.SIGHUP, before=ignore) == (-signal.SIGKILL, "")
