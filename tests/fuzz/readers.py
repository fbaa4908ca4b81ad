"""Every reader of files from outside, as one table: what it reads, how that is damaged, and what must hold then.

To add a reader, add an entry to `READERS` and, where it reads a file that the seeds lack, that file to seeds.py. An
entry's `call` reads a folder in which one file is damaged and returns what was read. EdgeVLMError is what a damaged
file may cause; anything else fails. `judge` gets the folder, what was read and what the undamaged folder gives, and
raises AssertionError where a result is silently wrong: another reader, written by others, is asked where there is one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Mutation, of_bytes, of_header, of_json, of_json_lines, of_protobuf

from edgevlm.errors import EdgeVLMError

Judge = Callable[[Path, Any, Any], None]


def _nothing(folder: Path, found: Any, usual: Any) -> None:
    """What is accepted is what the file says; there is nothing to compare it with."""


@dataclass(frozen=True)
class Reader:
    name: str
    seed: str  # the folder among the seeds
    file: str  # in it, which is damaged
    mutate: Mutation
    call: Callable[[Path], Any]
    judge: Judge = _nothing
    quick: bool = True  # part of the short run

    @property
    def title(self) -> str:
        return f"{self.name} ({self.seed}/{self.file})"


def equal_json(folder: Path, found: Any, usual: Any, *, file: str) -> None:
    """JSON that Python reads as the undamaged file's gives the undamaged file's result."""
    damaged, original = ((where / file).read_bytes() for where in (folder, folder.with_name(folder.name + ".original")))
    try:
        same = json.loads(damaged) == json.loads(original)
    except ValueError:
        raise AssertionError("what Python does not read as JSON was accepted") from None
    assert not same or found == usual, "the same values gave another result"


def _json(name: str, seed: str, file: str, call: Callable[[Path], Any], *, quick: bool = True) -> Reader:
    def judge(folder: Path, found: Any, usual: Any) -> None:
        equal_json(folder, found, usual, file=file)

    return Reader(name, seed, file, of_json, call, judge, quick)


# --- checkpoints -----------------------------------------------------------------------------------------------


def read_config(folder: Path) -> Any:
    from edgevlm.checkpoint.families import read_model
    from edgevlm.checkpoint.opening import open_model
    from edgevlm.models.record import weight_tree

    spec, weights = read_model(open_model(str(folder)))
    shapes = {name: weights.read(name).shape for name in list(weights.names())[::20]}
    assert all(info.shape == shapes.get(name, info.shape) for name, info in weight_tree(spec).items())
    return spec


def read_specs(folder: Path) -> Any:
    from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
    from edgevlm.checkpoint.opening import open_model
    from edgevlm.inputs.preprocess import plan

    model, _ = read_model(open_model(str(folder)))
    image = read_image_spec(folder, model)
    for size in ((640, 480), (1, 5000)):
        _tried(lambda size=size: image.view_tokens(plan(*size, image), size))
    return image, read_prompt_spec(folder, model)


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except EdgeVLMError:
        return None


def read_safetensors(folder: Path) -> Any:
    from edgevlm.io.safetensors import SafetensorsFile

    file = SafetensorsFile(folder / "model.safetensors")
    return {name: _tried(lambda name=name: file.read(name)) for name in file.tensors}


def as_safetensors(folder: Path, found: Any, usual: Any) -> None:
    """As the safetensors package reads the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        theirs = load((folder / "model.safetensors").read_bytes())
    except (SafetensorError, KeyError, TypeError):  # bfloat16 and others that numpy lacks
        return
    assert theirs.keys() == found.keys(), "other tensors than the safetensors package finds"
    for name, values in found.items():
        if values is not None:
            assert np.array_equal(values, theirs[name].astype(np.float32), equal_nan=True), f"other values of {name}"


def read_adapter(folder: Path) -> Any:
    from edgevlm.checkpoint.opening import open_model

    merged = open_model(str(folder.parent / "checkpoint"), adapter=folder)
    return {name: _digest(merged.read(name)) for name in merged.names() if "layers.0.self_attn" in name}


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


# --- bundles ---------------------------------------------------------------------------------------------------


def sealed(folder: Path) -> Any:
    """The bundle with the manifest's sizes and hashes of its files put right, as a stranger would.

    A manifest that is damaged itself stays as it is.
    """
    from edgevlm.bundle.manifest import open_bundle

    path = folder / "manifest.json"
    if path.read_bytes() != (folder.with_name(f"{folder.name}.original") / "manifest.json").read_bytes():
        return open_bundle(folder)
    manifest = json.loads(path.read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))
    return open_bundle(folder)


