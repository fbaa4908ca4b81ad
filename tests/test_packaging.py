"""What is shipped, what depends on what, and that a device needs nothing else."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]

# Verbs that export or compare with an original import the exporter when they run, and not before.
MAY_IMPORT_EXPORT_LAZILY = {
    "edgevlm/commands/export.py",
    "edgevlm/commands/info.py",
    "edgevlm/commands/verify.py",
    "edgevlm/commands/demo.py",
}
READING = "edgevlm/checkpoint/"  # reads a checkpoint, for the exporter and for training, with what the exporter may use
TRAINING = "edgevlm/train/"  # reads checkpoints with the exporter, and needs torch
WITNESS = "edgevlm/verify/peft_merge.py"  # peft's own merge: a program of its own process, which nothing imports
SERVING = "edgevlm/serve/"  # imports its packages, and only the verb imports it, when it runs
SERVER_PACKAGES = {"starlette", "uvicorn", "h11", "prometheus_client"}
# Verbs that train import it when they run.
MAY_IMPORT_TRAINING_LAZILY = {f"edgevlm/commands/{verb}.py" for verb in ("train", "distill", "compose")}
BASE_PACKAGES = {"numpy", "PIL", "tokenizers", "click", "edgevlm"}
# Engines, and what only long work shows: imported when they are asked for.
LAZY_PACKAGES = {"onnxruntime", "llama_cpp", "coremltools", "rich", "huggingface_hub", "pyarrow", "onnx", "av"}
LAZY_PACKAGES |= {"llguidance", "ray"}


def sources() -> list[Path]:
    return [path for folder in ("edgevlm", "export", "runtimes") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it stands in a function) for each import of a file, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy.update(ast.walk(node))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what depends on what"
            yield node.module or "", node in lazy
            yield from ((f"{node.module}.{alias.name}", node in lazy) for alias in node.names)


def test_every_package_folder_is_listed() -> None:
    found = set()
    for folder, package in (
        ("edgevlm", "edgevlm"),
        ("export", "edgevlm.export"),
        ("runtimes", "edgevlm.runtimes"),
    ):
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has modules and no __init__.py"
    assert found == set(PACKAGES)
    assert FOLDERS == {"edgevlm.export": "export", "edgevlm.runtimes": "runtimes"}


@pytest.mark.heavy
def test_a_device_never_imports_the_exporter() -> None:
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for module, lazy in imports(path):
            assert module.split(".")[0] not in ("export", "runtimes"), f"{name}: write edgevlm.{module}"
            if name.startswith(("export/", READING, TRAINING)):
                continue
            if not f"{module}.".startswith(("edgevlm.export.", "edgevlm.checkpoint.")):
                continue
            assert lazy and name in MAY_IMPORT_EXPORT_LAZILY, f"{name} imports {module}"


def test_only_training_imports_torch_or_transformers() -> None:
    heavy = {"torch", "transformers", "safetensors", "accelerate", "peft", "trl", "optimum", "torchvision"}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith((TRAINING, WITNESS)):
            for module, lazy in imports(path):
                assert module != "edgevlm.verify.peft_merge", name
                assert module.split(".")[0] not in heavy, f"{name} imports {module}"
                if module.startswith("edgevlm.train"):
                    assert lazy and name in MAY_IMPORT_TRAINING_LAZILY, f"{name} imports {module}, which needs torch"


def test_a_device_imports_only_the_base_install() -> None:
    allowed = BASE_PACKAGES | set(sys.stdlib_module_names)
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("export/", READING, TRAINING, WITNESS)):
            for module, lazy in imports(path):
                top = module.split(".")[0]
                server = name.startswith(SERVING) and top in SERVER_PACKAGES
                assert top in allowed or (lazy and top in LAZY_PACKAGES) or server, f"{name} imports {module}"
                if module.startswith("edgevlm.serve"):
                    assert name.startswith(SERVING) or (lazy and name == "edgevlm/commands/serve.py"), name


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without build leftovers: setuptools would ship what an older build left in build/lib."""
    tree = tmp_path_factory.mktemp("source")
    for name in ("edgevlm", "export", "runtimes"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def build(tree: Path, out: Path, what: str) -> Path:
    """The wheel or sdist that a build front end would get."""
    out.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as b; b.build_{what}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.mark.heavy
def test_the_wheel_holds_edgevlm_and_nothing_beside_it(source_tree: Path, tmp_path: Path) -> None:
    sdist = build(source_tree, tmp_path / "sdist", "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    wheel = build(next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel", "wheel")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert {name.split("/")[0] for name in names} == {"edgevlm", f"edgevlm-{__version__}.dist-info"}

    shipped = {name for name in names if name.startswith("edgevlm/")}
    expected = {
        (
            Path("edgevlm") / path.relative_to(ROOT / "edgevlm" if path.is_relative_to(ROOT / "edgevlm") else ROOT)
        ).as_posix()
        for path in sources()
    }
    assets = ROOT / "edgevlm" / "assets"
    expected |= {path.relative_to(ROOT).as_posix() for path in assets.rglob("*") if path.is_file()}
    assert shipped == expected | {"edgevlm/py.typed"}
    assert any(name.startswith("edgevlm/assets/pictures/") for name in shipped)


def test_version_is_said_once() -> None:
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == __version__, "CHANGELOG.md begins with another release"


@pytest.mark.heavy
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """`make wheel` from two folders, at two times, under two file modes, with another order of sets."""
    made = []
    for number, umask in enumerate((0o022, 0o077)):
        out = tmp_path / str(number)
        command = [sys.executable, ROOT / "release" / "make_dist.py", out]
        subprocess.run(command, cwd=tmp_path, umask=umask, env={**os.environ, "TZ": f"UTC{number}"}, check=True)
        made.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
        time.sleep(2)  # a wheel's times are even seconds
    assert made[0] == made[1]
    assert set(made[0]) == {f"edgevlm-{__version__}.tar.gz", f"edgevlm-{__version__}-py3-none-any.whl"}


@pytest.mark.heavy
def test_a_fresh_environment_runs_a_bundle_with_the_base_install_alone(source_tree: Path, tmp_path: Path) -> None:
    """`pip install .` and `edgevlm run`: no torch, no transformers, no onnx, and not even huggingface_hub."""
    bundle = tmp_path / "bundle"
    subprocess.run([sys.executable, "-m", "edgevlm", "export", "default", "-o", str(bundle)], cwd=ROOT, check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qqq", str(source_tree)], cwd=tmp_path, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    installed = {line.split("==")[0].lower().replace("_", "-") for line in listed.stdout.splitlines()}
    assert "edgevlm" in installed
    # huggingface_hub comes with tokenizers; nothing of ours asks for it here.
    assert not installed & {"torch", "transformers", "onnx", "safetensors", "ml-dtypes", "optimum", "peft"}

    home = tmp_path / "home"
    home.mkdir()
    picture = ROOT / "edgevlm" / "assets" / "pictures" / "scene-things.png"
    answer = subprocess.run(
        [tmp_path / "venv" / "bin" / "edgevlm", "run", bundle, picture, "What colour is the chair?"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "yellow" in answer.stdout.lower()
    assert not list(home.rglob("*")), "running a bundle wrote to the home folder"
    refused = subprocess.run(
        [tmp_path / "venv" / "bin" / "edgevlm", "export", "default", "-o", tmp_path / "other"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "pip install '.[export]'" in refused.stderr and "Traceback" not in refused.stderr
