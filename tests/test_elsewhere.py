"""docs/using-a-bundle-elsewhere.md: each block of code runs in its program, and answers as edgevlm does."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from build_smolvlm import build_tiny

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.layout import merge
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ViewTokens
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.verify.stock import stock_plan

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "using-a-bundle-elsewhere.md").read_text(encoding="utf-8")
PICTURE = "How many balloons are there?"  # that the page asks
TEXT = "How many legs does a dog have?"


def blocks(heading: str, kind: str) -> list[str]:
    """The page's code of one kind under a heading."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [text for text in section if text.startswith(f"{heading}\n")]
    return re.findall(rf"^```{kind}\n(.*?)^```", found, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(gguf_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page has: the default model's bundle, and a photo."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(gguf_bundle("int4", "default").folder, folder / "bundle")
    with Image.open(ROOT / "edgevlm" / "assets" / "scenes" / "demo.png") as image:
        image.convert("RGB").save(folder / "photo.jpg", quality=95)
    return folder


def answer(place: Path, question: str, *pictures: str) -> str:
    bundle = open_bundle(place / "bundle")
    pipeline = Pipeline(bundle, open_runtime(bundle))
    return pipeline.answer([place / name for name in pictures], question, GenerateOptions(max_tokens=32)).text.strip()


def as_llama_cpp_sees_it(place: Path) -> str:
    """The answer to `PICTURE` where the picture is a tile and an overview, as llama.cpp cuts and scales it."""
    bundle = open_bundle(place / "bundle")
    runtime = open_runtime(bundle)
    with Image.open(place / "photo.jpg") as image:
        for size in stock_plan(*image.size, 256, 256).resizes:
            image = image.resize(size, Image.Resampling.LANCZOS)
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))
    ids, layout = prompter.encode(PICTURE, [[ViewTokens((1, 1), 8, 8), ViewTokens(None, 8, 8)]])
    features = runtime.encoder.encode([np.asarray(image)] * 2)
    logits = runtime.decoder.forward(merge(runtime.decoder.embed(ids), layout, features), layout)
    said = []
    while (token := int(logits.argmax())) not in bundle.prompt_spec.stop_ids and len(said) < 32:
        said.append(token)
        logits = runtime.decoder.step(token)
    return prompter.decode(said).strip()