def read_bundle(folder: Path) -> Any:
    """What `edgevlm info` shows, and both specs."""
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.commands.info import describe
    from edgevlm.inputs.preprocess import plan

    bundle = open_bundle(folder)
    describe(bundle)
    _tried(lambda: plan(3000, 2000, bundle.image_spec))
    return bundle.manifest.spec, bundle.image_spec, bundle.prompt_spec


def read_rules(folder: Path) -> Any:
    from edgevlm.inputs.preprocess import plan
    from edgevlm.inputs.prompt import Prompter

    bundle = sealed(folder)
    image, prompt = bundle.image_spec, bundle.prompt_spec
    views = _tried(lambda: image.view_tokens(plan(640, 480, image), (640, 480)))
    ids, layout = Prompter(prompt, bundle.path("tokenizer.json")).encode("Is it red?", [views] if views else [])
    return image, prompt, ids.tolist(), layout


def read_weights(folder: Path) -> Any:
    from edgevlm.bundle.weights import ShippedWeights

    shipped = ShippedWeights(sealed(folder))
    return {name: _tried(lambda name=name: _digest(shipped.read(name))) for name in shipped.names()}


def answer_with(engine: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from contextlib import closing

        from PIL import Image

        from edgevlm.generate.loop import GenerateOptions, Pipeline
        from edgevlm.runtimes import open_runtime

        bundle = sealed(folder)
        with closing(open_runtime(bundle, engine, threads=1)) as runtime:
            answer = Pipeline(bundle, runtime).answer(
                [Image.new("RGB", (64, 64), (200, 30, 30))], "Is it red?", GenerateOptions(max_tokens=2), max_tiles=1
            )
        return bundle.manifest.spec, bundle.image_spec, bundle.prompt_spec, answer.ids

    return call


def same_model_same_answer(folder: Path, found: Any, usual: Any) -> None:
    """A manifest that describes the same model, over the same files, leads to the same answer."""
    assert found[:3] != usual[:3] or found[3] == usual[3], "the same specs gave another answer"


def read_gguf(folder: Path) -> Any:
    from edgevlm.runtimes.gguf import GgufFile

    file = GgufFile(folder / "gguf" / "model.gguf")
    return {name: file.read(name) for name in file.tensors}


def as_gguf(folder: Path, found: Any, usual: Any) -> None:
    """As the gguf package reads the file, where it does."""
    import gguf

    try:
        theirs = gguf.GGUFReader(folder / "gguf" / "model.gguf").tensors
        values = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in theirs}
    except Exception:  # it is no reader of damaged files
        return
    assert values.keys() == found.keys(), "other tensors than the gguf package finds"
    for name, ours in found.items():
        assert np.array_equal(ours.reshape(-1), np.asarray(values[name], np.float32).reshape(-1), equal_nan=True), name


def read_package(folder: Path) -> Any:
    from edgevlm.runtimes.mil.evaluator import MilEvaluator
    from edgevlm.runtimes.mil.file import open_package

    evaluator = MilEvaluator(open_package(folder))
    function = evaluator.function()
    inputs = {}
    for name, kind in function.inputs.items():
        bounds = function.ranges.get(name) or ((1, 1),) * len(kind.shape)
        shape = [size or low for size, (low, _) in zip(kind.shape, bounds, strict=False)]
        if np.prod([float(size) for size in shape]) > 1e6:
            return None
        inputs[name] = np.zeros(shape, np.int32 if kind.dtype == "int32" else np.float32)
    state = evaluator.make_state()
    if sum(values.size for values in state.values()) > 1e7:
        return None
    return {name: values.shape for name, values in evaluator.run(inputs, state).items()}


# --- data files ------------------------------------------------------------------------------------------------


def read_scenes(folder: Path) -> Any:
    from edgevlm.evaluation.suites import SUITES, read_items

    return [(item.id, item.question, item.answers) for item in read_items(SUITES["scenes"], folder)]


def read_suite(folder: Path) -> Any:
    from edgevlm.evaluation.suites import SUITES, read_items

    suite = SUITES["jsonl"]
    items = read_items(suite, folder)
    return [(item.id, item.question, item.answers, suite.score(item, "yes").score) for item in items]


