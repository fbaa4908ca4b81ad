"""Bundles, questions about raw pictures, and Python's answers, for the Kotlin SDK to give the same.

    python tests/android_answers.py FOLDER [CHECKPOINT]

writes FOLDER/answers.json beside bundles of small models, and of CHECKPOINT in int8 and int4. Tokens of quantized
models are those of one version of ONNX Runtime: run it with the version that the Kotlin SDK has.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny.common import picture  # noqa: E402

from edgevlm.bundle.manifest import open_bundle  # noqa: E402
from edgevlm.errors import EdgeVLMError  # noqa: E402
from edgevlm.export.pipeline import ExportOptions, export_model  # noqa: E402
from edgevlm.generate.answer import Answer  # noqa: E402
from edgevlm.generate.chat import AskOptions, Chat, put  # noqa: E402
from edgevlm.generate.loop import Pipeline  # noqa: E402
from edgevlm.generate.sampling import Sampler  # noqa: E402
from edgevlm.runtimes import open_runtime  # noqa: E402
from edgevlm.runtimes.ort.session import import_onnxruntime  # noqa: E402

# What each has that others lack: M-RoPE, windows and masks of pictures, states that are replaced, a prefix, embeddings
# at several levels, overwritten matrices, one view, a convolutional tower, layers that read others' keys.
FAMILIES = (
    "smolvlm", "qwen2_5_vl", "gemma3", "lfm2_vl", "paligemma", "qwen3_vl", "qwen3_5", "internvl", "llava15", "fast_vlm",
)  # fmt: skip
PORTABLE = (
    "gemma3",
    "lfm2_vl",
    "paligemma",
    "qwen3_5",
)  # on ONNX Runtime before 1.30
TOKENS = 64
SIZES = ((70, 50), (48, 96), (130, 64), (64, 64), (33, 41))
SAMPLED = (
    AskOptions(16, temperature=0.8, seed=7, lookup=False, ignore_stop=True),
    AskOptions(16, temperature=1.5, top_k=20, top_p=0.8, seed=2**40 + 3, lookup=False, ignore_stop=True),
    AskOptions(16, repetition_penalty=1.3, lookup=False, ignore_stop=True),
)


def make(folder: Path, large: Path | None) -> None:
    import_onnxruntime()  # first, without its telemetry
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    for number, image in enumerate(pictures):
        (folder / f"{number}.rgb").write_bytes(np.asarray(image.convert("RGB")).tobytes())
    cases = [_case(_tiny(folder, name), pictures, portable=name in PORTABLE) for name in FAMILIES]
    small = folder / "smolvlm-checkpoint"
    cases.append(_case(_export(small, folder / "smolvlm-int8", quantize="int8"), pictures))
    cases.append(_case(_export(small, folder / "smolvlm-cache", quantize="fp32", kv_cache="int8"), pictures))
    for form in ("int8", "int4") if large else ():
        cases.append(_case(_export(large, folder / f"large-{form}", quantize=form), pictures, large=True))
    said = {
        "onnxruntime": import_onnxruntime().__version__,
        "pictures": [list(image.size) for image in pictures],
        "models": cases,
    }
    (folder / "answers.json").write_text(json.dumps(said), "utf-8")


def _export(checkpoint: Path, bundle: Path, **options: Any) -> Path:
    if not bundle.exists():
        export_model(ExportOptions(str(checkpoint), bundle, gate=False, **options))
    return bundle


def _tiny(folder: Path, name: str) -> Path:
    checkpoint, bundle = folder / f"{name}-checkpoint", folder / name
    if not bundle.exists():
        if name == "smolvlm":
            importlib.import_module("build_smolvlm").build_tiny(checkpoint)
        else:
            importlib.import_module(f"tiny.{name}").build(checkpoint)
    return _export(checkpoint, bundle, quantize="fp32")


def _case(path: Path, pictures: list[Image.Image], *, portable: bool = False, large: bool = False) -> dict[str, Any]:
    """large: fewer questions, about one tile."""
    bundle = open_bundle(path)
    runtime = open_runtime(bundle, threads=1, portable=portable)
    greedy = AskOptions(TOKENS, lookup=False, ignore_stop=True, max_tiles=1 if large else None)
    case: dict[str, Any] = {"bundle": str(path), "portable": portable}
    asked = [([0], "What is this?"), ([0], "What colour is it?"), ([1], "What is this?"), ([], "Say something."),
             ([2, 3], "Compare them."), ([2, 3], "Which is larger?"), ([4], "Ünïcode 😀?")]  # fmt: skip
    asked = asked[:2] if large else asked
    for reuse in (False, True):
        pipeline = Pipeline(bundle, runtime, reuse=reuse)
        rows = case["reused" if reuse else "alone"] = []
        for places, question in asked:
            rows += _asked(pipeline, pictures, places, question, greedy)
    pipeline = Pipeline(bundle, runtime, reuse=False)
    sampled = () if large else SAMPLED
    case["sampled"] = [row for each in sampled for row in _asked(pipeline, pictures, [0], "What is this?", each)]
    case["chat"] = _chat(Pipeline(bundle, runtime), pictures, greedy.max_tiles)
    runtime.close()
    return case


def _asked(
    pipeline: Pipeline, pictures: list[Image.Image], places: list[int], question: str, options: AskOptions
) -> list[dict[str, Any]]:
    with _margins() as margins:
        try:
            answer = put(pipeline, question, [pictures[place] for place in places], options).answer
        except EdgeVLMError:  # a model of one picture, or a context that is too short
            return []
    return [_row(places, question, options, answer, margins)]


def _chat(pipeline: Pipeline, pictures: list[Image.Image], max_tiles: int | None) -> list[dict[str, Any]]:
    """Five turns; behind the third one is taken back, and asked otherwise."""
    chat, rows = Chat(lambda: pipeline), list[dict[str, Any]]()
    options = AskOptions(8, lookup=False, max_tiles=max_tiles)
    turns = [
        ([0], "What is this?"),
        ([], "And its colour?"),
        ([], "How many?"),
        ([], "Is it large?"),
        ([], "Thank you."),
    ]
    for number, (places, question) in enumerate(turns):
        with _margins() as margins:
            try:
                answer = chat.answer(question, [pictures[place] for place in places], options)
            except EdgeVLMError:  # a context that is too short
                break
        rows.append(_row(places, question, options, answer, margins) | {"rewind": 0, "used": chat.tokens_used})
        if number == 2:
            chat.rewind(1)
            rows[-1]["rewind"] = 1
    return rows


def _row(places: list[int], question: str, options: AskOptions, answer: Answer, margins: list[float]) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "ignore_stop", "max_tiles")
    return {
        "pictures": places, "question": question, "options": {name: getattr(options, name) for name in names},
        "ids": answer.ids, "text": answer.text, "finish": answer.finish_reason, "margins": margins,
        "prompt_tokens": answer.timings.prompt_tokens, "reused_tokens": answer.timings.reused_tokens,
        "seconds": [getattr(answer.timings, name) for name in ("preprocess", "encode", "prefill", "decode")],
    }  # fmt: skip


@contextmanager
def _margins() -> Iterator[list[float]]:
    """By how much the most likely token of each choice is before the next."""
    found, choose = list[float](), Sampler.choose

    def recorded(self: Sampler, logits: Any) -> int:
        second, first = np.partition(logits, -2)[-2:]
        found.append(float(first - second))
        return choose(self, logits)

    Sampler.choose = recorded  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Sampler.choose = choose  # type: ignore[method-assign]


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
