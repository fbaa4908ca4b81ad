"""The bundle: a folder with one manifest, shared specs, and one sub-folder per target. Refuses what does not match."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from edgevlm.bundle.check import AGAIN, check_gate, check_image, check_prompt, check_recipe, check_target
from edgevlm.bundle.targets import CoreMLTarget, GgufTarget, OnnxTarget, TargetEntry
from edgevlm.errors import BundleError, EdgeVLMError
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.io import limits
from edgevlm.io.json import read_json
from edgevlm.io.links import links_out
from edgevlm.io.names import unportable
from edgevlm.io.records import from_dict
from edgevlm.io.regular import open_regular
from edgevlm.io.text import check_place
from edgevlm.models.check import check_model
from edgevlm.models.model import ModelSpec

SCHEMA = 2
MANIFEST = "manifest.json"
# Graphs and JSON are small and decide what the weights mean, so opening hashes them; weights are only measured then.
SMALL = 4 << 20
T = TypeVar("T", OnnxTarget, GgufTarget, CoreMLTarget)
_HOLDS = {OnnxTarget: "ONNX graphs", GgufTarget: "GGUF files", CoreMLTarget: "CoreML packages"}


@dataclass(frozen=True)
class FileInfo:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ModelInfo:
    """Where the weights came from."""

    name: str
    source: str  # Hub id, folder name or "default"
    revision: str | None  # Hub commit
    weights_sha256: str
    adapter: str | None


@dataclass(frozen=True)
class Manifest:
    schema: int
    model: ModelInfo
    spec: ModelSpec
    recipe: dict[str, Any]  # forms by component, see export/quantize/recipe.py
    targets: dict[str, TargetEntry]  # by name, in the order of the export
    files: dict[str, FileInfo]  # by path relative to the bundle, "/" between parts
    tools: dict[str, str]  # versions of what wrote the bundle
    gate: dict[str, Any] | None  # results of the export's gate
    calibration: dict[str, Any] | None = None  # how codes and scales were chosen, see docs/calibration.md


@dataclass(frozen=True)
class Bundle:
    folder: Path
    manifest: Manifest

    def path(self, relative: str) -> Path:
        """An existing file of the bundle by its name in the manifest."""
        if relative not in self.manifest.files:
            raise BundleError(f"The bundle '{self.folder}' has no file '{relative}': export it again.")
        return self.folder / relative

    def package(self, relative: str) -> Path:
        """A CoreML package of the bundle: a folder with nothing in it that the manifest does not list."""
        folder = self.path(f"{relative}/Manifest.json").parent
        for path in folder.rglob("*"):
            if not path.is_dir() and path.relative_to(self.folder).as_posix() not in self.manifest.files:
                raise BundleError(f"'{path}' stands in a package of the bundle and not in its manifest: {AGAIN}.")
        return folder

    def read_json(self, relative: str, largest: int = limits.SPEC_FILE) -> Any:
        return read_json(self.path(relative), AGAIN, largest=largest)

    @cached_property
    def image_spec(self) -> ImageSpec:
        with _bundle_errors():
            spec = from_dict(ImageSpec, self.read_json("preprocess.json"), "preprocess.json")
            check_image(spec, self.manifest.spec)
        return spec

    @cached_property
    def prompt_spec(self) -> PromptSpec:
        with _bundle_errors():
            spec = from_dict(PromptSpec, self.read_json("prompt.json"), "prompt.json")
            check_prompt(spec, self.manifest.spec)
        return spec

    def prompter(self) -> Prompter:
        """Prompts and answers in the bundle's tokenizer, each of whose ids the embedding table has."""
        return Prompter(self.prompt_spec, self.path("tokenizer.json"), self.manifest.spec.decoder.vocab_size)


