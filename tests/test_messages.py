"""What a user is told, by what the user did: a table of mistakes, and the form of every sentence in the code."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm import errors
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "edgevlm" / "assets" / "pictures"

# {b}: a bundle, {p}: a folder with pictures of many names and kinds, {o}: a place that does not exist. Words are
# separated by blanks; "_" in a word is a blank.
END = "add one in quotes as the last argument."
PATH = "check the path, and put the question in quotes at the end."
COMMANDS: dict[str, str] = {
    # A path is not a question, whatever it is called and whether it exists.
    "run {b} nosuch.jpg": f"There is no file 'nosuch.jpg', and no question follows it: {PATH}",
    "run {b} my_photo.JPEG": f"There is no file 'my photo.JPEG', and no question follows it: {PATH}",
    "run {b} nosuch.jp2": f"There is no file 'nosuch.jp2', and no question follows it: {PATH}",
    "run {b} {p}/nosuch": f"There is no file '{{p}}/nosuch', and no question follows it: {PATH}",
    "run {b} ./nosuch": f"There is no file './nosuch', and no question follows it: {PATH}",
    "run {b} ~/nosuch": f"There is no file '~/nosuch', and no question follows it: {PATH}",
    "run {b} C:\\a\\b": f"There is no file 'C:\\a\\b', and no question follows it: {PATH}",
    "run {b} {p}/photo.jfif": f"No question follows the picture '{{p}}/photo.jfif': {END}",
    "run {b} {p}/picture": f"No question follows the picture '{{p}}/picture': {END}",
    "run {b} {p}/picture {p}/photo.jfif": f"No question follows the picture '{{p}}/photo.jfif': {END}",
    "run {b} {p}/picture nosuch.png": f"There is no file 'nosuch.png', and no question follows it: {PATH}",
    "run {b} {p}/scan.ppm": f"No question follows the picture '{{p}}/scan.ppm': {END}",
    "run {b} {p}/icon.ico": f"No question follows the picture '{{p}}/icon.ico': {END}",
    "run {b} {p}/empty.png": f"No question follows the picture '{{p}}/empty.png': {END}",
    "run {b} {p}/notes": f"No question follows the file '{{p}}/notes': {END}",
    "run {b} {p}": f"No question follows the folder '{{p}}': {END}",
    "run {b} {b}": f"No question follows the folder '{{b}}': {END}",
    "run {b} data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI": (
        f"No question follows the address 'data:image/png;base64,iVBORw0KGgoAAAANSU': {END}"
    ),
    "run {b} https://example.org/cat": f"No question follows the address 'https://example.org/cat': {END}",
    "run {b} https://example.org/cat.png What?": (
        "The picture 'https://example.org/cat.png' is on the network, which is never read: download it first."
    ),
    "run {b} data:image/png;base64,AAAA What?": (
        "The image is not a picture that can be opened: use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
    ),
    "run {b} {p}/picture What? --json {o}.json": (f"There is no file '{{o}}.json', and no question follows it: {PATH}"),
    "run {b} What? nosuch.jpg": f"There is no file 'nosuch.jpg', and no question follows it: {PATH}",
    "run {b} _": "The question is empty: write it in quotes as the last argument.",
    # The bundle comes first.
    "run {p}/picture {b} What?": "'{b}' is the bundle, which comes first: write `edgevlm run {b} {p}/picture 'What?'`.",
    "run What? {b} {p}/picture": "'{b}' is the bundle, which comes first: write `edgevlm run {b} 'What?' {p}/picture`.",
    "run {p}/picture What?": "'{p}/picture' is a picture, not a bundle: the bundle's folder comes first.",
    "run {b}/manifest.json What?": "'{b}/manifest.json' is a file of a bundle: give its folder, {b}.",
    "run {p}/notes What?": "'{p}/notes' is a file, not a bundle: give the folder that `edgevlm export` wrote.",
    "eval {p}/picture": "'{p}/picture' is a picture, not a bundle: the bundle's folder comes first.",
    "bench {p}/notes": "'{p}/notes' is a file, not a bundle: give the folder that `edgevlm export` wrote.",
    "info {b}/prompt.json": "'{b}/prompt.json' is a file, not a bundle: give the folder that `edgevlm export` wrote.",
    "verify {o}": "There is no bundle '{o}': make one with `edgevlm export MODEL -o {o}`.",
    "report {p}/picture -o {o}.html": "'{p}/picture' is a picture, not a bundle: the bundle's folder comes first.",
    # Nearly right.
    "exprt default": "There is no verb 'exprt': did you mean 'export'?",
    "RUN {b} What?": "There is no verb 'RUN': did you mean 'run'?",
    "export defualt -o {o}": "There is no folder 'defualt': did you mean 'default'?",
    "export Default -o {o}": "There is no folder 'Default': did you mean 'default'?",
    "verify {b} --model defalt": "There is no folder 'defalt': did you mean 'default'?",
    "train dfault --data {p} -o {o}": "There is no folder 'dfault': did you mean 'default'?",
    "export default -o {o} --target onxx,gguf": "Target 'onxx' does not exist: did you mean 'onnx'?",
    "export default -o {o} --target onnx_core-ml": "Target 'core-ml' does not exist: did you mean 'coreml'?",
    "export default -o {o} --target gguf --target tflite": (
        "Target 'tflite' does not exist: choose one of onnx, gguf, coreml."
    ),
    "eval {b} --suite Scenes": "There is no suite 'Scenes': did you mean 'scenes'?",
    "scenes {o} --split tset": "There is no split 'tset': did you mean 'test'?",
    "verify {b} --lint cpu": "There are no rules 'cpu' to lint by: use --lint ane.",
    "report {b} -o {o}.txt": "The report is a page in HTML: name it so, as in -o {o}.html.",
    "report {b} -o {p}/notes --force": "The report is a page in HTML: name it so, as in -o {p}/notes.html.",
    "demo --out {p}": "'{p}' exists and is no demo of before: choose another place with --out.",
    # One option makes another meaningless.
    "export default -o {o} --quantize fp32 --preset latency": (
        "--preset chooses among quantized forms, and fp32 is none: leave one of the two out."
    ),
    "export default -o {o} --dtype fp16 --preset size": (
        "--preset chooses among quantized forms, and fp16 is none: leave one of the two out."
    ),
    "export default -o {o} --context 512": (
        "--context is for CoreML, and no target is: add --target coreml, or leave it out."
    ),
    "export default -o {o} --no-gate --strict": (
        "--strict is for the gate, and --no-gate runs none: leave one of the two out."
    ),
    "export default -o {o} --questions 7": (
        "--questions counts those of --answers: add --answers scenes, or leave it out."
    ),
    "export default -o {o} --revision main": (
        "--revision is for models of the Hub, and 'default' is none: leave it out."
    ),
    "verify {b} --questions 7": "--questions counts those of --answers: add --answers scenes, or leave it out.",
    "verify {b} --across --json {o}": "--json is for the gate, and --across runs none: leave one of the two out.",
    "verify {b} --adapter {p}": "--adapter belongs to the original: name that with --model, or leave it out.",
    "eval {b} --revision main": "--revision is for data sets of the Hub: name one with --data, or leave it out.",
    "eval {b} --resume": "--resume goes on with a file of answers: name it with --out.",
    "distill --teacher default --student default --data {p} -o {o} --preset size": (
        "--preset is for training through the quantizer: add --quantize int4, or leave it out."
    ),
    "compose --encoder default --decoder default --projector mlp --queries 9 -o {o}": (
        "--queries is for the projector qformer or resampler: leave it out."
    ),
    "compose --encoder default --decoder default --projector linear --scale-factor 0 -o {o}": (
        "--scale-factor is for the projector pixel-shuffle: leave it out."
    ),
    "train default --data {p} -o {o} --beta 0.2": "--beta is for --stage preference: leave it out.",
    # Sizes and shares.
    "export default -o {o} --budget 1kB": (
        "The budget of 1.0 kB is too small: this model takes at least 8.0 MB; allow that much, or take a smaller model."
    ),
    "export default -o {o} --budget big": "The budget 'big' is no size: write it as in --budget 150MB.",
    "export default -o {o} --max-loss 1": "--max-loss 1 may mean 1 % or 100 %: write it with its %.",
    "export default -o {o} --max-loss 0.5": "--max-loss 0.5 may mean 0.5 % or 50 %: write it with its %.",
    "export default -o {o} --max-loss little": "The largest loss 'little' is no share: write it as in --max-loss 1%.",
    "export default -o {o} --max-loss 0%": (
        "The largest loss is 0: give a share above 0 and at most 1, as in --max-loss 1%."
    ),
    # Names from outside are one line without control characters.
    "run {o}\x1b[2J\nGate What?": (
        "There is no bundle '{o}\\x1b[2J\\nGate': make one with `edgevlm export MODEL -o {o}\\x1b[2J\\nGate`."
    ),
    "eval {b} --suite \u202ex": r"There is no suite '\u202ex': choose one of scenes, pope, vqa, textvqa, docvqa, "
    "ocrbench, mmmu, chartqa, jsonl.",
    "run {b} \udcff.png What?": rf"There is no picture '\udcff.png': {PATH}",
    "run {b} What\udcff?": "The question holds a lone surrogate, which is no character: give it as valid Unicode.",
}


@pytest.fixture(scope="module")
def places(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("messages")
    pictures = folder / "p"
    pictures.mkdir()
    shutil.copy(PICTURES / "scene-things.png", pictures / "picture")
    with Image.open(PICTURES / "scene-things.png") as image:
        small = image.convert("RGB").resize((32, 32))
    small.save(pictures / "photo.jfif", "JPEG")
    small.save(pictures / "scan.ppm")
    small.save(pictures / "icon.ico")
    (pictures / "empty.png").touch()
    (pictures / "notes").write_text("These are notes.")
    return {"b": str(tiny_bundle), "p": str(pictures), "o": str(folder / "o")}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(command)[1:60])
def test_a_command_line_gets_its_sentence(
    command: str, places: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    def fill(text: str) -> str:
        return re.sub(r"\{([bpo])\}", lambda found: places[found[1]], text)

    before = sorted(Path(places["p"]).parent.rglob("*"))
    words = [fill(" ") if word == "_" else fill(word.replace("_", " ")) for word in command.split(" ")]
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    out, err = capfd.readouterr()
    assert err == f"Error: {fill(COMMANDS[command])}\n"
    assert (exit_info.value.code, out) == (2, "")
    assert sorted(Path(places["p"]).parent.rglob("*")) == before, "something was left behind"


def test_the_table_is_long() -> None:
    assert len(COMMANDS) >= 60


QUESTIONS = (
    "What is in photo.jpg?",
    "and/or?",
    "Is it 3.5 or 4?",
    "这是什么？",
    "Read a.b",
    "photo",
    "Is this a .png?",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_a_question(question: str, places: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", places["b"], f"{places['p']}/photo.jfif", question, "--max-tokens", "1", "--tiles", "1"]
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 0, capfd.readouterr().err


def test_pictures_of_every_kind_and_name_are_asked_about(
    places: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = [f"{places['p']}/{name}" for name in ("picture", "photo.jfif", "scan.ppm", "icon.ico")]
    with pytest.raises(SystemExit) as exit_info:
        main(["run", places["b"], *pictures, "What?", "--max-tokens", "1", "--tiles", "1", "--json"])
    out, err = capfd.readouterr()
    assert exit_info.value.code == 0 and json.loads(out)["image_tokens"] == 4 * 16, err


def test_targets_in_capitals_and_in_every_list(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from edgevlm.commands.export import _targets

    for words in ("ONNX gguf", "onnx,GGUF", "onnx , gguf,", "Onnx,gguf,onnx"):
        assert _targets(words) == ("onnx", "gguf")


@pytest.mark.heavy
def test_a_bundle_that_failed_its_gate_says_so(
    places: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = Path(shutil.copytree(places["b"], tmp_path / "b.failed"))
    manifest = json.loads((failed / "manifest.json").read_text())
    manifest["gate"] = {"passed": False, "rows": []}
    (failed / "manifest.json").write_text(json.dumps(manifest))
    warning = (
        "Warning: this bundle missed a bound of its gate; answers may be wrong. "
        f"See `edgevlm info {failed}`.\n"
    )  # fmt: skip
    for command in ("run {} What? --max-tokens 1", "eval {} --limit 1", "bench {} --cold 1 --repeat 1 --tokens 2"):
        with pytest.raises(SystemExit) as exit_info:
            main(command.format(failed).split())
        out, err = capfd.readouterr()
        assert exit_info.value.code == 0 and err.startswith(warning) and "Warning" not in out


def test_lines_of_a_lint_that_repeat_are_counted() -> None:
    from edgevlm.commands.verify import _summed
    from edgevlm.verify.lint_ane import find

    findings = [find("per-block-weights", f"main/{i}", f"{i + 2} scales per row: a GPU form") for i in range(24)]
    findings += [find("dynamic-shape", f"main/in{i}", "a flexible length") for i in range(4)]
    findings += [find("rank", "main/x", "'x' has rank 6")]
    lines = _summed(findings)
    assert len(lines) == 3
    assert lines[0].startswith("error: main/0 and 23 more: 2 scales per row: a GPU form [per-block-weights; ")
    assert lines[1].startswith("error: main/in0 and 3 more: a flexible length [dynamic-shape; ")
    assert lines[2] == str(findings[-1])


def test_a_budget_is_refused_before_any_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevlm.export import pipeline
    from edgevlm.export.pipeline import CalibrationOptions, ExportOptions, export_model

    monkeypatch.setattr(pipeline, "keep_fine", lambda *given: pytest.fail("a picture was encoded"))
    options = ExportOptions("default", tmp_path / "o", calibration=CalibrationOptions(budget=7_900_000))
    with pytest.raises(EdgeVLMError, match=r"of 7\.9 MB is too small: this model takes at least 8\.0 MB; allow that"):
        export_model(options)


# --- the API -----------------------------------------------------------------------------------------------


def _open_bundle(value: Any) -> object:
    from edgevlm.bundle.manifest import open_bundle

    return open_bundle(value)


def _open_runtime(*values: Any) -> object:
    from edgevlm.runtimes import open_runtime

    return open_runtime(*values)


def _bundle(places: dict[str, str]) -> Any:
    return _open_bundle(places["b"])


CALLS: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "open_bundle None": (lambda at: _open_bundle(None), "The bundle is a NoneType: give the path of its folder."),
    "open_bundle 5": (lambda at: _open_bundle(5), "The bundle is a int: give the path of its folder."),
    "open_runtime path": (
        lambda at: _open_runtime(at["b"]),
        "The bundle is of type str: open it with open_bundle first.",
    ),
    "open_runtime name": (
        lambda at: _open_runtime(_bundle(at), 5),
        "The runtime is of type int: give a name such as 'onnxruntime', or None.",
    ),
    "open_runtime device": (lambda at: _open_runtime(_bundle(at), None, None), "device is None: give a text."),
    "open_runtime threads": (
        lambda at: _open_runtime(_bundle(at), None, "cpu", "2"),
        "threads is '2': give a whole number, or None.",
    ),
    "open_runtime portable": (
        lambda at: _open_runtime(_bundle(at), None, "cpu", 1, "yes"),
        "portable is 'yes': give True or False.",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gets_its_sentence(name: str, places: dict[str, str]) -> None:
    call, sentence = CALLS[name]
    with pytest.raises(EdgeVLMError) as caught:
        call(places)
    assert str(caught.value) == sentence


MODULES = {
    "pretrain nosuch --out {o}": "there is no folder 'nosuch'",
    "pretrain default --out {o} --steps 0": "A number is out of its range: steps, batch",
    "pretrain default --out {o} --threads 0": "--threads is 0: give 1 or more.",
    "card {p} {p}/nosuch.json": "'{p}/nosuch.json' is missing: make it with `edgevlm eval --suite scenes",
    "card {p} {b}/manifest.json": "'{b}/manifest.json' holds no scores by skill: make it with ",
    "recipe --out {o} --threads 0": "Training was given a number below 1: pictures, ",
    "grow nosuch --out {o}": "there is no folder 'nosuch'",
}


@pytest.mark.parametrize("command", MODULES)
def test_a_module_that_is_run_gets_its_sentence(
    command: str, places: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    import importlib

    name, *words = command.format(**places).split()
    assert importlib.import_module(f"edgevlm.train.shipped.{name}").main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"Error: {MODULES[command].format(**places)}") and err.count("\n") == 1


# --- the form of every sentence ----------------------------------------------------------------------------


def written(node: ast.expr) -> str | None:
    """A literal as text, NUL for what is filled in; None for what is no literal."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return None


ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, EdgeVLMError)}


