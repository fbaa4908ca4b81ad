"""The containers that an export writes, behind one protocol: what each refuses, how it is written, how large it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgevlm.bundle.files import write_json
from edgevlm.bundle.qtensor import BLOCK, PALETTES, QTensor
from edgevlm.bundle.targets import TargetEntry
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_.options import CoreMLOptions, check_recipe
from edgevlm.export.quantize.recipe import Form, Recipe
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights


@dataclass(frozen=True)
class Job:
    """One model to write into a bundle. quantized: the QTensor of a linear weight by its canonical name."""

    folder: Path  # the bundle's, which holds the checkpoint's own files already
    spec: ModelSpec
    weights: Weights
    recipe: Recipe
    image: ImageSpec
    prompt: PromptSpec
    coreml: CoreMLOptions
    quantized: Callable[[str], QTensor]


class Target(Protocol):
    """One container format. Its files lie in a bundle's folder of the same name."""

    name: str

    def check(self, recipe: Recipe, coreml: CoreMLOptions) -> None:
        """Raise EdgeVLMError for what the format or its device cannot hold, before any work is done."""

    def check_model(self, spec: ModelSpec, tokenizer: Path, coreml: CoreMLOptions) -> str | None:
        """Raise EdgeVLMError for a model that the format cannot hold, from its description and tokenizer.json alone.

        What `write` itself would come to is asked. Returns why pictures are left to another engine, where they are.
        """

    def write(self, job: Job) -> TargetEntry:
        """Write the files; the manifest's entry."""

    def size_of(self, name: str, shape: tuple[int, ...], form: Form, spec: ModelSpec) -> int:
        """Bytes of a matrix (N, K) as the format holds it."""


def _check_palettes(recipe: Recipe) -> None:
    found = {form.kind for form in (recipe.vision, recipe.projector, recipe.decoder, recipe.embed)} & set(PALETTES)
    if found:
        raise EdgeVLMError(
            f"{min(found)} is a form that CoreML alone can hold: export it with --target coreml into a bundle of "
            "its own."
        )


def _size(shape: tuple[int, ...], form: Form, *, scale: int, plain: int, per_row: bool) -> int:
    """scale: bytes of one scale; plain: bytes of one number in fp32; per_row: int8 has one scale per row."""
    rows, columns = shape
    count, blocks = rows * columns, rows * -(-columns // BLOCK)
    if form.kind == "int4":
        return count // 2 + blocks * scale
    if form.kind == "int8":
        return count + (rows if per_row else blocks) * scale
    return count * (2 if form.kind == "fp16" else plain)


class Onnx:
    name = "onnx"

    def check(self, recipe: Recipe, coreml: CoreMLOptions) -> None:
        _check_palettes(recipe)

    def check_model(self, spec: ModelSpec, tokenizer: Path, coreml: CoreMLOptions) -> str | None:
        from edgevlm.export.onnx_.emit import check_onnx

        check_onnx(spec)
        return None

    def write(self, job: Job) -> TargetEntry:
        """Write the graphs and weights.json, and where it is true onnxruntime-genai's configuration."""
        from edgevlm.export.onnx_.emit import write_onnx
        from edgevlm.export.onnx_.genai import genai_config, runs_text

        entry, tensors = write_onnx(job.folder / self.name, job.spec, job.weights, job.recipe, job.quantized)
        write_json(job.folder / "weights.json", {"tensors": tensors})
        if runs_text(job.spec.decoder):
            write_json(job.folder / "genai_config.json", genai_config(job.spec, job.prompt, entry))
        return entry

    def size_of(self, name: str, shape: tuple[int, ...], form: Form, spec: ModelSpec) -> int:
        return _size(shape, form, scale=4, plain=4, per_row=form.dynamic)


class Gguf:
    name = "gguf"

    def check(self, recipe: Recipe, coreml: CoreMLOptions) -> None:
        _check_palettes(recipe)

    def check_model(self, spec: ModelSpec, tokenizer: Path, coreml: CoreMLOptions) -> str | None:
        from edgevlm.export import gguf_

        return gguf_.plan(spec, tokenizer).no_pictures

    def write(self, job: Job) -> TargetEntry:
        from edgevlm.export import gguf_

        tokenizer = job.folder / "tokenizer.json"
        return gguf_.write_gguf(
            job.folder / self.name, job.spec, job.weights, job.recipe, job.image, job.prompt, tokenizer, job.quantized
        )

    def size_of(self, name: str, shape: tuple[int, ...], form: Form, spec: ModelSpec) -> int:
        return _size(shape, form, scale=2, plain=4, per_row=False)


class CoreML:
    name = "coreml"

    def check(self, recipe: Recipe, coreml: CoreMLOptions) -> None:
        check_recipe(recipe, coreml.profile)

    def check_model(self, spec: ModelSpec, tokenizer: Path, coreml: CoreMLOptions) -> str | None:
        from edgevlm.export import coreml_

        coreml_.check_coreml(spec, coreml)
        return None

    def write(self, job: Job) -> TargetEntry:
        from edgevlm.export import coreml_

        return coreml_.write_coreml(
            job.folder / self.name, job.spec, job.weights, job.recipe, job.quantized, job.coreml
        )

    def size_of(self, name: str, shape: tuple[int, ...], form: Form, spec: ModelSpec) -> int:
        """A tied head counts twice: it cannot read the table that an app looks rows up in."""
        twice = name == "decoder.embed.weight" and spec.decoder.tie_embeddings
        return _size(shape, form, scale=2, plain=2, per_row=True) * (2 if twice else 1)


TARGETS: dict[str, Target] = {target.name: target for target in (Onnx(), Gguf(), CoreML())}
