"""Opening bundles: what does not match is refused in one sentence. Writing them: whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevlm.bundle.manifest import open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes import open_runtime


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


def flip(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return apply


def shorten(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def rename_file(data: dict, new: str) -> None:
    data["files"][new] = data["files"].pop("tokenizer.json")


CASES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "is a checkpoint, not a bundle: export it first"),
    ("not json", lambda f: (f / "manifest.json").write_text("{"), "is not valid JSON"),
    ("a list", lambda f: (f / "manifest.json").write_text("[]"), "has schema None, and this edgevlm reads schema 2"),
    ("old schema", edit(lambda d: d.update(schema=1)), "has schema 1, and this edgevlm reads schema 2"),
    ("unknown field", edit(lambda d: d.update(extra=1)), "unknown field 'extra'"),
    ("no spec", edit(lambda d: d.pop("spec")), "lacks the field 'spec'"),
    ("spec of words", edit(lambda d: d["spec"]["vision"].update(num_layers="two")), "num_layers should be int"),
    ("recipe of words", edit(lambda d: d["recipe"].update(decoder=10**30)), "recipe.decoder is 1000"),
    ("missing file", lambda f: (f / "onnx/embed_tokens.onnx").unlink(), "lacks its file 'onnx/embed_tokens.onnx'"),
    ("truncated", shorten("onnx/embed_tokens.onnx_data"), "it is damaged or incomplete"),
    ("changed spec", flip("preprocess.json"), "was changed after the export"),
    ("changed graph", flip("onnx/vision_encoder.onnx"), "was changed after the export"),
    ("traversal", edit(lambda d: rename_file(d, "../../etc/passwd")), "is outside the bundle"),
    ("absolute", edit(lambda d: rename_file(d, "/etc/passwd")), "is outside the bundle"),
    ("drive", edit(lambda d: rename_file(d, "C:\\x")), "is outside the bundle"),
]


@pytest.mark.parametrize(("break_it", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refusals(bundle: Path, break_it: Callable[[Path], object], sentence: str) -> None:
    break_it(bundle)
    with pytest.raises(EdgeVLMError) as error:
        open_bundle(bundle)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_link_to_the_outside_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (bundle / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(EdgeVLMError, match=r"'tokenizer\.json' in .* is a link to the outside"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["onnx/more.onnx_data", "folder"])
def test_unlisted_link_to_the_outside_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    """A graph may name it as its external data."""
    (bundle / name).symlink_to(tmp_path if name == "folder" else __file__)
    with pytest.raises(EdgeVLMError, match=f"'{name}' in .* is a link to the outside"):
        open_bundle(bundle)
    (bundle / name).unlink()
    (bundle / "again").symlink_to("onnx")
    open_bundle(bundle)


def snapshot_of(folder: Path, cache: Path) -> Path:
    """`folder` as huggingface_hub keeps it in a cache: links to files that are named by their hash."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_snapshot_in_the_hubs_cache_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "README.md").write_text("not in the manifest")
    snapshot = snapshot_of(bundle, tmp_path / "models--owner--name")
    ids = np.arange(9)
    logits = []
    for folder in (bundle, snapshot):  # the engine follows the links as well
        with closing(open_runtime(open_bundle(folder, "hash"), "onnxruntime")) as runtime:
            logits.append(runtime.decoder.forward(runtime.decoder.embed(ids)))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("cache", ["other--owner--name", "models--owner--name"])
def test_snapshot_of_another_cache_is_refused(bundle: Path, tmp_path: Path, cache: str) -> None:
    snapshot = snapshot_of(bundle, tmp_path / cache)
    if cache.startswith("models"):  # links to a file of the same cache that is no blob, and of another model's
        other = tmp_path / "models--owner--other" / "blobs"
        other.mkdir(parents=True)
        (snapshot / "tokenizer.json").resolve().rename(other / "tokenizer.json")
        (snapshot / "tokenizer.json").unlink()
        (snapshot / "tokenizer.json").symlink_to(other / "tokenizer.json")
    with pytest.raises(EdgeVLMError, match=r"is a link to the outside.*edgevlm pull"):
        open_bundle(snapshot)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="There is no bundle"):
        open_bundle(tmp_path / "nothing")


def test_full_check_hashes_large_files_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.bundle.manifest.SMALL", 0)
    flip("onnx/decoder_model_merged.onnx_data")(bundle)
    open_bundle(bundle)
    with pytest.raises(EdgeVLMError, match="was changed after the export"):
        open_bundle(bundle, check="hash")


def test_shipped_weights_are_what_the_onnx_package_reads(bundle: Path) -> None:
    shipped = ShippedWeights(open_bundle(bundle))
    model = onnx.load(bundle / "onnx/vision_encoder.onnx")
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert np.array_equal(shipped.read("vision.post_norm.weight"), arrays["vision.post_norm.weight"])
    assert np.array_equal(shipped.read("vision.layers.1.fc2.weight"), arrays["vision.layers.1.fc2.weight"].T)
    packed = arrays["vision.layers.0.q+vision.layers.0.k+vision.layers.0.v.weight"]
    assert np.array_equal(shipped.read("vision.layers.0.k.weight"), np.split(packed, 3, axis=1)[1].T)


def test_rows_of_a_table_are_those_of_the_whole_table(bundle: Path) -> None:
    shipped, ids = ShippedWeights(open_bundle(bundle)), np.array([7, 0, 7, 511])
    for name in ("decoder.embed.weight", "vision.layers.1.fc2.weight"):  # by rows, and by columns
        some = ids % len(shipped.read(name))
        assert np.array_equal(shipped.rows(name, some), shipped.read(name)[some])
    with pytest.raises(EdgeVLMError, match="512 rows, and number 512 is asked for"):
        shipped.rows("decoder.embed.weight", np.array([512]))


def test_hostile_table_is_one_sentence(bundle: Path) -> None:
    opened = open_bundle(bundle)
    table = json.loads((bundle / "weights.json").read_text())
    table["tensors"]["vision.post_norm.weight"]["codes"]["offset"] = 10**12
    table["tensors"]["decoder.norm.weight"]["shape"] = [-1]
    table["tensors"]["vision.post_norm.bias"]["kind"] = "int3"
    (bundle / "weights.json").write_text(json.dumps(table))
    shipped = ShippedWeights(opened)
    for name in ("vision.post_norm.weight", "decoder.norm.weight", "vision.post_norm.bias"):
        with pytest.raises(EdgeVLMError, match="does not fit its file"):
            shipped.read(name)
    with pytest.raises(EdgeVLMError, match=r"lacks the weight 'decoder\.head\.weight'"):
        shipped.read("decoder.head.weight")
