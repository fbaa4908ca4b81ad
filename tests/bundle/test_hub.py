"""Bundles of the Hub, by huggingface_hub's own client from a server here: what is fetched, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Hub, standing_in

import edgevlm
from edgevlm.bundle.hub import pull, resolve_bundle
from edgevlm.bundle.manifest import MANIFEST, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.sampling import GenerateOptions

ROOT = Path(__file__).parents[2]
TINY = {"size": 1, "sha256": "0" * 64}
LARGE = "onnx/decoder_model_merged.onnx_data"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub with the bundle someone/tiny, a card and a stranger's file beside it. Requests do not wait for others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with standing_in(monkeypatch, str(tmp_path / "cache")) as found:
        found.add("someone/tiny", {**files_of(tiny_bundle), "README.md": b"# tiny\n", "run.sh": b"rm -r /\n"})
        found.add("someone/model", {"config.json": b"{}", "model.safetensors": b"x"})
        yield found


def test_load_takes_a_hub_id(hub: Hub) -> None:
    with edgevlm.load("someone/tiny", threads=1) as model:
        assert model.answer("What is this?", options=GenerateOptions(max_tokens=2)).text is not None
    with pytest.raises(EdgeVLMError, match="is a model, not a bundle"):
        edgevlm.load("someone/model")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"cache"}


# --- from the cache ---------------------------------------------------------------------------------------------------


def test_a_bundle_is_fetched_once_and_opened_from_the_cache(
    hub: Hub, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = resolve_bundle("someone/tiny")
    said = capsys.readouterr().err
    manifest = open_bundle(folder, "hash").manifest
    total = sum(info.size for info in manifest.files.values())
    assert f"Downloading 'someone/tiny' ({hub.repositories['someone/tiny'].commit('main')[:8]}): " in said
    assert f"{len(manifest.files)} files, {total / 1e6:.1f} MB." in said
    assert files_of(folder) == files_of(tiny_bundle), "and neither the card nor what else lies there"
    hub.asked.clear()
    assert resolve_bundle("someone/tiny") == folder
    assert not [line for line in hub.asked if line.startswith("GET /someone/tiny/resolve")]
    assert "Downloading" not in capsys.readouterr().err


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_without_a_network_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    if revision == "commit":
        revision = hub.repositories["someone/tiny"].commit("main")
    folder = resolve_bundle("someone/tiny", revision)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert resolve_bundle("someone/tiny", revision) == folder
    said = refused(lambda: resolve_bundle("someone/other"))
    assert "'someone/other' is neither a local folder nor whole in the cache, and the Hub could not be reached" in said


def test_half_of_a_bundle_in_the_cache_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_bundle("someone/tiny")
    (folder / LARGE).unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "nor whole in the cache" in refused(lambda: resolve_bundle("someone/tiny"))


def test_a_commit_in_the_cache_needs_no_question(hub: Hub) -> None:
    commit = hub.repositories["someone/tiny"].commit("main")
    folder = resolve_bundle("someone/tiny", commit)
    hub.asked.clear()
    assert resolve_bundle("someone/tiny", commit) == folder and not hub.asked


def test_a_branch_that_moved_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    first = resolve_bundle("someone/tiny", cache_dir=tmp_path / "own")
    repository = hub.repositories["someone/tiny"]
    repository.branches["main"].append(dict(repository.files))
    second = resolve_bundle("someone/tiny", cache_dir=tmp_path / "own")
    assert first != second and files_of(first) == files_of(second)
    assert first.is_relative_to(tmp_path / "own")


def test_a_folder_that_is_there_is_itself(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "someone" / "tiny")
    assert resolve_bundle("someone/tiny") == Path("someone/tiny") and not hub.asked
    assert resolve_bundle(tiny_bundle) == tiny_bundle and resolve_bundle("nowhere") == Path("nowhere")
    assert "A revision is of bundles of the Hub" in refused(lambda: resolve_bundle(tiny_bundle, "v1"))
    assert "The bundle is a int" in refused(lambda: resolve_bundle(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("repo", "revision", "sentence"),
    [
        ("someone/nothing", None, "'someone/nothing', which is no folder here, is not on the Hub, or is private"),
        ("someone/tiny", "v9", "'someone/tiny' at revision 'v9', which is no folder here, does not exist on the Hub"),
        ("someone/model", None, "'someone/model' is a model, not a bundle: export it first with `edgevlm export"),
        ("someone/na--me", None, "is no id that the Hub has"),
        ("someone/" + "n" * 150, None, "is no id that the Hub has"),
    ],
)
def test_what_is_no_bundle_of_the_hub(hub: Hub, repo: str, revision: str | None, sentence: str) -> None:
    assert sentence in refused(lambda: resolve_bundle(repo, revision))


def test_a_private_bundle_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "is not on the Hub, or is private" in refused(lambda: resolve_bundle("someone/tiny"))


def test_a_gated_bundle_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("someone/tiny")
    for call in (lambda: resolve_bundle("someone/tiny"), lambda: pull("someone/tiny", tmp_path / "out")):
        assert "'someone/tiny' is gated: accept its terms on its Hub page" in refused(call)


def test_an_empty_repository_is_no_bundle(hub: Hub) -> None:
    hub.add("someone/empty", {})
    assert "is no bundle: it has no manifest.json" in refused(lambda: resolve_bundle("someone/empty"))


def test_damage_on_the_way_is_found_and_not_kept(hub: Hub) -> None:
    data = hub.repositories["someone/tiny"].files[LARGE]
    hub.spoil[LARGE] = data[:-1] + bytes([data[-1] ^ 1])
    assert f"'{LARGE}' of 'someone/tiny' is not what its manifest says" in refused(
        lambda: resolve_bundle("someone/tiny")
    )
    hub.spoil.clear()
    open_bundle(resolve_bundle("someone/tiny"), "hash")


# --- bundles of strangers ---------------------------------------------------------------------------------------------


def edited(hub: Hub, change: Callable[[dict[str, Any]], None]) -> None:
    files = hub.repositories["someone/tiny"].files
    data = json.loads(files[MANIFEST])
    change(data)
    files[MANIFEST] = json.dumps(data).encode()


def move(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"].pop(LARGE)

    return change


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\\b", "C:x", ""])
def test_a_name_that_leaves_the_folder_is_refused_before_any_other_file_comes(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    edited(hub, move(name))
    hub.repositories["someone/tiny"].files[name or "x"] = b"x"
    for call in (lambda: resolve_bundle("someone/tiny"), lambda: pull("someone/tiny", tmp_path / "out")):
        assert "is outside the bundle: do not use it" in refused(call)
    assert set(hub.sent) == {MANIFEST}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda hub: edited(hub, move("onnx/other")), "lacks the file 'onnx/other' that its manifest names"),
        (lambda hub: hub.listed.update({LARGE: 7}), f"'{LARGE}' of 'someone/tiny' is not the file of its manifest (7"),
        (lambda hub: hub.listed.update({MANIFEST: 1 << 40}), f"has {1 << 40} bytes, expected at most"),
        (
            lambda hub: edited(hub, lambda data: data["files"][LARGE].update(sha256="0" * 64)),
            "is not the file of its manifest",
        ),
        (
            lambda hub: edited(hub, lambda data: data["files"].update(dict.fromkeys(map(str, range(5000)), TINY))),
            "names over 4096 files",
        ),
        (lambda hub: edited(hub, lambda data: data.update(schema=99)), "has schema 99"),
        (lambda hub: hub.repositories["someone/tiny"].files.update({MANIFEST: b"{"}), "is not valid JSON"),
    ],
    ids=["a missing file", "another size", "a huge manifest", "another hash", "many files", "schema", "damaged"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_other_file_comes(
    hub: Hub, tmp_path: Path, spoil: Callable[[Hub], object], sentence: str
) -> None:
    spoil(hub)
    for call in (lambda: resolve_bundle("someone/tiny"), lambda: pull("someone/tiny", tmp_path / "out")):
        assert sentence in refused(call)
    assert set(hub.sent) <= {MANIFEST} and not (tmp_path / "out").exists()


def test_a_bundle_larger_than_the_disk_is_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage._replace(free=1000))
    assert "has 1.0 kB left: make room" in refused(lambda: pull("someone/tiny", tmp_path / "out"))
    assert set(hub.sent) == {MANIFEST}


# --- into a folder ----------------------------------------------------------------------------------------------------


def test_a_pull_is_the_bundle_and_nothing_beside_it(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    assert pull("someone/tiny", tmp_path / "out") == tmp_path / "out"
    assert files_of(tmp_path / "out") == files_of(tiny_bundle)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*")) and left(tmp_path) == {"out"}
    assert "already exists" in refused(lambda: pull("someone/tiny", tmp_path / "out"))
    pull("someone/tiny", tmp_path / "out", force=True)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "holds files that are not of the bundle" in refused(
        lambda: pull("someone/tiny", tmp_path / "out", force=True)
    )
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of what the client reads at once: 10 MB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut[LARGE] = 100_000
    pull("someone/tiny", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_bundle)
    assert hub.sent[LARGE] == len(files_of(tiny_bundle)[LARGE]), "no byte twice"


def test_a_pull_that_failed_goes_on_from_whole_files(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    hub.broken.add(LARGE)
    said = refused(lambda: pull("someone/tiny", tmp_path / "out"))
    assert "The download of 'someone/tiny' stopped" in said and "run the same command again" in said
    assert not (tmp_path / "out").exists() and left(tmp_path) == {".out.edgevlm-pull"}
    hub.broken.clear()
    before = dict(hub.sent)
    pull("someone/tiny", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_bundle) and left(tmp_path) == {"out"}
    again = {name for name in hub.sent if hub.sent[name] != before.get(name)}
    whole = {name for name, data in files_of(tiny_bundle).items() if before.get(name) == len(data) and data}
    assert LARGE in again and len(whole) > 3 and not again & (whole - {MANIFEST})


def test_a_pull_that_is_killed_goes_on_from_whole_files(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a file."""
    hub.stalled.add(LARGE)
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edgevlm", "pull", "someone/tiny", "out"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        files = tmp_path / ".out.edgevlm-pull"
        deadline = time.monotonic() + 60
        while len([path for path in files.rglob("*") if path.is_file()]) < 50 and time.monotonic() < deadline:
            threading.Event().wait(0.05)  # 21 files, each with a note of huggingface_hub's
            if not {*files_of(tiny_bundle)} - {LARGE} - hub.sent.keys():
                break
        process.kill()
    hub.go.set()
    hub.stalled.clear()
    assert not (tmp_path / "out").exists() and left(tmp_path) == {".out.edgevlm", ".out.edgevlm-pull"}
    notes = files / ".cache" / "huggingface" / "download"  # one for each file that is whole, written behind it
    whole = {
        name for name in files_of(tiny_bundle) if (files / name).is_file() and (notes / f"{name}.metadata").is_file()
    }
    before = dict(hub.sent)
    pull("someone/tiny", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_bundle) and left(tmp_path) == {"out"}
    again = {name for name in hub.sent if hub.sent[name] != before.get(name)}
    assert len(whole) > 3 and LARGE in again and not again & (whole - {MANIFEST})


