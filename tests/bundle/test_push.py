"""A bundle on its way to the Hub: what is sent, what is kept there, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from hub_stand_in import LARGE, Hub, standing_in
from huggingface_hub import ModelCard

from edgevlm.bundle.card import Licence, is_ours, model_card, seal
from edgevlm.bundle.hub import pull
from edgevlm.bundle.manifest import MANIFEST, Manifest, ModelInfo, open_bundle
from edgevlm.bundle.push import PushOptions, push
from edgevlm.cli import edgevlm, main
from edgevlm.errors import EdgeVLMError

REPO = "someone/tiny-edge"
WEIGHTS = "onnx/decoder_model_merged.onnx_data"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with standing_in(monkeypatch, str(tmp_path / "cache")) as found:
        yield found


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))


def test_a_bundle_goes_there_and_back(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes.txt").write_text("mine")  # no file of the bundle
    assert push(bundle, REPO) == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert repository.private and len(repository.branches["main"]) == 2, "one commit beside the Hub's own"
    sent = dict(repository.files)
    assert is_ours(sent.pop("README.md").decode()) and sent.pop(".gitattributes") == b""
    (bundle / "notes.txt").unlink()
    assert sent == files_of(bundle)
    assert hub.large and all(len(data) > LARGE for data in hub.large.values()), "large files by git-lfs"
    pull(REPO, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(bundle)


def test_the_same_again_changes_nothing(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(bundle, REPO)
    stored = dict(hub.large)
    hub.asked.clear()
    push(bundle, REPO)
    assert not [line for line in hub.asked if line.startswith("PUT")] and hub.large == stored
    assert len(hub.repositories[REPO].branches["main"]) == 2
    assert "holds these very files already: nothing was changed" in capsys.readouterr().err


def test_another_export_of_the_model_replaces_its_files_and_no_others(hub: Hub, bundle: Path) -> None:
    push(bundle, REPO)
    repository = hub.repositories[REPO]
    repository.branches["main"].append({**repository.files, "demo.py": b"the user's"})
    name = "onnx/decoder_model_merged_portable.onnx"
    (bundle / name).rename(bundle / "onnx" / "renamed.onnx")
    edit(bundle, lambda data: data["files"].update({"onnx/renamed.onnx": data["files"].pop(name)}))
    push(bundle, REPO)
    assert repository.files.keys() - {".gitattributes", "README.md", "demo.py"} == files_of(bundle).keys()
    assert repository.files["demo.py"] == b"the user's" and name in repository.branches["main"][-2]


def test_a_card_that_somebody_edited_is_kept(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(bundle, REPO)
    repository = hub.repositories[REPO]
    edited = repository.files["README.md"].replace(b"## Run it", b"## Run this")
    repository.branches["main"].append({**repository.files, "README.md": edited})
    push(bundle, REPO)
    assert repository.files["README.md"] == edited
    assert "is somebody's own and was kept: --force" in capsys.readouterr().err
    push(bundle, REPO, PushOptions(force=True))
    assert is_ours(repository.files["README.md"].decode())


@pytest.mark.parametrize("what", ["a model", "another bundle", "somebody's manifest", "a damaged manifest"])
def test_what_is_there_and_something_else_is_kept_without_force(hub: Hub, bundle: Path, what: str) -> None:
    there = {"model.safetensors": b"weights", "config.json": b"{}"}
    if what == "another bundle":
        other = json.loads((bundle / MANIFEST).read_text())
        other["model"]["name"] = "Other"
        there = {MANIFEST: json.dumps(other).encode(), **{name: b"x" for name in other["files"]}}
    elif what == "somebody's manifest":
        there = {MANIFEST: b'{"model": 3}'}
    elif what == "a damaged manifest":
        there = {MANIFEST: b"{", "weights.json": b"{}"}
    repository = hub.add(REPO, there)
    said = refused(lambda: push(bundle, REPO))
    assert "--force" in said and ("holds a bundle of 'Other'" if what == "another bundle" else "something else") in said
    assert repository.files == there
    push(bundle, REPO, PushOptions(force=True))
    for name, data in there.items():
        assert repository.files[name] == (bundle / name).read_bytes() if (bundle / name).exists() else data
    assert repository.branches["main"][-2] == there, "the history has it"


@pytest.mark.parametrize("there", [{}, {"README.md": b"# mine\n", "LICENSE": b"terms"}], ids=["nothing", "the form's"])
def test_a_repository_that_was_made_by_hand(hub: Hub, bundle: Path, there: dict[str, bytes]) -> None:
    repository = hub.add(REPO, there)
    push(bundle, REPO)
    assert there.items() <= repository.files.items() and files_of(bundle).items() <= repository.files.items()


def test_what_everybody_sees_is_said(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(bundle, "someone/open", PushOptions(public=True))
    assert not hub.repositories["someone/open"].private
    assert "everybody can see it: add --public" in refused(lambda: push(bundle, "someone/open"))
    assert "add --public" in refused(lambda: push(bundle, "someone/open", PushOptions(force=True)))
    push(bundle, "someone/open", PushOptions(public=True))
    push(bundle, "someone/shut")
    push(bundle, "someone/shut", PushOptions(public=True))
    assert hub.repositories["someone/shut"].private and "stays private" in capsys.readouterr().err


def test_a_branch(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    address = push(bundle, REPO, PushOptions(revision="int4"))
    repository = hub.repositories[REPO]
    assert address.endswith(f"/{REPO}/tree/int4") and MANIFEST not in repository.files
    open_bundle(pull(REPO, tmp_path / "out", revision="int4"))
    push(bundle, REPO, PushOptions(revision="int4"))
    push(bundle, REPO)
    push(bundle, REPO, PushOptions(revision="next"))
    assert repository.branches.keys() == {"main", "int4", "next"}


def test_somebody_who_is_first_is_not_overwritten(hub: Hub, bundle: Path) -> None:
    push(bundle, REPO)
    hub.race = True
    edit(bundle, lambda data: data["tools"].update(more="1"))
    assert "was changed by somebody else meanwhile" in refused(lambda: push(bundle, REPO))


@pytest.mark.parametrize(
    ("repo", "token", "sentence"),
    [
        (REPO, "hf_wrong", "You are not logged in to the Hub"),
        ("other/tiny", "hf_right", "Your token may not write 'other/tiny'"),
        ("hidden/tiny", "hf_right", "'hidden/tiny' exists, and your token may not see it"),
        ("tiny", "hf_right", "'tiny' is no id of the Hub"),
        ("a/b/c", "hf_right", "'a/b/c' is no id of the Hub"),
        ("someone/na--me", "hf_right", "is no id that the Hub has"),
    ],
)
def test_what_cannot_be_written(
    hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, sentence: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert sentence in refused(lambda: push(bundle, repo))
    assert not hub.repositories and not hub.large


def test_no_network(hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "The Hub could not be reached" in refused(lambda: push(bundle, REPO))


def test_a_bundle_that_is_damaged_is_not_sent(hub: Hub, bundle: Path) -> None:
    path = bundle / "onnx" / "decoder_model_merged.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert "was changed after the export" in refused(lambda: push(bundle, REPO))
    assert "There is no bundle" in refused(lambda: push(bundle / "none", REPO)) and not hub.asked


def test_a_push_that_breaks_says_what_to_do(hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("the cable is out\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fail)
    said = refused(lambda: push(bundle, REPO))
    assert said.startswith(f"The push to '{REPO}' stopped (the cable is out): run the same command again")


def test_options_are_checked() -> None:
    assert "The licence 'a b' is no identifier" in refused(lambda: PushOptions(license="a b"))
    assert "public is 1" in refused(lambda: PushOptions(public=1))  # type: ignore[arg-type]


# --- the card ---------------------------------------------------------------------------------------------------------


def manifest_of(bundle: Path, **model: Any) -> Manifest:
    manifest = open_bundle(bundle).manifest
    return dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, **model))


def front(card: str) -> dict[str, Any]:
    """By the Hub's own reader."""
    return dict(ModelCard(card).data.to_dict())