def read_answers(folder: Path) -> Any:
    from edgevlm.evaluation.answer_file import _read

    return _read(folder / "answers.jsonl", {"suite": "scenes", "version": 1})[1]


def read_figures(folder: Path) -> Any:
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.report.gather import Findings, Member, _load, read_eval
    from edgevlm.report.page import page

    found = read_eval(_load(folder / "eval.json"), "eval.json")
    member = Member("b", open_bundle(folder.with_name("bundle.original")), ("onnxruntime",))
    page(Findings((member,), (), (found,), ()))
    return found


def read_records(folder: Path) -> Any:
    from edgevlm.train.records import Records

    records = Records(folder / "records.jsonl", skip_bad=True)
    return [records[i] for i in range(len(records))]


def read_examples(folder: Path) -> Any:
    from edgevlm.export.calibrate.data import read_source

    return [
        [(e.question, e.answer) for e in examples] for examples in read_source(str(folder / "examples.jsonl")).pictures
    ]


PROCESSOR = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
READERS = (
    _json("checkpoint's config", "checkpoint", "config.json", read_config),
    *(_json("checkpoint's processor", "checkpoint", file, read_specs) for file in PROCESSOR),
    Reader("tokenizer", "checkpoint", "tokenizer.json", of_json, read_specs, quick=False),
    Reader("chat template", "checkpoint", "chat_template.jinja", of_bytes, read_specs, quick=False),
    _json("index of shards", "sharded", "model.safetensors.index.json", read_config),
    Reader("safetensors", "tensors", "model.safetensors", of_header, read_safetensors, as_safetensors),
    _json("adapter's config", "adapter", "adapter_config.json", read_adapter),
    Reader("adapter's weights", "adapter", "adapter_model.safetensors", of_header, read_adapter),
    *(
        Reader(f"config of {family}", family, "config.json", of_json, read_config, quick=False)
        for family in ("qwen2_5_vl", "internvl", "llava15", "nanovlm", "deepseek_vl")
    ),
    *(
        Reader(f"processor of {family}", family, "preprocessor_config.json", of_json, read_specs, quick=False)
        for family in ("qwen2_5_vl", "internvl", "llava15", "deepseek_vl")
    ),
    _json("manifest", "bundle", "manifest.json", read_bundle),
    _json("preprocess.json", "bundle", "preprocess.json", read_rules),
    _json("prompt.json", "bundle", "prompt.json", read_rules),
    _json("weights.json", "bundle", "weights.json", read_weights),
    Reader("manifest, answered", "bundle", "manifest.json", of_json, answer_with("onnxruntime"), same_model_same_answer,
           quick=False),
    Reader("preprocess.json, answered", "bundle", "preprocess.json", of_json, answer_with("onnxruntime"), quick=False),
    Reader("manifest on eager", "bundle", "manifest.json", of_json, answer_with("eager"), same_model_same_answer,
           quick=False),
    Reader("manifest on coreml", "bundle", "manifest.json", of_json, answer_with("coreml"), same_model_same_answer,
           quick=False),
    *(
        Reader("onnx graph", "bundle", f"onnx/{file}.onnx", of_protobuf, answer_with("onnxruntime"), quick=False)
        for file in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    ),
    Reader("gguf", "bundle", "gguf/model.gguf", of_bytes, read_gguf, as_gguf),
    Reader("mlpackage's program", "package", "Data/com.apple.CoreML/model.mlmodel", of_protobuf, read_package),
    _json("mlpackage's manifest", "package", "Manifest.json", read_package),
    Reader("mlpackage's weights", "package", "Data/com.apple.CoreML/weights/weight.bin", of_bytes, read_package),
    Reader("questions of Scenes", "scenes", "questions.jsonl", of_json_lines, read_scenes),
    _json("head of Scenes", "scenes", "dataset.json", read_scenes),
    Reader("questions of a suite", "data", "questions.jsonl", of_json_lines, read_suite),
    Reader("answers", "data", "answers.jsonl", of_json_lines, read_answers),
    _json("figures", "data", "eval.json", read_figures),
    Reader("records", "data", "records.jsonl", of_json_lines, read_records),
    Reader("examples", "data", "examples.jsonl", of_json_lines, read_examples),
)  # fmt: skip


def damage(reader: Reader, data: bytes, seed: int, number: int) -> bytes:
    """Input `number` of a run: the same for the same seed."""
    return reader.mutate(data, random.Random(f"{seed}:{reader.title}:{number}"))
