"""Bundles from strangers: what their files ask for is bounded, and they must agree with each other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from refusals import refused

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.commands.info import describe
from edgevlm.generate.loop import Pipeline
from edgevlm.inputs.preprocess import plan
from edgevlm.runtimes import open_runtime

Change = Callable[[Any], object]


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(folder: Path, file: str, change: Change) -> None:
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))
    if file != "manifest.json":
        seal(folder)


def seal(folder: Path) -> None:
    """Put the manifest's sizes and hashes right, as a stranger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


MANIFESTS: list[tuple[str, Change, str]] = [
    ("layers", lambda d: d["spec"]["decoder"].update(layers=[0] * 2000), "asks for 2000 layers, expected 1 to 1000"),
    ("tower", lambda d: d["spec"]["vision"].update(num_layers=10**9), "vision.num_layers is 1000000000, expected 1 to"),
    ("width", lambda d: d["spec"]["decoder"].update(hidden_size=10**9), "decoder.hidden_size is 1000000000, expected"),
    ("context", lambda d: d["spec"]["decoder"].update(context_length=2**31 - 1), "context_length is 2147483647"),
    ("patches", lambda d: d["spec"]["vision"].update(patch_size=10**6), "vision.patch_size is 1000000, expected 1 to"),
    ("heads", lambda d: d["spec"]["decoder"]["blocks"][0]["mixers"][0].update(heads=0), "heads is 0, expected 1 to"),
    ("act", lambda d: d["spec"]["decoder"]["blocks"][0]["mlp"].update(act="x"), "mlp.act is 'x', expected 'silu' or"),
    ("theta", lambda d: d["spec"]["decoder"]["ropes"]["main"].update(theta=0), "theta is 0.0, expected 1e-18 to 1e+18"),
    ("long number", lambda d: d["spec"]["vision"].update(num_layers=10**400), "a number has over 308 digits"),
    ("infinity", lambda d: d["spec"]["decoder"].update(embed_scale=float("inf")), "Infinity is no number of JSON"),
    (
        "text",
        lambda d: d["model"].update(name="x" * 70_000),
        "model: name has 70000 characters, expected at most 65536",
    ),
    ("gate", lambda d: d.update(gate={"rows": [3]}), "gate is {'rows': [3]}, expected an object with passed and rows"),
    ("row", lambda d: d.update(gate={"passed": True, "rows": [{"target": 1}]}), "gate.rows[0] is {'target': 1}, expec"),
    ("layer", lambda d: d.update(gate={"passed": True, "rows": [], "layers": {"a": {"b": "c"}}}), "gate.layers.a is"),
    ("form", lambda d: d["recipe"].update(vision={"kind": "int3"}), "recipe.vision is {'kind': 'int3'}, expected"),
]


@pytest.mark.parametrize(("change", "sentence"), [case[1:] for case in MANIFESTS], ids=[case[0] for case in MANIFESTS])
def test_a_manifest_is_bounded(folder: Path, change: Change, sentence: str) -> None:
    edit(folder, "manifest.json", change)
    refused(lambda: open_bundle(folder), sentence)


SPECS: list[tuple[str, Change, str]] = [
    (
        "preprocess.json",
        lambda d: d["rule"].update(side=1),
        "and manifest.json disagree: the rule TilesThenWhole(side=1",
    ),
    ("preprocess.json", lambda d: d["rule"].update(max_edge=10**9), "max_edge = 1000000000, expected 1 to 16384"),
    (
        "preprocess.json",
        lambda d: d.update(token_pixels=8),
        "disagree: (8, 8) image tokens in 64 x 64 pixels, expected",
    ),
    ("preprocess.json", lambda d: d.update(mean=[1e40, 0, 0]), "mean[0] is 1e+40, expected at most 1e+18"),
    ("prompt.json", lambda d: d["chat"].update(prefix="x" * 20_000_000), "is larger than 1048576 bytes"),
    ("prompt.json", lambda d: d["chat"].update(prefix="x" * 100_000), "prefix has 100000 characters"),
    ("prompt.json", lambda d: d["picture"].update(tile="x" * 2000), "picture.tile = 'xxx"),
    ("prompt.json", lambda d: d.update(stop_ids=list(range(300))), "expected 1 to 256 token ids"),
    ("prompt.json", lambda d: d.update(stop_ids=[10**6]), "disagree: the token 1000000, expected ids below 512"),
    ("prompt.json", lambda d: d.update(image_token_id=3), "disagree: image_token_id 3, expected"),
]


@pytest.mark.parametrize(("file", "change", "sentence"), SPECS)
def test_specs_are_bounded_and_those_of_the_manifests_model(
    folder: Path, file: str, change: Change, sentence: str
) -> None:
    edit(folder, file, change)
    bundle = open_bundle(folder)
    refused(lambda: (bundle.image_spec, bundle.prompt_spec), sentence)


def test_tiles_are_bounded_before_they_are_cut(folder: Path) -> None:
    """tile_size 1 with huge edges would make 200 million tiles."""
    edit(folder, "manifest.json", lambda d: d["spec"]["vision"].update(image_size=8, patch_size=4))
    edit(folder, "preprocess.json", lambda d: d["rule"].update(side=8, longest_edge=16384, max_edge=16384))
    edit(folder, "preprocess.json", lambda d: d.update(token_pixels=8))
    image = open_bundle(folder).image_spec
    refused(lambda: plan(640, 480, image), "would be cut into 3145728 tiles of 8 x 8 pixels, at most 1024 are made")