def test_the_front_of_a_card_is_what_the_hub_reads(tiny_bundle: Path) -> None:
    manifest = manifest_of(tiny_bundle, source="someone/source", revision="a" * 40)
    card = model_card(
        dataclasses.replace(manifest, recipe={**manifest.recipe, "quantize": "int4"}), REPO, Licence("mit")
    )
    assert front(card) == {
        "license": "mit",
        "library_name": "edgevlm",
        "pipeline_tag": "image-text-to-text",
        "tags": ["edgevlm", "onnx"],
        "base_model": "someone/source",
        "base_model_relation": "quantized",
    }
    assert "a" * 40 in card and "[someone/source](https://huggingface.co/someone/source)" in card
    assert "base_model_relation" not in front(model_card(manifest, REPO, None))


def test_a_source_that_is_a_folder_is_no_base_model(tiny_bundle: Path) -> None:
    card = model_card(manifest_of(tiny_bundle), REPO, None)
    assert not front(card).keys() & {"base_model", "license"}
    assert "was not known when this card was written" in card and "The gate did not run" in card


@pytest.mark.parametrize(("branch", "verbs"), [(None, ["pull", "run", "run"]), ("an int4; x", ["pull", "run"])])
def test_commands_in_a_card_are_the_programs_own(tiny_bundle: Path, branch: str | None, verbs: list[str]) -> None:
    card = model_card(manifest_of(tiny_bundle), REPO, None, branch)
    lines = [shlex.split(line, comments=True) for line in card.splitlines() if line.startswith("edgevlm ")]
    assert [words[1] for words in lines] == verbs
    for _, verb, *words in lines:
        command = edgevlm.commands[verb]
        values, _, _ = command.make_parser(click.Context(command, info_name=verb)).parse_args(args=words)
        if verb == "pull":
            assert values["repo"] == REPO and (branch is None or values["revision"] == branch)