def test_files_of_a_failed_pull_that_were_changed_are_found(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    hub.broken.add(LARGE)
    refused(lambda: pull("someone/tiny", tmp_path / "out"))
    hub.broken.clear()
    victim = tmp_path / ".out.edgevlm-pull" / "tokenizer.json"
    before = victim.stat()
    victim.write_bytes(victim.read_bytes()[:-1] + b" ")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))  # a newer file would be fetched again unseen
    assert "'tokenizer.json' of 'someone/tiny' is not what its manifest says" in refused(
        lambda: pull("someone/tiny", tmp_path / "out")
    )
    pull("someone/tiny", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_bundle)


def test_a_failed_pull_of_another_bundle_leaves_nothing_in_this_one(
    hub: Hub, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = hub.add("someone/other", dict(hub.repositories["someone/tiny"].files))
    data = json.loads(other.files[MANIFEST])
    other.files["onnx/more"] = b"more"
    other.files["vocab.txt"] = b"also"
    for name in ("onnx/more", "vocab.txt"):
        data["files"][name] = {"size": 4, "sha256": hashlib.sha256(other.files[name]).hexdigest()}
    other.files[MANIFEST] = json.dumps(data).encode()
    hub.broken.add(LARGE)
    refused(lambda: pull("someone/other", tmp_path / "out"))
    hub.broken.clear()
    pull("someone/tiny", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_bundle) and left(tmp_path) == {"out"}


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["someone/tiny"]
    repository.branches["v1"] = [dict(repository.files)]
    repository.branches["main"].append({"README.md": b""})
    assert "is no bundle" in refused(lambda: pull("someone/tiny", tmp_path / "out"))
    for number, revision in enumerate(("v1", repository.commit("v1"))):
        open_bundle(pull("someone/tiny", tmp_path / f"out{number}", revision=revision))


@pytest.mark.parametrize("out", [".", ".."])
def test_a_place_that_cannot_be_replaced(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    refused(lambda: pull("someone/tiny", Path(out), force=True))
    assert left(tmp_path) == {"a"} and not list((tmp_path / "a").iterdir()) and not hub.sent


@pytest.mark.parametrize("repo", ["tiny", "", "a/b/c", "../x", "https://huggingface.co/someone/tiny"])
def test_what_is_no_id(hub: Hub, tmp_path: Path, repo: str) -> None:
    assert "is no bundle of the Hub" in refused(lambda: pull(repo, tmp_path / "out"))
    assert not hub.asked and not left(tmp_path)


def test_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "The Hub could not be reached" in refused(lambda: pull("someone/tiny", tmp_path / "out"))
    assert not left(tmp_path)


def test_a_file_in_the_way_of_the_downloads_is_kept(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".out.edgevlm-pull").write_text("mine")
    assert "is in the way" in refused(lambda: pull("someone/tiny", tmp_path / "out"))
    assert (tmp_path / ".out.edgevlm-pull").read_text() == "mine"


def test_without_the_package_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: resolve_bundle("someone/tiny"), lambda: pull("someone/tiny", tmp_path / "out")):
        assert "needs the package huggingface_hub" in refused(call)