@contextmanager
def _bundle_errors() -> Iterator[None]:
    """Whatever is wrong with a file of a bundle, in the words of who read it, is a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except EdgeVLMError as error:
        raise BundleError(str(error)) from error


def open_bundle(folder: Path | str, check: str = "size") -> Bundle:
    """Open `folder`. check: "size" compares every size and hashes small files; "hash" hashes all of them.

    Raises EdgeVLMError when the folder is no bundle, was written by another schema, or a file is missing, changed
    or outside the folder. A snapshot in the Hub's cache is a bundle too: its files are links into the same cache.
    """
    if not isinstance(folder, str | os.PathLike):
        raise BundleError(f"The bundle is a {type(folder).__name__}: give the path of its folder.")
    folder = Path(folder)
    try:
        with _bundle_errors():
            return _open(folder, everything=check == "hash")
    except OSError as error:
        raise BundleError(f"The bundle '{folder}' cannot be read ({error.strerror}): check its permissions.") from None


def _open(folder: Path, everything: bool) -> Bundle:
    if not os.path.isdir(folder):  # False for a name that no file can have
        raise BundleError(f"There is no bundle '{folder}': make one with `edgevlm export MODEL -o {folder}`.")
    check_place(folder)
    if not (folder / MANIFEST).is_file():
        if (folder / "config.json").is_file():
            raise BundleError(
                f"'{folder}' is a checkpoint, not a bundle: export it first, with "
                f"`edgevlm export {folder} -o {folder.resolve().name}-bundle`."
            )
        raise BundleError(f"'{folder}' is not a bundle: it has no {MANIFEST}; make one with `edgevlm export`.")
    bundle = Bundle(folder, read_manifest(folder))
    for link in links_out(folder):  # unlisted ones too: an engine would open one that a graph names
        raise BundleError(
            f"'{link.relative_to(folder)}' in '{folder}' is a link to the outside: put the real file there, or remove "
            "it; of a bundle on the Hub, `edgevlm pull OWNER/NAME` gives real files."
        )
    for name, info in bundle.manifest.files.items():
        _check_file(bundle, name, info, everything)
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`, within limits and with names inside the folder; the files themselves may be missing."""
    data = read_json(folder / MANIFEST, AGAIN, largest=limits.MANIFEST_FILE)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"The bundle '{folder}' has schema {repr(schema)[:40]}, and this edgevlm reads schema {SCHEMA}: "
            "export the bundle again, or update edgevlm."
        )
    manifest = from_dict(Manifest, data, MANIFEST)
    check_model(manifest.spec, f"{MANIFEST}: spec", AGAIN)
    check_recipe(manifest.recipe)
    if manifest.gate is not None:
        check_gate(manifest.gate)
    for target in manifest.targets.values():
        check_target(target, manifest.spec)
    if found := unportable(manifest.files):
        name, why = found
        raise BundleError(f"The manifest of '{folder}' names the file '{name[:200]}', which {why}: do not use it.")
    return manifest


def _check_file(bundle: Bundle, name: str, info: FileInfo, everything: bool) -> None:
    path = bundle.folder / name
    if not path.is_file():
        raise BundleError(f"The bundle '{bundle.folder}' lacks its file '{name}': export or copy it again.")
    size = path.stat().st_size
    if size != info.size:
        raise BundleError(
            f"The file '{name}' of '{bundle.folder}' has {size} bytes, and the manifest says {info.size}: "
            "it is damaged or incomplete; export or copy the bundle again."
        )
    if (everything or size <= SMALL) and sha256(path) != info.sha256:
        raise BundleError(
            f"The file '{name}' of '{bundle.folder}' was changed after the export (its sha256 differs): "
            "export or copy the bundle again."
        )


def sha256(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def target_of(bundle: Bundle, kind: type[T]) -> T:
    """The bundle's entry of one target; EdgeVLMError where it has none."""
    found = bundle.manifest.targets.get(kind.kind)
    if isinstance(found, kind):
        return found
    raise BundleError(
        f"The bundle '{bundle.folder}' holds no {_HOLDS[kind]}: export it again with them, "
        f"`edgevlm export MODEL --target {kind.kind} -o {bundle.folder} --force`."
    )