def test_sizes_in_a_card_add_up(tiny_bundle: Path) -> None:
    manifest = manifest_of(tiny_bundle)
    rows = {
        cells[1].strip(): int(cells[2]) for cells in rows_of(model_card(manifest, REPO, None), "| target | files |")
    }
    assert rows.keys() == {"onnx", "what all need"} and sum(rows.values()) == len(manifest.files)


def rows_of(card: str, head: str) -> list[list[str]]:
    """The cells of a table's rows, by the bars that Markdown does not escape."""
    lines = card[card.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [re.split(r"(?<!\\)\|", line) for line in lines]


def test_the_gate_in_a_card(tiny_bundle: Path) -> None:
    row = {"target": "onnx", "check": "a|b", "measured": 0.25, "bound": 0.5, "passed": True, "note": "x <b>\n# y"}
    gate = {"passed": False, "rows": [row, {**row, "passed": False}, {**row, "bound": None, "measured": None}]}
    card = model_card(dataclasses.replace(manifest_of(tiny_bundle), gate=gate), REPO, None)
    rows = rows_of(card, "| target | check |")
    assert [len(cells) for cells in rows] == [8, 8, 8] and "**Failed: 1 bounds missed" in card
    assert [[cell.strip() for cell in cells[3:6]] for cells in rows] == [
        ["0.25", "0.5", "ok"], ["0.25", "0.5", "**missed**"], ["no number", "", ""]
    ]  # fmt: skip


HOSTILE = [
    "](https://evil.example)",
    "<script>alert(1)</script>",
    "a\n---\nlicense: mit\n",
    "| x |",
    "`rm -rf /`",
    "{{x}}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_says_names_and_is_not_made_by_them(tiny_bundle: Path, text: str) -> None:
    info = {"name": text, "source": text, "revision": text, "adapter": text}
    manifest = dataclasses.replace(manifest_of(tiny_bundle, **info), tools={"edgevlm": text})
    plain, hostile = model_card(manifest_of(tiny_bundle), REPO, None), model_card(manifest, REPO, None)
    assert front(hostile) == front(plain) and is_ours(hostile)
    assert "<script>" not in hostile.replace("`<script>alert(1)</script>`", "") and "\n---\nlicense" not in hostile
    assert hostile.count("\n#") == plain.count("\n#")


def test_a_seal_holds_a_whole_card(tiny_bundle: Path) -> None:
    card = model_card(manifest_of(tiny_bundle), REPO, None)
    assert is_ours(card) and is_ours(seal("")) and is_ours(seal(seal("x\n")))
    for other in ("", "# mine", card + "more", "more" + card, card.replace("onnx", "ONNX"), card.replace("\n", "\r\n")):
        assert not is_ours(other)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}),
        (
            {"license": "other", "license_name": "llama3", "license_link": "LICENSE"},
            {"license": "other", "license_name": "llama3",
             "license_link": "https://huggingface.co/someone/source/blob/main/LICENSE"},
        ),
        (
            {"license": "other", "license_link": "https://example.org/x"},
            {"license": "other", "license_link": "https://example.org/x"},
        ),
        ({"license": "other", "license_link": "javascript://x)("}, {"license": "other"}),
        ({"license": "two words"}, {}),
        ({"license": ["mit"]}, {}),
        ({}, {}),
        (None, {}),
    ],
)  # fmt: skip
def test_the_licence_is_the_sources(hub: Hub, bundle: Path, card: Any, expected: dict[str, str]) -> None:
    hub.add("someone/source", {"config.json": b"{}"}, card=card)
    edit(bundle, lambda data: data["model"].update(source="someone/source"))
    push(bundle, REPO)
    found = front(hub.repositories[REPO].files["README.md"].decode())
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_a_licence_that_nobody_names_is_said_to_be_unknown(
    hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(bundle, REPO)
    assert "The licence of 'tiny' is not known, and the card says so" in capsys.readouterr().err
    assert "license" not in front(hub.repositories[REPO].files["README.md"].decode())
    push(bundle, REPO, PushOptions(license="mit"))
    assert front(hub.repositories[REPO].files["README.md"].decode())["license"] == "mit"
    edit(bundle, lambda data: data["model"].update(source="default"))
    push(bundle, REPO)
    shipped = Path(__file__).parents[2] / "edgevlm" / "assets" / "default" / "README.md"
    expected = yaml.safe_load(shipped.read_text().split("---")[1])["license"]
    assert front(hub.repositories[REPO].files["README.md"].decode())["license"] == expected


# --- the command line -------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_verbs(hub: Hub, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "push", bundle, REPO, "--license", "mit", "--revision", "v1")
    assert (code, out) == (0, f"{hub.url}/{REPO}/tree/v1\n") and f"edgevlm pull {REPO} --revision v1" in err
    assert run(capsys, "push", bundle, REPO)[0] == 0
    code, out, err = run(capsys, "pull", REPO)
    assert (code, out) == (0, "tiny-edge\n") and "Next: edgevlm run tiny-edge photo.jpg" in err
    assert files_of(tmp_path / "tiny-edge") == files_of(bundle)
    assert run(capsys, "pull", REPO)[0] == 2 and run(capsys, "pull", REPO, "--force")[0] == 0
    assert run(capsys, "pull", "someone/none", "x")[0] == 2
    code, out, err = run(capsys, "info", REPO)
    assert code == 0 and "targets       onnx" in out and WEIGHTS in out
    code, out, err = run(capsys, "run", REPO, "What?", "--max-tokens", "2")
    assert code == 0 and out == run(capsys, "run", bundle, "What?", "--max-tokens", "2")[1]
    assert run(capsys, "verify", REPO, "--lint", "ane")[0] in (1, 2)
    before = dict(hub.sent)
    code, out, err = run(capsys, "info", REPO, "--json")
    assert (code, json.loads(out)) == (0, json.loads((bundle / MANIFEST).read_text()))
    assert hub.sent.get(WEIGHTS) == before.get(WEIGHTS), "for which no weights are fetched"
    hub.add("someone/model", {"config.json": b"{}"})
    code, _, err = run(capsys, "run", "someone/model", "What?")
    assert code == 2 and "is a model, not a bundle: export it first with `edgevlm export someone/model" in err


def test_model_info_is_what_a_card_needs() -> None:
    """A field that is added to where a model came from is one that a card may have to say."""
    names = {field.name for field in dataclasses.fields(ModelInfo)}
    assert names == {"name", "source", "revision", "weights_sha256", "adapter"}