def sentences() -> list[tuple[str, str]]:
    """(place, text) of every EdgeVLMError that is made with a literal."""
    found = []
    for folder in ("edgevlm", "export", "runtimes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                    continue
                text = written(node.args[0]) if node.func.id in ERRORS else None
                if text is not None:
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", text))
    return found


def test_every_error_is_a_sentence_that_says_what_to_do() -> None:
    found = sentences()
    assert len(found) > 350
    for place, text in found:
        assert text.endswith((".", "?", "\0")), f"{place}: ends in the middle: {text!r}"
        # A text that begins with what is filled in goes on after another error's sentence.
        assert re.search(r"[:;] |\(see '|^\0 ", text), f"{place}: says nothing of what to do: {text!r}"
        assert "\n" not in text, f"{place}: is more than a line: {text!r}"
        assert len(re.findall(r"[.?!] [A-Z]", text)) <= 1, f"{place}: is more than two sentences: {text!r}"


def test_no_internal_family_is_offered() -> None:
    from edgevlm.checkpoint.families import FAMILIES

    titles = ", ".join(family.title for family in FAMILIES)
    assert "edgevlm" not in titles and "query" not in titles
    assert "Granite-Docling" in titles and "Granite-Docling" in (ROOT / "docs" / "checkpoints.md").read_text()
