"""Output folders: what is replaced and what is kept, by whom and when, and what a killed run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.bundle.files import BUNDLE
from edgevlm.errors import EdgeVLMError
from edgevlm.io import folders
from edgevlm.io.claims import claimed, work_folder
from edgevlm.io.folders import Kind, replacing
from edgevlm.io.listing import CHECKPOINT, LISTING, TRAINED
from edgevlm.scenes.folder import SCENES, write_scenes

Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bundle(folder: Path, text: str = "old", schema: int = 2) -> Path:
    """A folder that is a bundle by its manifest."""
    (folder / "onnx").mkdir(parents=True)
    files = {"onnx/decoder.onnx": text, "prompt.json": "{}"}
    for name, content in files.items():
        (folder / name).write_text(content)
    listed = {name: {"size": len(content), "sha256": "0" * 64} for name, content in files.items()}
    head = {"schema": schema, "model": {}, "spec": {}, "recipe": {}, "targets": {}, "tools": {}, "gate": None}
    (folder / "manifest.json").write_text(json.dumps(head | {"files": listed}))
    return folder


def export(out: Path, force: bool = True, text: str = "new", meanwhile: Callable[[], object] = lambda: None) -> None:
    """As an export does it; `meanwhile` is what happens beside it."""
    with replacing(out, BUNDLE, force) as output:
        output.new.rmdir()
        bundle(output.new, text)
        meanwhile()
        output.publish()


def is_new(out: Path) -> bool:
    return (out / "onnx" / "decoder.onnx").read_text() == "new"


# --- what is replaced --------------------------------------------------------------------------------------


def test_a_bundle_is_replaced_with_force_alone(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(EdgeVLMError, match="already exists: choose another output folder, or replace it with --force"):
        export(out, force=False)
    assert not is_new(out)
    export(out)
    assert is_new(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_new_and_empty_folders_need_no_force(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/er"):
        export(tmp_path / name, force=False)
        assert is_new(tmp_path / name)


def test_bundles_of_an_earlier_schema_are_bundles(tmp_path: Path) -> None:
    export(bundle(tmp_path / "out", schema=1))
    assert is_new(tmp_path / "out")
    with pytest.raises(EdgeVLMError, match="not a bundle"):
        export(bundle(tmp_path / "later", schema=3))


EXTENSION = {"manifest_version": 3, "name": "My extension", "version": "1.0", "action": {"default_popup": "hello.html"}}
FOREIGN: list[tuple[Kind, str, object]] = [
    (BUNDLE, "manifest.json", EXTENSION),
    (BUNDLE, "manifest.json", {"short_name": "App", "icons": [], "start_url": ".", "display": "standalone"}),
    (BUNDLE, "manifest.json", {"schema": 2, "files": {}}),
    (BUNDLE, "manifest.json", "no JSON"),
    (BUNDLE, "manifest.json", []),
    (SCENES, "dataset.json", {"name": "mnist", "count": 60000}),
    (SCENES, "dataset.json", {"format": "edgevlm-scenes", "version": 1, "count": 10**9}),
    (CHECKPOINT, "config.json", {"model_type": "smolvlm"}),
    (CHECKPOINT, LISTING, {"edgevlm_listing": 1, "of": "trained model", "files": []}),
    (TRAINED, "training/plan.json", {"epochs": 3}),
    (TRAINED, LISTING, {"edgevlm_listing": 1, "of": "trained model", "files": [3]}),
]


@pytest.mark.parametrize(("kind", "marker", "content"), FOREIGN, ids=lambda value: str(value)[:30])
def test_other_programs_folders_are_never_replaced(kind: Kind, marker: str, content: object, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / marker).parent.mkdir(parents=True)
    (out / marker).write_text(content if isinstance(content, str) else json.dumps(content))
    (out / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    with (
        pytest.raises(EdgeVLMError, match=rf"not a {kind.name}, and --force replaces {kind.name}s only"),
        replacing(out, kind, force=True),
    ):
        raise AssertionError("work was begun")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "onnx/notes.txt", "a/b/c", ".hidden", "linked"])
def test_a_users_own_file_in_a_bundle_is_named_and_kept(name: str, tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name == "linked":
        (tmp_path / "elsewhere").mkdir()
        (out / name).symlink_to(tmp_path / "elsewhere")
    else:
        (out / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(EdgeVLMError, match=rf"holds files that are not of the bundle \('{name}'\).*move them away"):
        export(out)
    assert tree(tmp_path) == before


def test_what_file_managers_leave_is_no_users_file(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    (out / "onnx" / ".DS_Store").write_text("")
    export(out)
    assert is_new(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_manifest_that_lists_files_elsewhere_deletes_none_of_them(tmp_path: Path) -> None:
    out, precious = bundle(tmp_path / "out"), tmp_path / "precious"
    precious.write_text("mine")
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("../precious", str(precious), "onnx/../../precious"):
        manifest["files"][name] = {"size": 4, "sha256": ""}
    (out / "manifest.json").write_text(json.dumps(manifest))
    export(out)
    assert is_new(out) and precious.read_text() == "mine"


def test_links_files_mounts_and_the_current_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(bundle(tmp_path / "real"))
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(EdgeVLMError, match="exists and is no folder"):
            export(tmp_path / name)
    inside = tmp_path / "real" / "onnx"
    monkeypatch.chdir(inside)
    for out, words in ((Path("."), "is the current folder"), (Path(".."), "holds the current folder")):
        with pytest.raises(EdgeVLMError, match=words):
            export(out)
    with pytest.raises(EdgeVLMError, match="where a disk is mounted"):
        export(Path("/"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        export(tmp_path / "real")


def test_a_checkpoint_lists_its_files(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replacing(tmp_path / "out", CHECKPOINT, force=True) as output:
            (output.new / "config.json").write_text(text)
            (output.new / "training").mkdir()
            (output.new / "training" / "plan.json").write_text("{}")
            output.publish()
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert json.loads((tmp_path / "out" / LISTING).read_text())["files"] == ["config.json", "training/plan.json"]
    with pytest.raises(EdgeVLMError, match="not a trained model"), replacing(tmp_path / "out", TRAINED, force=True):
        pass


def test_scenes_with_a_users_picture_are_kept(tmp_path: Path) -> None:
    write_scenes(tmp_path / "out", "test", 0, 2, size=(64, 64))
    write_scenes(tmp_path / "out", "test", 1, 1, size=(64, 64), force=True)
    (tmp_path / "out" / "images" / "000001.png").write_bytes(b"mine")
    with pytest.raises(EdgeVLMError, match=r"not of the Scenes folder \('images/000001\.png'\)"):
        write_scenes(tmp_path / "out", "test", 0, 2, size=(64, 64), force=True)


# --- what appears while it runs ----------------------------------------------------------------------------


def test_what_appears_at_the_output_is_kept(tmp_path: Path) -> None:
    def users() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(EdgeVLMError, match=r"'.*out' appeared while this ran, and was kept\. .* lies in '.*out-2'"):
        export(tmp_path / "out", force=False, meanwhile=users)
    assert tree(tmp_path / "out") == {"mine": b"mine"} and is_new(tmp_path / "out-2")
    assert not work_folder(tmp_path / "out").exists()


def test_a_file_put_into_the_old_bundle_is_kept(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(EdgeVLMError, match=r"\('mine'\), which --force would delete.* lies in '.*out-2'"):
        export(out, meanwhile=lambda: (out / "mine").write_text("mine"))
    assert not is_new(out) and (out / "mine").exists() and is_new(tmp_path / "out-2")


def test_a_file_put_there_in_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the last look and the exchange: only what the manifest lists is deleted."""
    out, exchange = bundle(tmp_path / "out"), folders.exchange

    def late(one: Path, other: Path) -> bool:
        (other / "onnx" / "mine").write_text("mine")
        return exchange(one, other)

    monkeypatch.setattr(folders, "exchange", late)
    export(out)
    assert is_new(out) and tree(tmp_path / "out.old") == {"onnx/mine": b"mine"}
    assert "out.old' holds what was in 'out' and is not edgevlm's" in capsys.readouterr().err