def test_opening_a_hostile_bundle_takes_little_memory(folder: Path) -> None:
    edit(folder, "manifest.json", lambda d: d["spec"]["decoder"].update(layers=[0] * 500_000))
    script = (
        f"from edgevlm.bundle.manifest import open_bundle\nfrom edgevlm.errors import EdgeVLMError\n"
        f"import resource, pathlib\nsize = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) << 12\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20),) * 2)\n"
        f"try:\n    open_bundle({str(folder)!r})\nexcept EdgeVLMError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "asks for 500000 layers" in done.stdout, done.stderr[-500:]


@pytest.mark.parametrize("file", ["manifest.json", "preprocess.json", "onnx/embed_tokens.onnx"])
def test_pipes_and_devices_are_no_files_of_a_bundle(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(lambda: open_bundle(folder), "lacks its file" if file != "manifest.json" else "not a bundle")


def answer(folder: Path, engine: str = "onnxruntime") -> str:
    bundle = open_bundle(folder)
    runtime = open_runtime(bundle, engine, threads=1)
    try:
        return Pipeline(bundle, runtime).answer([Image.new("RGB", (64, 64))], "What?", max_tiles=1).text
    finally:
        runtime.close()


GRAPHS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "another width",
        lambda f: edit(f, "manifest.json", lambda d: d["spec"]["decoder"].update(vocab_size=500)),
        "disagree: 'decoder' has 'logits' as float32 ['batch_size', 1, 512], expected float32 ['batch_size', 1, 500]",
    ),
    (
        "more layers",
        lambda f: edit(f, "manifest.json", lambda d: d["spec"]["decoder"].update(layers=[0] * 4)),
        "disagree: 'decoder' has no 'past_key_values.3.key'",
    ),
    (
        "exchanged graphs",
        lambda f: swap(f, "onnx/embed_tokens.onnx", "onnx/vision_encoder.onnx"),
        "disagree: 'vision_encoder' has no 'pixel_values'",
    ),
    (
        "weights elsewhere",
        lambda f: graph(f, "embed_tokens", lambda m: move_weights(m, "../manifest.json")),
        "it names the weights '../manifest.json', which the manifest does not list",
    ),
    (
        "weights beyond the end",
        lambda f: graph(f, "embed_tokens", lambda m: move_weights(m, None, str(1 << 40))),
        "it names weights beyond the end of 'embed_tokens.onnx_data'",
    ),
    (
        "a reshape that fails when it runs",
        lambda f: graph(f, "embed_tokens", double),
        "The bundle's graphs and its manifest disagree: onnxruntime failed on",
    ),
]


def swap(folder: Path, first: str, second: str) -> None:
    one, two = (folder / first).read_bytes(), (folder / second).read_bytes()
    (folder / first).write_bytes(two)
    (folder / second).write_bytes(one)
    seal(folder)


def graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    path = folder / "onnx" / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    seal(folder)


def move_weights(model: onnx.ModelProto, location: str | None, offset: str | None = None) -> None:
    entries = next(tensor.external_data for tensor in model.graph.initializer if tensor.external_data)
    for entry in entries:
        if entry.key == "location" and location is not None:
            entry.value = location
        if entry.key == "offset" and offset is not None:
            entry.value = offset


def double(model: onnx.ModelProto) -> None:
    """Reshape the embeddings to twice as many positions as there are, which is seen only when it runs."""
    last = next(node for node in model.graph.node if "inputs_embeds" in node.output)
    last.output[0] = "rows"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 1]), "twice"))
    for kind, inputs, output in (
        ("Shape", ["rows"], "size"),
        ("Mul", ["size", "twice"], "doubled"),
        ("Reshape", ["rows", "doubled"], "inputs_embeds"),
    ):
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [output]))


@pytest.mark.parametrize(("damage", "sentence"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graphs_that_are_not_the_manifests_are_one_sentence(
    folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folder)
    refused(lambda: answer(folder), sentence)


def test_features_that_do_not_fit_the_prompt_are_one_sentence(folder: Path) -> None:
    bundle = open_bundle(folder)
    runtime = open_runtime(bundle, threads=1)
    encoder = runtime.encoder
    given = encoder.encode
    encoder.encode = lambda views: [rows[:-1] for rows in given(views)]  # type: ignore[method-assign]
    refused(
        lambda: Pipeline(bundle, runtime).answer([Image.new("RGB", (64, 64))], "What?", max_tiles=1),
        "The encoder gave features of shape (15, 64), expected (16, 64): the bundle's graphs and its manifest disagree",
    )
    runtime.close()


def test_weights_of_another_shape_are_one_sentence_on_eager(folder: Path) -> None:
    edit(folder, "weights.json", lambda d: d["tensors"]["decoder.layers.0.o.weight"].update(shape=[3, 3]))
    refused(lambda: answer(folder, "eager"), "The entry of 'decoder.layers.0.o.weight' in weights.json does not fit")


def test_an_undamaged_bundle_still_answers(folder: Path) -> None:
    seal(folder)
    bundle: Bundle = open_bundle(folder)
    assert answer(folder) == answer(folder, "eager") and "3 layers of 64" in describe(bundle)
