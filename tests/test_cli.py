"""The command line as a user meets it: what it prints where, exit codes, one sentence for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from edgevlm import __version__
from edgevlm.cli import edgevlm, main
from edgevlm.commands import demo
from edgevlm.evaluation.scenes import intersection_over_union
from edgevlm.scenes.showcase import DEMO
from edgevlm.verify import bounds

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "edgevlm" / "assets" / "pictures"
PICTURE = PICTURES / "scene-things.png"


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run one command line in this process."""

    def run(*args: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Done(int(exit_info.value.code or 0), out, err)

    return run


def process(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command line in a process of its own."""
    command = [sys.executable, "-m", "edgevlm", *map(str, args)]
    options = {"capture_output": True, "text": True, "cwd": ROOT, **options}
    return subprocess.run(command, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as an int4 bundle. Do not change it."""
    out = tmp_path_factory.mktemp("cli") / "default"
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "default", "-o", str(out), "--no-gate"])
    assert exit_info.value.code == 0
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


# --- what a verb prints ------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, edgevlm.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "click" in loaded
    assert not loaded & {
        "numpy",
        "PIL",
        "onnx",
        "onnxruntime",
        "tokenizers",
        "rich",
        "huggingface_hub",
        "torch",
    }


def test_help_and_version(cli: Any) -> None:
    for args in ([], ["--help"], ["-h"]):
        done = cli(*args)
        assert done.code == 0 and done.err == ""
        for verb in ("export", "run", "verify", "info", "demo"):
            assert re.search(rf"^  {verb} +\w.*[^.]\.$", done.out, re.MULTILINE), f"{verb} has no whole summary"
    assert cli("--version") == Done(0, f"edgevlm {__version__}\n", "")


