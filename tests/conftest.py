"""Fixtures that several test modules share."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """tests/build_smolvlm.py as a module."""
    name = "build_smolvlm"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_checkpoint(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SmolVLM (64 px, 16 image tokens, vocabulary 512, tied, float32). Do not change it."""
    folder: Path = builder.build_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
    return folder


@pytest.fixture(scope="session")
def checkpoint_256m(builder: ModuleType, pytestconfig: pytest.Config) -> Path:
    """The 256M shape with a real decoder, 456 MB in pytest's cache from run to run. Keep it as it is."""
    assert pytestconfig.cache is not None
    source = hashlib.sha256(Path(__file__).with_name("build_smolvlm.py").read_bytes()).hexdigest()
    folder: Path = builder.build_256m(pytestconfig.cache.mkdir("checkpoints") / f"smolvlm-256m-{source[:8]}")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SmolVLM as an fp32 ONNX bundle. Do not change it."""
    from edgevlm.export.pipeline import ExportOptions, export_model

    out = tmp_path_factory.mktemp("bundle") / "tiny-fp32"
    return export_model(ExportOptions(str(tiny_checkpoint), out, quantize="fp32", gate=False)).folder


TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config) -> Path:
    """node_modules with transformers.js, from npm's registry, in pytest's cache from run to run (475 MB)."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    assert pytestconfig.cache is not None
    place: Path = pytestconfig.cache.mkdir(f"node-{TRANSFORMERS_JS.rpartition('@')[2]}")
    with FileLock(place / "lock"):
        if not (place / "done").exists():
            # Scripts would fetch CUDA from elsewhere; the engine for CPUs lies in the package.
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", TRANSFORMERS_JS]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"npm could not install {TRANSFORMERS_JS}: {done.stderr.strip()[-200:]}")
            (place / "done").touch()
    return place / "node_modules"


@pytest.fixture(scope="session")
def gguf_checkpoint(builder: ModuleType, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SmolVLM with "\\n\\n" as one token, as SmolVLM has it and llama.cpp needs it. Do not change it."""
    folder: Path = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("checkpoint") / "tiny-gguf")
    builder.join_newlines(folder)
    return folder


@pytest.fixture(scope="session")
def gguf_bundle(gguf_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """gguf_bundle(quantize, model="tiny" or "default"): ONNX and GGUF, made once. Do not change it."""
    made: dict[tuple[str, str], Bundle] = {}

    def make(quantize: str, model: str = "tiny") -> Bundle:
        from edgevlm.bundle.manifest import open_bundle
        from edgevlm.export.pipeline import ExportOptions, export_model

        if (quantize, model) not in made:
            source = str(gguf_checkpoint) if model == "tiny" else model
            out = tmp_path_factory.mktemp("gguf") / f"{model}-{quantize}"
            options = ExportOptions(source, out, targets=("onnx", "gguf"), quantize=quantize, gate=False)
            made[quantize, model] = open_bundle(export_model(options).folder)
        return made[quantize, model]

    return make