def test_two_at_once_give_one_folder_and_one_sentence(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "edgevlm", "scenes", str(tmp_path / "out"), "--count", "30"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {each.args and each.communicate()[1]: each.returncode for each in both}
    assert sorted(said.values()) == [0, 2], said
    (refused,) = (text for text, code in said.items() if code == 2)
    assert refused.count("\n") == 1 and ("is writing" in refused or "already exists" in refused), refused
    assert len(list((tmp_path / "out" / "images").iterdir())) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_second_is_told_who_writes(tmp_path: Path) -> None:
    told = rf"Another edgevlm \(process {os.getpid()}\) is writing '.*out'"
    with claimed(tmp_path / "out"), pytest.raises(EdgeVLMError, match=told):
        export(tmp_path / "out")
    export(tmp_path / "out")


# --- the folder of a failed gate ---------------------------------------------------------------------------


def set_aside(out: Path) -> str:
    with replacing(out, BUNDLE) as output:
        output.new.rmdir()
        bundle(output.new, "new")
        return output.set_aside("out.failed").name


def test_a_failed_bundle_takes_the_place_of_a_failed_bundle_only(tmp_path: Path) -> None:
    out, failed = tmp_path / "out", tmp_path / "out.failed"
    assert set_aside(out) == "out.failed"
    bundle(tmp_path / "other").rename(tmp_path / "aside")
    (failed / "onnx" / "decoder.onnx").write_text("old")
    assert set_aside(out) == "out.failed" and is_new(failed)
    (failed / "notes").write_text("mine")
    before = tree(failed)
    assert [set_aside(out), set_aside(out)] == ["out.failed-2", "out.failed-3"]
    assert tree(failed) == before and is_new(tmp_path / "out.failed-3")


def test_a_users_failed_file_or_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.failed").write_text("mine")
    (tmp_path / "out.failed-2").mkdir()
    (tmp_path / "out.failed-2" / "mine").write_text("mine")
    assert set_aside(tmp_path / "out") == "out.failed-3"
    assert tree(tmp_path).keys() >= {"out.failed", "out.failed-2/mine", "out.failed-3/manifest.json"}


# --- systems without an exchange ---------------------------------------------------------------------------


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("no_exchange")
def test_without_an_exchange_the_folder_is_moved_aside_first(tmp_path: Path) -> None:
    export(bundle(tmp_path / "out"))
    assert is_new(tmp_path / "out") and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_what_fails_between_the_two_renames_puts_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = folders.rename_new, iter([error])

    def once(source: Path, target: Path) -> None:
        for failure in tries:
            raise failure
        real(source, target)

    monkeypatch.setattr(folders, "rename_new", once)
    out = bundle(tmp_path / "out")
    with pytest.raises(EdgeVLMError if isinstance(error, OSError) else KeyboardInterrupt):
        export(out)
    assert (out / "onnx" / "decoder.onnx").read_text() == "old" and not work_folder(out).exists()


def test_a_kill_between_the_two_renames_is_put_right_at_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "out", work_folder(tmp_path / "out")
    bundle(work / "old")
    bundle(work / "whole", "new")
    (work / "scratch").mkdir()
    (work / "lock").write_text("1")
    with pytest.raises(EdgeVLMError, match="already exists"):
        export(out, force=False)
    assert (out / "onnx" / "decoder.onnx").read_text() == "old" and not work.exists()
    assert capsys.readouterr().err.splitlines() == [
        "'out' is back: a stopped run had moved it aside.",
        "Removed what a stopped run had left of 'out': .out.edgevlm (old, scratch, whole).",
    ]


def test_a_half_removed_folder_does_not_come_back(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "out")
    (bundle(work / "gone") / "onnx" / "decoder.onnx").unlink()
    export(tmp_path / "out", force=False)
    assert is_new(tmp_path / "out") and not work.exists()


def test_what_a_user_put_into_a_leftover_is_kept(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "out")
    (bundle(work / "gone") / "mine").write_text("mine")
    export(tmp_path / "out")
    assert is_new(tmp_path / "out") and tree(tmp_path / "out.old") == {"mine": b"mine"}