def test_export_prints_the_folder_on_stdout_and_the_rest_on_stderr(
    cli: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my bundle"
    done = cli("export", tiny_checkpoint, "--target", "onnx", "--quantize", "int8", "-o", out)
    assert done.code == 0, done.err
    assert done.out == f"{out}\n"
    assert "Gate passed." in done.err
    assert re.search(r"prefill logits, cosine +[01]\.?\d* +0\.\d+ +ok", done.err)
    assert re.search(r"onnx/vision_encoder.onnx_data +[\d.]+ kB", done.err)
    assert f"Next: edgevlm run '{out}' photo.jpg" in done.err
    assert json.loads((out / "manifest.json").read_text())["gate"]["passed"] is True


def test_optimum_word_order_and_flags(cli: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`optimum-cli export onnx --model M --task T --dtype D --device cpu OUT`."""
    out = tmp_path / "out"
    done = cli(
        "export",
        "onnx",
        "--model",
        tiny_checkpoint,
        "--task",
        "image-text-to-text",
        "--dtype",
        "fp16",
        "--device",
        "cpu",
        "--framework",
        "pt",
        "--cache_dir",
        tmp_path,
        "--no-gate",
        out,
    )
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["quantize"] == "fp16" and list(manifest["targets"]) == ["onnx"]
    assert manifest["gate"] is None


def test_components_and_presets_reach_the_recipe(cli: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = cli(
        "export",
        tiny_checkpoint,
        tmp_path / "out",
        "--no-gate",
        "--preset",
        "size",
        "--vision",
        "fp16",
        "--projector",
        "fp32",
        "--decoder",
        "int8",
        "--embed",
        "int8",
    )
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert recipe["preset"] == "size"
    kinds = {name: recipe[name]["kind"] for name in ("vision", "projector", "decoder", "embed")}
    assert kinds == {"vision": "fp16", "projector": "fp32", "decoder": "int8", "embed": "int8"}


def test_run_streams_the_answer_alone_to_stdout(cli: Any, bundle: Path) -> None:
    question = "What colour is the car?"
    plain = cli("run", bundle, PICTURE, question)
    assert plain.code == 0 and plain.err == "" and plain.out.endswith("\n")
    timed = cli("run", bundle, PICTURE, question, "--timings", "--runtime", "eager")
    assert timed.out == plain.out
    for stage in ("preprocess", "encode", "prefill", "decode", "peak memory"):
        assert re.search(rf"^  {stage} +[\d.]+ (ms|s|MB|GB)", timed.err, re.MULTILINE), timed.err
    as_json = json.loads(cli("run", bundle, PICTURE, question, "--json").out)
    assert as_json["answer"] == plain.out[:-1]
    assert as_json["image_tokens"] > 0 and as_json["encode"] > 0 and as_json["finish_reason"] == "stop"


def test_cut_grey_values_are_one_line_on_stderr(cli: Any, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    Image.fromarray(np.full((40, 40), 1000, np.uint16)).save(path)
    done = cli("run", bundle, path, "What is it?")
    assert done.code == 0 and done.out.strip() and "Note" not in done.out
    said = [line for line in done.err.splitlines() if "scan.png" in line]
    assert len(said) == 1
    assert said[0].startswith(f"Note: The image '{path}' has grey values from 1000 to 1000, which are cut")


def test_several_pictures_and_none(cli: Any, bundle: Path) -> None:
    one = json.loads(cli("run", bundle, PICTURE, "What is this?", "--json", "--tiles", "1").out)
    two = json.loads(cli("run", bundle, PICTURE, PICTURE, "What is this?", "--json", "--tiles", "1").out)
    none = json.loads(cli("run", bundle, "What is this?", "--json").out)
    assert (two["image_tokens"], none["image_tokens"]) == (2 * one["image_tokens"], 0)


def test_sampling_options_reach_the_loop(cli: Any, tiny_bundle: Path) -> None:
    sampled = [
        "run",
        tiny_bundle,
        "Hello",
        "--max-tokens",
        8,
        "--temperature",
        1.5,
        "--top-k",
        50,
        "--top-p",
        0.95,
    ]
    first, again = cli(*sampled, "--seed", 1), cli(*sampled, "--seed", 1)
    assert first.code == 0 and first.out == again.out
    assert {cli(*sampled, "--seed", seed).out for seed in range(2, 6)} != {first.out}
    assert "stopped after 8 tokens: raise --max-tokens" in first.err
    greedy = ["run", tiny_bundle, "Hello", "--max-tokens", 40]
    assert cli(*greedy, "--repetition-penalty", 5.0).out != cli(*greedy).out


def test_boxes_in_an_answer(cli: Any, bundle: Path, tmp_path: Path) -> None:
    """The default model finds the demo picture's dog, which lies at (52, 267) to (122, 340)."""
    done = cli("run", bundle, DEMO, "Locate the dog.", "--json", "--draw", tmp_path / "out.png")
    said = json.loads(done.out)
    (box,) = said["boxes"]
    found = (box["x0"], box["y0"], box["x1"], box["y1"])
    assert intersection_over_union(found, (52, 267, 122, 340)) > 0.5 and said["points"] == []
    assert done.err == f"Boxes drawn in {tmp_path / 'out.png'}: 1, points: 0.\n"
    with Image.open(DEMO) as before, Image.open(tmp_path / "out.png") as after:
        changed = np.abs(np.subtract(before.convert("RGB"), after, dtype=np.int64)).max(-1) > 0
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert np.abs(np.subtract((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), found)).max() < 1
    again = cli("run", bundle, DEMO, "Locate the dog.", "--draw", tmp_path / "out.png")
    assert again.code == 2 and "already exists: choose another name, or replace it with --force" in again.err
    assert cli("run", bundle, "Hello", "--draw", tmp_path / "a.png").err.startswith(
        "Error: --draw draws on one picture"
    )
    assert "end it in .png or .jpg" in cli("run", bundle, DEMO, "Hi", "--draw", tmp_path / "a.txt").err
    two = json.loads(cli("run", bundle, DEMO, PICTURE, "Locate the dog.", "--json").out)
    assert two["boxes"] == []  # an answer does not say which picture it means


def test_info(cli: Any, bundle: Path) -> None:
    done = cli("info", bundle)
    assert done.code == 0 and done.err == ""
    for words in (
        "smolvlm",
        "int4, preset balanced",
        "onnx/vision_encoder.onnx",
        "not run: try `edgevlm verify`",
    ):
        assert words in done.out
    assert json.loads(cli("info", bundle, "--json").out) == json.loads((bundle / "manifest.json").read_text())
    devices = cli("info", "--devices")
    assert devices.code == 0 and "CPUExecutionProvider" in devices.out
    engines = json.loads(cli("info", "--devices", "--json").out)
    assert "onnxruntime" in {engine["engine"] for engine in engines}


def test_info_of_a_model(cli: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = cli("info", tiny_checkpoint)
    assert done.code == 0 and done.err == ""
    for words in ("SmolVLM, SmolVLM2", "vit: 2 layers of", "attention: 3 layers of 64", "onnx", "float32"):
        assert words in done.out
    shown = json.loads(cli("info", tiny_checkpoint, "--json").out)
    assert shown["family"] == "smolvlm" and set(shown["targets"]) == {"onnx", "gguf", "coreml"}
    (tmp_path / "config.json").write_text('{"model_type": "other", "text_config": {"model_type": "llama"}}')
    done = cli("info", tmp_path)
    assert done.code == 2 and "its config.json describes no vision tower; its decoder 'llama' is known" in done.err


def test_verify(cli: Any, tiny_bundle: Path, tiny_checkpoint: Path, bundle: Path) -> None:
    done = cli("verify", tiny_bundle)
    assert (done.code, done.out) == (0, "") and "Gate passed." in done.err and "files match" in done.err
    done = cli("verify", tiny_bundle, "--model", tiny_checkpoint)
    assert done.code == 0 and "quantization" in done.err
    done = cli("verify", bundle, "--model", tiny_checkpoint)
    assert done.code == 2
    assert f"'{tiny_checkpoint}' has other weights than the bundle was made from: give default" in done.err


@pytest.mark.heavy
def test_demo_exports_gates_and_answers(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = cli("demo", "--out", out)
    assert done.code == 0, done.err
    assert "Gate passed." in done.err and str(DEMO) in done.err
    questions = [line for line in done.err.splitlines() if line in demo.QUESTIONS]
    assert questions == list(demo.QUESTIONS) and done.err.count("peak memory") == 1
    answers = done.out.splitlines()
    assert answers == ["3", "red", "PARK", "no", "left", "house"]
    page = (ROOT / "docs" / "default-model.md").read_text(encoding="utf-8")
    for question, answer in zip(questions, answers, strict=True):
        assert f"| {question} | {answer} |" in page
    (out / "mine.txt").write_text("kept")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["model"]["source"] = "somebody/else"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert cli("demo", "--out", out).code == 2, "a demo replaces nothing but a demo"
    assert (out / "mine.txt").exists()


# --- mistakes: (command, sentence) -------------------------------------------------------------------------

MISTAKES = {
    "unknown verb": ("exprot default", "There is no verb 'exprot': did you mean 'export'?"),
    "no such verb": (
        "frobnicate",
        f"There is no verb 'frobnicate': choose one of {', '.join(edgevlm.commands)}.",
    ),
    "no bundle": ("run", "Missing argument 'BUNDLE' (see 'edgevlm run --help')."),
    "no model": ("export", "No model was given: name a checkpoint folder, a Hub id or 'default'."),
    "no output": (
        "export default",
        "No output folder was given: add one, as in `edgevlm export default -o bundle`.",
    ),
    "two outputs": ("export default a -o b", "Two output folders were given ('a' and 'b'): give one."),
    "missing checkpoint": (
        "export {tmp}/none -o {tmp}/o",
        "there is no folder '{tmp}/none': give a local model folder or a Hub id such as 'owner/name'.",
    ),
    "unknown target": (
        "export default -o {tmp}/o --target tflite",
        "Target 'tflite' does not exist: choose one of onnx, gguf, coreml.",
    ),
    "misspelt target": (
        "export default -o {tmp}/o --target onxx",
        "Target 'onxx' does not exist: did you mean 'onnx'?",
    ),
    "no target": (
        "export default -o {tmp}/o --target ,",
        "No target was given: choose from onnx, gguf, coreml.",
    ),
    "unknown quantization": (
        "export default -o {tmp}/o --quantize int3",
        "Quantization 'int3' is not available: choose one of fp32, fp16, int8, int4, palette6, palette4.",
    ),
    "unknown component quantization": (
        "export default -o {tmp}/o --vision q4_k",
        "Quantization 'q4_k' is not available: choose one of fp32, fp16, int8, int4, palette6, palette4.",
    ),
    "unknown preset": (
        "export default -o {tmp}/o --preset fast",
        "Preset 'fast' does not exist: choose one of size, balanced, latency.",
    ),
    "contradiction": (
        "export default -o {tmp}/o --quantize int8 --dtype fp16",
        "--quantize int8 and --dtype fp16 contradict each other: give one.",
    ),
    "bf16": (
        "export default -o {tmp}/o --dtype bf16",
        "bf16 runs on no edge runtime: use --dtype fp16, or --quantize int8 or int4.",
    ),
    "other task": (
        "export default -o {tmp}/o --task text-generation",
        "Task 'text-generation' does not exist here: leave --task out (image-text-to-text).",
    ),
    "export device": (
        "export default -o {tmp}/o --device cuda",
        "An export runs on the CPU alone, not on 'cuda': leave --device out.",
    ),
    "existing output": (
        "export default -o {bundle}",
        "'{bundle}' already exists: choose another output folder, or replace it with --force.",
    ),
    "output is a file": (
        "export default -o {text}",
        "'{text}' exists and is no folder: choose another output folder.",
    ),
    "output below a file": (
        "export default -o {text}/o",
        "'{text}' cannot be written (File exists): choose another output folder.",
    ),
    "force on other things": (
        "export default -o {full} --force",
        "'{full}' holds something that is not a bundle, and --force replaces bundles only: "
        "choose another output folder.",
    ),
    "missing bundle": (
        "run {tmp}/none q",
        "There is no bundle '{tmp}/none': make one with `edgevlm export MODEL -o {tmp}/none`.",
    ),
    "a checkpoint is no bundle": (
        "run {checkpoint} q",
        "'{checkpoint}' is a model, not a bundle: export it first with "
        "`edgevlm export {checkpoint} -o tiny-int4`, then run tiny-int4.",
    ),
    "a folder is no bundle": (
        "info {full}",
        "'{full}' is not a bundle: it has no manifest.json; make one with `edgevlm export`.",
    ),
    "no question": (
        "run {bundle}",
        "No question was given: add one in quotes, as in `edgevlm run {bundle} photo.jpg \"What is this?\"`.",
    ),
    "question forgotten": (
        "run {bundle} {picture}",
        "No question follows the picture '{picture}': add one in quotes as the last argument.",
    ),
    "question without quotes": (
        "run {bundle} {picture} What is this",
        "There is no picture 'What': check the path, and put the question in quotes at the end.",
    ),
    "missing picture": (
        "run {bundle} {tmp}/none.png q",
        "There is no picture '{tmp}/none.png': check the path, and put the question in quotes at the end.",
    ),
    "not an image": (
        "run {bundle} {text} q",
        "The image '{text}' is not a picture that can be opened: "
        "use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.",
    ),
    "not a number": (
        "run {bundle} q --max-tokens many",
        "Invalid value for '--max-tokens': 'many' is not a valid integer (see 'edgevlm run --help').",
    ),
    "no tokens": ("run {bundle} q --max-tokens 0", "max_tokens is 0: give a whole number of at least 1."),
    "cold": (
        "run {bundle} q --temperature -1",
        "temperature is -1.0: give a number of at least 0 (0 is greedy).",
    ),
    "nan": (
        "run {bundle} q --temperature nan",
        "temperature is nan: give a number of at least 0 (0 is greedy).",
    ),
    "top-p": ("run {bundle} q --top-p 2", "top_p is 2.0: give a number above 0 and at most 1."),
    "top-k": ("run {bundle} q --top-k -1", "top_k is -1: give a whole number of at least 0."),
    "seed": ("run {bundle} q --seed -1", "seed is -1: give a whole number of at least 0."),
    "penalty": (
        "run {bundle} q --repetition-penalty 0",
        "repetition_penalty is 0.0: give a number above 0 (1 is no penalty).",
    ),
    "nothing to show": (
        "info",
        "Nothing to show: name a bundle or a model, or add --devices for this machine's engines.",
    ),
    "both shown": (
        "info {bundle} --devices",
        "--devices shows this machine, not a bundle or a model: give one of them.",
    ),
    "--opset": (
        "export default -o {tmp}/o --opset 17",
        "The opset is part of a graph's design: leave --opset out (onnx/*_portable.onnx have 23).",
    ),
    "--atol": (
        "export default -o {tmp}/o --atol 1e-4",
        "The gate's bounds are fixed per quantization: leave --atol out and read its table.",
    ),
    "--optimize": (
        "export default -o {tmp}/o --optimize O3",
        "Graphs are authored in fused form: leave --optimize out and choose a --preset instead.",
    ),
    "--trust-remote-code": (
        "export default -o {tmp}/o --trust-remote-code",
        "Code from a checkpoint is never run: leave --trust-remote-code out.",
    ),
    "--monolith": (
        "export default -o {tmp}/o --monolith",
        "A device runs each stage at its own time, from a graph of its own: leave --monolith out.",
    ),
    "--no-post-process": (
        "export default -o {tmp}/o --no-post-process",
        "Tied weights are shared from the start: leave --no-post-process out.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str, cli: Any, bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text, full = tmp_path / "notes.png", tmp_path / "full"
    text.write_text("These are notes, not a picture.")
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    command, sentence = MISTAKES[name]
    places = {"tmp": tmp_path, "bundle": bundle, "checkpoint": tiny_checkpoint, "text": text, "full": full}
    words = {key: str(path) for key, path in {**places, "picture": PICTURE}.items()}
    done = cli(*(word.format(**words) for word in command.split()))
    assert done.err == f"Error: {sentence.format(**words)}\n"
    assert (done.code, done.out) == (2, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "notes.png"], "something was left behind"
    assert (full / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "tflite"], "Runtime 'tflite' does not exist: choose one of "),
        (["--device", "tpu"], "Device 'tpu' does not exist: choose one of cpu, gpu, npu."),
        (["--device", "npu"], "The installed onnxruntime "),
        (["--threads", "0"], "threads is 0: give a whole number from 1 to "),
        (["--tiles", "0"], "The tile budget is 0: it should be 1 (the whole picture only) or more."),
    ],
)
def test_engine_options(options: list[str], sentence: str, cli: Any, bundle: Path) -> None:
    done = cli("run", bundle, PICTURE, "q", *options)
    assert done.code == 2 and done.err.startswith(f"Error: {sentence}") and done.err.count("\n") == 1
    assert done.out == ""


def test_an_unknown_flag_names_the_near_one(cli: Any) -> None:
    done = cli("run", "bundle", "q", "--tils", 1)
    assert done.code == 2 and re.fullmatch(r"Error: No such option.*--tils.*--tiles.*\n", done.err)


# --- damaged input -----------------------------------------------------------------------------------------


def test_damaged_checkpoints(cli: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(tiny_checkpoint, tmp_path / name))

    truncated = broken("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    family = broken("family")
    config = json.loads((family / "config.json").read_text())
    (family / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    pickled = broken("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for folder, words in (
        (truncated, ["model.safetensors", "truncated", "download it again"]),
        (family, ["'blip'", "its vision tower 'smolvlm_vision' is known", "docs/checkpoints.md"]),
        (pickled, ["pytorch_model.bin", "pickle", "safetensors"]),
    ):
        done = cli("export", folder, "-o", tmp_path / "out")
        assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1, done.err
        for word in words:
            assert word in done.err
        assert not (tmp_path / "out").exists()


def test_damaged_bundles(cli: Any, copy: Path) -> None:
    graph = copy / "onnx" / "vision_encoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    done = cli("run", copy, PICTURE, "q")
    assert done.code == 2
    assert done.err == (
        f"Error: The file 'onnx/vision_encoder.onnx' of '{copy}' was changed after the export "
        "(its sha256 differs): export or copy the bundle again.\n"
    )
    graph.unlink()
    assert "lacks its file 'onnx/vision_encoder.onnx'" in cli("info", copy).err
    (copy / "manifest.json").write_text("{")
    assert "is not valid JSON" in cli("verify", copy).err


@pytest.mark.heavy
def test_verify_fails_with_a_table_where_weights_were_exchanged(cli: Any, copy: Path) -> None:
    """Sizes and hashes agree with the manifest, and yet these are not the model's weights."""
    from edgevlm.bundle.manifest import sha256

    data = copy / "onnx" / "decoder_model_merged.onnx_data"
    content = bytearray(data.read_bytes())
    content[4096:5120] = bytes(byte ^ 0x11 for byte in content[4096:5120])
    data.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["onnx/decoder_model_merged.onnx_data"]["sha256"] = sha256(data)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = cli("verify", copy, "--model", "default")
    assert (done.code, done.out) == (1, "")
    assert re.search(r"weights that differ +[1-9]\d* +0 +MISSED", done.err), done.err
    assert done.err.splitlines()[-1].startswith(f"Error: '{copy}' does not hold on this machine: onnx, weights")


def test_a_missed_bound_fails_the_export_and_leaves_the_output_untouched(
    cli: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cli("export", tiny_checkpoint, "-o", out, "--no-gate").code == 0
    before = (out / "manifest.json").read_bytes()
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "notes.txt").write_text("mine")
    strict = {key: replace(bound, features=1.1) for key, bound in bounds.BOUNDS.items()}
    monkeypatch.setattr(bounds, "BOUNDS", strict)
    done = cli("export", tiny_checkpoint, "-o", out, "--force")
    assert (done.code, done.out) == (1, "")
    assert re.search(r"features of 13 tiles, cosine .* 1.1 +MISSED", done.err), done.err
    assert "bounds missed." in done.err and "Error: The gate failed: onnx, features of 1 tile" in done.err
    assert (out / "manifest.json").read_bytes() == before
    assert "the bundle lies in '" + str(tmp_path / "out.failed-2") + "' for inspection" in done.err
    assert (tmp_path / "out.failed-2" / "manifest.json").exists()
    assert [path.name for path in (tmp_path / "out.failed").iterdir()] == ["notes.txt"]


def test_an_export_to_gguf_says_what_llama_cpp_alone_does(cli: Any, gguf_checkpoint: Path, tmp_path: Path) -> None:
    done = cli("export", gguf_checkpoint, "-o", tmp_path / "out", "--target", "gguf", "--no-gate")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())["targets"]["gguf"]["alone"]
    assert said in done.err.splitlines() and said.startswith("llama.cpp without edgevlm ignores EXIF orientation")


# --- the machine says no -----------------------------------------------------------------------------------


def limit_files() -> None:
    """No file may grow past 64 kB: what a quota or a full disk does to a long write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_full_disk_is_one_sentence_and_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = process("export", "default", "-o", out, "--force", "--no-gate", preexec_fn=limit_files)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: A file grew past its size limit") and done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "a partial bundle was left behind"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            errno.ENOSPC,
            "The disk is full at '/there': free some space or choose another place, and run the command",
        ),
        (
            errno.EDQUOT,
            "The disk is full at '/there': free some space or choose another place, and run the command",
        ),
        (
            errno.EACCES,
            "Permission denied at '/there': choose a place that you may write to, or change its perm",
        ),
        (errno.EROFS, "The file system is read-only at '/there': choose a place that you may write to."),
        (
            errno.EIO,
            "The device failed while reading or writing at '/there': check it and run the command again.",
        ),
    ],
)
def test_what_the_system_refuses(
    number: int, sentence: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/there")

    monkeypatch.setattr("edgevlm.export.pipeline.write_json", refuse)
    done = cli("export", "default", "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"Error: {sentence}")
    assert done.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout(bundle: Path) -> None:
    with open("/dev/full", "w") as full:
        done = process("run", bundle, "Hello", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The disk is full") and done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_met_with_silence(bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = process("run", bundle, "Hello", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupted(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgevlm.export.pipeline.write_json", interrupt)
    assert cli("export", "default", "-o", tmp_path / "out") == Done(130, "", "Interrupted.\n")
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path: Path) -> None:
    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_ETAG_TIMEOUT": "1",
    }
    out = tmp_path / "out"
    done = process("export", "owner/name", "-o", out, env={**os.environ, **nowhere})
    assert (done.returncode, done.stdout) == (2, "") and not out.exists()
    assert re.fullmatch(
        r"Error: 'owner/name' is neither a local folder nor in the cache, and the Hub could not be reached "
        r"\(.*\): "
        r"check the network, or give a local folder\.\n",
        done.stderr,
    ), done.stderr
    done = process("run", "owner/name", "q", env={**os.environ, **nowhere})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"Error: 'owner/name' is neither a local folder nor whole in the cache, and the Hub could not be reached "
        r"\(.*\): check the path or the network\.\n",
        done.stderr,
    ), done.stderr


def test_exporting_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        f"from edgevlm.cli import main; main(['export', 'default', '-o', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: This needs the package onnx" in done.stderr and "pip install '.[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_is_a_traceback(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hides what is nobody's mistake but ours."""

    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edgevlm.export.pipeline.write_json", fail)
    done = cli("export", "default", "-o", tmp_path / "out")
    assert (done.code, done.out) == (70, ""), "1 is a missed bound and nothing else"
    assert done.err.startswith("Traceback") and "ZeroDivisionError" in done.err


# --- more than one engine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in int8 for ONNX and for the Neural Engine. Do not change it."""
    pytest.importorskip("coremltools")
    out = tmp_path_factory.mktemp("cli") / "apple"
    words = ["export", "default", "-o", str(out), "--target", "onnx,coreml", "--quantize", "int8", "--no-gate"]
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--coreml-profile", "ane"])
    assert exit_info.value.code == 0
    return out


@pytest.mark.heavy
def test_lint_and_overflow_of_coreml_packages(cli: Any, apple: Path, bundle: Path) -> None:
    lint = cli("verify", apple, "--lint", "ane")
    assert lint.code == 0 and lint.out == ""
    assert "predicted on the Neural Engine" in lint.err and "decode_ctx512" in lint.err
    overflow = cli("verify", apple, "--overflow")
    assert overflow.code == 0 and "0 of " in overflow.err
    assert cli("verify", apple, "--lint", "gpu").err.endswith("no rules 'gpu' to lint by: use --lint ane.\n")
    missing = cli("verify", bundle, "--lint", "ane")
    assert missing.code == 2 and "holds no CoreML packages" in missing.err


@pytest.mark.heavy
def test_across_shows_engines_side_by_side(cli: Any, apple: Path) -> None:
    done = cli("verify", apple, "--across")
    assert done.code == 0
    for pair in ("eager / onnxruntime", "eager / coreml", "onnxruntime / coreml"):
        assert pair in done.err


@pytest.mark.heavy
def test_run_on_coreml(cli: Any, apple: Path) -> None:
    for storage in ("fp16", "fp32"):
        done = cli("run", apple, PICTURE, "How many books are there?", "--runtime", "coreml", "--storage", storage)
        assert done.code == 0 and done.out.strip() and not done.out.startswith(" ")
    done = cli("run", apple, PICTURE, "How many books are there?", "--runtime", "coreml", "--storage", "fp8")
    assert done.code == 2 and done.err == "Error: Storage 'fp8' does not exist: choose one of fp16, fp32.\n"