def run(place: Path, *command: str) -> str:
    """The last line that a program prints."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1].strip()


def test_onnxruntime_alone_answers_the_same(place: Path) -> None:
    (code,) = blocks("ONNX Runtime alone", "python")
    assert PICTURE in code and "edgevlm" not in code
    assert run(place, sys.executable, "-c", code) == answer(place, PICTURE, "photo.jpg")


def test_genai_answers_the_same_text(place: Path) -> None:
    import_onnxruntime()
    pytest.importorskip("onnxruntime_genai")
    (code,) = blocks("onnxruntime-genai", "python")
    assert TEXT in code
    assert run(place, sys.executable, "-c", code) == answer(place, TEXT)


@pytest.mark.parametrize(("family", "options"), [("internvl", {}), ("linked", {"text": "qwen2", "tower": "siglip"})])
def test_genai_answers_the_same_text_of_another_family(tmp_path: Path, family: str, options: dict[str, str]) -> None:
    """One of them packs features of pictures, which text has none of."""
    import_onnxruntime()
    pytest.importorskip("onnxruntime_genai")
    importlib.import_module(f"tiny.{family}").build(tmp_path / "checkpoint", **options)
    export_model(ExportOptions(str(tmp_path / "checkpoint"), tmp_path / "bundle", quantize="fp32", gate=False))
    (code,) = blocks("onnxruntime-genai", "python")
    code, count = re.subn(r"print\(stream.decode\((.*)\), end.*$", r"print(\1, end=' ')", code, flags=re.MULTILINE)
    assert count == 1
    bundle = open_bundle(tmp_path / "bundle")
    said = Pipeline(bundle, open_runtime(bundle)).answer([], TEXT, GenerateOptions(max_tokens=32))
    assert len(set(said.ids)) > 8  # the weights are random
    assert [int(token) for token in run(tmp_path, sys.executable, "-c", code).split()] == list(said.ids)


def test_genai_refuses_pictures(place: Path) -> None:
    import_onnxruntime()
    genai = pytest.importorskip("onnxruntime_genai")
    with pytest.raises(RuntimeError, match="decoder-pipeline is not a registered multi-modal model type"):
        genai.Model(str(place / "bundle")).create_multimodal_processor()


def test_llama_cpp_python_answers_what_llama_cpp_sees(place: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-heavy builds it)")
    (code,) = blocks("llama.cpp", "python")
    assert run(place, sys.executable, "-c", code) == as_llama_cpp_sees_it(place)


def test_llama_server_answers_what_llama_cpp_sees(place: Path) -> None:
    if not shutil.which("llama-server") or not shutil.which("curl"):
        pytest.skip("llama-server or curl is not installed")
    (code,) = blocks("llama.cpp", "sh")
    stop = "trap 'kill $(jobs -p)' EXIT\n"
    said = run(place, "bash", "-c", stop + code)
    assert json.loads(said)["choices"][0]["message"]["content"].strip() == as_llama_cpp_sees_it(place)


@pytest.mark.heavy
@pytest.mark.parametrize("named", [False, True], ids=["paths", "files by name"])
def test_transformers_js_answers_the_same(place: Path, node_modules: Path, named: bool) -> None:
    code, browser, _ = blocks("transformers.js", "js")
    if named:  # the page's second block stands for the first one's line
        code, count = re.subn(r"^const model = .*\n", browser, code, flags=re.MULTILINE)
        assert count == 1
    assert PICTURE in code
    if not (place / "node_modules").exists():
        (place / "node_modules").symlink_to(node_modules)
    (place / "ask.mjs").write_text(code)
    assert run(place, "node", "ask.mjs") == answer(place, PICTURE, "photo.jpg")


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_transformers_js_answers_the_same_for_other_families(node_modules: Path, tmp_path: Path, family: str) -> None:
    """The page's code; for LLaVA, with the lines that it needs in place of the processor's call."""
    code, _, llava = blocks("transformers.js", "js")
    if family == "llava":
        code, count = re.subn(r"^const prompt = .*\nconst inputs = .*\n", llava, code, flags=re.MULTILINE)
        assert count == 1
        importlib.import_module("tiny.llava15").build(tmp_path / "checkpoint")
    else:
        build_tiny(tmp_path / "checkpoint", family="idefics3", seed=1)
    shown = "console.log(JSON.stringify(answer.tolist()[0].map(Number)));"
    code, count = re.subn(r"^console.log.*$", shown, code, flags=re.MULTILINE)
    assert count == 1
    export_model(ExportOptions(str(tmp_path / "checkpoint"), tmp_path / "bundle", quantize="fp32", gate=False))
    # Of one colour, so that both programs' filters give the same pixels; a JPEG's colour is not exactly this one.
    Image.new("RGB", (60, 48), (100, 60, 30)).save(tmp_path / "photo.jpg")
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "ask.mjs").write_text(code)
    bundle = open_bundle(tmp_path / "bundle")
    pipeline = Pipeline(bundle, open_runtime(bundle))
    said = pipeline.answer([tmp_path / "photo.jpg"], PICTURE, GenerateOptions(max_tokens=32))
    assert len(set(said.ids)) > 8  # the weights are random
    assert json.loads(run(tmp_path, "node", "ask.mjs")) == list(said.ids)


TOKENS_JS = """
import { AutoProcessor, AutoTokenizer, RawImage, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = ".";
const messages = [
  { role: "user", content: [{ type: "image" }, { type: "text", text: "What is it?" }] },
  { role: "assistant", content: [{ type: "text", text: "A cat." }] },
  { role: "user", content: [{ type: "text", text: "And here? " }, { type: "image" }] },
];
const tokenizer = await AutoTokenizer.from_pretrained("bundle");
const texts = messages.map((message) => ({ role: message.role, content: "Is it  red?" }));
const plain = tokenizer(tokenizer.apply_chat_template(texts, { add_generation_prompt: true, tokenize: false }));
const shown = [];
if (process.argv[2] === "pictures") {
  const processor = await AutoProcessor.from_pretrained("bundle");
  const images = [[200, 90], [64, 64]].map(([w, h]) => new RawImage(new Uint8ClampedArray(w * h * 3), w, h, 3));
  const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
  shown.push(...(await processor(prompt, images)).input_ids.data);
}
console.log(JSON.stringify([Array.from(plain.input_ids.data, Number), shown.map(Number)]));
"""


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["smolvlm", "llava15", "qwen2_5_vl", "internvl", "deepseek_vl", "nanovlm"])
def test_transformers_js_tokenizes_the_same(
    tiny_checkpoint: Path, node_modules: Path, tmp_path: Path, family: str
) -> None:
    """Text of any family; with pictures, tiles too, of the family whose graphs transformers.js runs."""
    folder = tiny_checkpoint
    if family != "smolvlm":
        importlib.import_module(f"tiny.{family}").build(folder := tmp_path / "checkpoint")
    out = export_model(ExportOptions(str(folder), tmp_path / "bundle", quantize="fp32", gate=False)).folder
    bundle = open_bundle(out)
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "tokens.mjs").write_text(TOKENS_JS)
    pictures = family == "smolvlm"
    plain, shown = json.loads(run(tmp_path, "node", "tokens.mjs", "pictures" if pictures else "text"))
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))
    texts = [{"role": role, "content": "Is it  red?"} for role in ("user", "assistant", "user")]
    assert plain == prompter.encode(texts)[0].tolist()
    if pictures:
        images = [np.zeros((90, 200, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)]
        image, text = {"type": "image"}, "What is it?"
        messages = [
            {"role": "user", "content": [image, {"type": "text", "text": text}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {"role": "user", "content": [{"type": "text", "text": "And here? "}, image]},
        ]
        image = bundle.image_spec
        planned = [image.view_tokens(plan(w, h, image), (w, h)) for h, w, _ in map(np.shape, images)]
        assert shown == prompter.encode(messages, planned)[0].tolist()
