"""Checkpoints from strangers: what their files ask for is bounded before anything is allocated by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from edgevlm.checkpoint.families import read_image_spec, read_model, read_prompt_spec
from edgevlm.checkpoint.opening import open_model
from edgevlm.errors import EdgeVLMError


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def read(folder: Path) -> None:
    model, _ = read_model(open_model(str(folder)))
    read_image_spec(folder, model)
    read_prompt_spec(folder, model)


def text(**changes: Any) -> Callable[[Any], object]:
    return lambda d: d["text_config"].update(changes)


CONFIGS: list[tuple[Callable[[Any], object], str]] = [
    (text(max_position_embeddings=2**31 - 1), "decoder.context_length is 2147483647, expected 1 to 1048576"),
    (text(max_position_embeddings=2**31), "expected a whole number from 1 to 2147483647"),
    (text(num_hidden_layers=10**9), "num_hidden_layers = 1000000000, expected a whole number from 1 to 1000"),
    (text(hidden_size=10**9), "projector[1].rows is 1000000000, expected 1 to 262144"),
    (text(vocab_size=10**9), "decoder.vocab_size is 1000000000, expected 1 to 1048576"),
    (text(intermediate_size=10**9), "mlp.size is 1000000000, expected 1 to 262144"),
    (text(head_dim=10**9), "head_dim is 1000000000, expected 1 to 1024"),
    (text(rms_norm_eps=1e300), "rms_norm_eps = 1e+300, expected a positive number up to 1e+18"),
    (text(rms_norm_eps=2), "norm.eps is 2.0, expected 0 to 1"),
    (text(hidden_size=10**400), "a number has over 308 digits"),
    (text(rope_theta=10**300), "expected a positive number up to 1e+18"),
    (text(num_attention_heads=None, num_key_value_heads=10**9), "kv_heads is 1000000000"),
    (lambda d: d["vision_config"].update(image_size=4096, patch_size=1), "its tower takes 16777216 patches"),
    (lambda d: d["vision_config"].update(num_hidden_layers=10**9), "vision.num_layers is 1000000000, expected 1 to"),
    (lambda d: d.update(scale_factor=10**9), "scale is 1000000000, expected 1 to 64"),
    (lambda d: d.update(padding="x" * (9 << 20)), "is larger than 8388608 bytes"),
    (lambda d: d.update(text_config=[[[]]]), "text_config = [[[]]], expected an object"),
]


@pytest.mark.parametrize(("change", "sentence"), CONFIGS, ids=[case[1] for case in CONFIGS])
def test_a_config_is_bounded(folder: Path, change: Callable[[Any], object], sentence: str) -> None:
    edit(folder / "config.json", change)
    refused(lambda: read(folder), sentence)


def image(**changes: Any) -> Callable[[Any], object]:
    return lambda d: d.update(changes)


PROCESSORS: list[tuple[Callable[[Any], object], str]] = [
    (image(size={"longest_edge": 10**9}), "longest_edge = 1000000000, expected 1 to 16384"),
    (image(size={"longest_edge": 10**400}), "a number has over 308 digits"),
    (image(image_mean=[1e300, 0, 0]), "image_mean = [1e+300, 0, 0], expected three numbers"),
    (image(rescale_factor=-1), "rescale_factor = -1, expected a positive number"),
    (image(resample=[3]), "resample = [3], expected 1 (lanczos), 2 (bilinear) or 3 (bicubic)"),
]


@pytest.mark.parametrize(("change", "sentence"), PROCESSORS, ids=[case[1] for case in PROCESSORS])
def test_a_processors_settings_are_bounded(folder: Path, change: Callable[[Any], object], sentence: str) -> None:
    edit(folder / "preprocessor_config.json", change)
    refused(lambda: read(folder), sentence)


def test_null_counts_as_absent_as_in_transformers(folder: Path) -> None:
    edit(folder / "config.json", text(rms_norm_eps=None, hidden_act=None, rope_scaling=None))
    edit(folder / "preprocessor_config.json", image(do_rescale=None, do_normalize=None))
    before = read_model(open_model(str(folder)))[0].decoder
    assert before.norm is not None and before.norm.eps == 1e-6  # LlamaConfig's own
    read(folder)


FILES = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "generation_config.json")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("file", FILES)
def test_pipes_and_devices_are_no_files_of_a_checkpoint(folder: Path, file: str, kind: str) -> None:
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to("/dev/zero")
    with pytest.raises(EdgeVLMError) as caught:
        read(folder)
    named = {"pipe": "is a named pipe", "device": "is a device"}[kind]
    assert named in str(caught.value) or (kind == "device" and "a link" in str(caught.value)), str(caught.value)


def test_a_context_of_two_billion_positions_takes_no_memory(folder: Path) -> None:
    edit(folder / "config.json", text(max_position_embeddings=2**31 - 1))
    script = (
        "import pathlib, resource\nfrom edgevlm.export.pipeline import ExportOptions, export_model\n"
        "size = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) << 12\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)\n"
        f"export_model(ExportOptions({str(folder)!r}, pathlib.Path({str(folder / 'out')!r}), gate=False))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "context_length is 2147483647, expected 1 to 1048576" in done.stderr, done.stderr[-800:]
