"""Which form each component's weights take: presets, overrides, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgevlm.bundle.qtensor import BLOCK, KINDS, PALETTES
from edgevlm.errors import EdgeVLMError

COMPONENTS = ("vision", "projector", "decoder", "embed")
PRESETS = ("size", "balanced", "latency")


@dataclass(frozen=True)
class Form:
    """How a linear weight is stored and multiplied."""

    kind: str  # fp32 | fp16 | int8 | int4 | palette6 | palette4
    dynamic: bool = False  # int8 only: activations are quantized per call too, the fastest form for many rows


@dataclass(frozen=True)
class Recipe:
    """Forms by component. `embed` also holds the head where the two are tied, else the head follows it."""

    quantize: str
    preset: str
    vision: Form
    projector: Form
    decoder: Form
    embed: Form
    prefill: Form | None = None  # a second decoder graph for prompts, where that is faster
    fp16: tuple[str, ...] = ()  # weights whose width no block of 32 divides
    outliers: tuple[str, ...] = ()  # int8 weights of the encoder that keep fp16, see outliers.py
    int8: tuple[str, ...] = ()  # layers such as "decoder.layers.3" that keep 8 bits in a decoder of fewer
    method: str = "rtn"  # how codes and scales were chosen: round to nearest, or one of calibrate.METHODS

    def form(self, weight: str) -> Form:
        """The form of a matrix of a linear map, or of the embedding, by its canonical name; nothing else has one."""
        if weight in self.fp16:
            return Form("fp16")
        if any(weight.startswith(f"{layer}.") for layer in self.int8):
            return Form("int8")
        form: Form = getattr(self, component_of(weight))
        return Form("fp16") if form.kind == "int8" and weight in self.outliers else form


def component_of(weight: str) -> str:
    """The one of `COMPONENTS` that a weight belongs to; a head goes with the embedding."""
    return "embed" if weight in ("decoder.embed.weight", "decoder.head.weight") else weight.split(".")[0]


NARROW = 512  # hidden size of an encoder below which dynamic int8 costs more than it saves


def fit(recipe: Recipe, weights: Shapes) -> Recipe:
    """`recipe` for one model: fp16 for weights that its blocks do not fit (SigLIP-so400m's 4304-wide layers, for one).

    A narrow encoder is fast in any form, and one activation range per call is too coarse for it (0.997 of cosine on the
    default model where 0.9999 remains at 768 wide): it takes int8 with a range per block.
    """
    first = "vision.layers.0.norm1.weight"
    if recipe.vision.dynamic and first in weights.names() and weights.shape(first)[0] < NARROW:
        recipe = replace(recipe, vision=Form("int8"))

    def misfit(name: str) -> bool:
        if not weights.is_linear(name):
            return False
        form = recipe.form(name)
        return form.kind in ("int8", "int4") and not form.dynamic and weights.shape(name)[-1] % BLOCK != 0

    return replace(recipe, fp16=tuple(name for name in weights.names() if misfit(name)))


class Shapes(Protocol):
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_linear(self, name: str) -> bool: ...


def make_recipe(quantize: str, preset: str = "balanced", overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe for `--quantize`, `--preset` and per-component overrides such as {"vision": "fp16"}."""
    if quantize not in KINDS:
        raise EdgeVLMError(f"Quantization '{quantize}' is not available: choose one of {', '.join(KINDS)}.")
    if preset not in PRESETS:
        raise EdgeVLMError(f"Preset '{preset}' does not exist: choose one of {', '.join(PRESETS)}.")
    recipe = _preset(quantize, preset)
    for component, kind in (overrides or {}).items():
        if component not in COMPONENTS:
            raise EdgeVLMError(f"Component '{component}' does not exist: choose one of {', '.join(COMPONENTS)}.")
        if kind not in KINDS:
            raise EdgeVLMError(f"Quantization '{kind}' is not available: choose one of {', '.join(KINDS)}.")
        if component == "embed" and kind in PALETTES:
            raise EdgeVLMError("The embedding table has no palettes: rows are looked up in it; use --embed int8.")
        dynamic = kind == "int8" and getattr(_preset("int8", preset), component).dynamic
        changed: dict[str, Any] = {component: Form(kind, dynamic)}
        recipe = replace(recipe, **changed)
    return recipe


def _preset(quantize: str, preset: str) -> Recipe:
    plain, int8, dynamic = Form(quantize), Form("int8"), Form("int8", dynamic=True)
    if quantize in PALETTES:
        # The embedding table is looked up row by row, and its 8 bits are what Apple keeps beside palettes too
        # (coreai-models' presets for iOS).
        return Recipe(quantize, preset, plain, plain if preset == "size" else int8, plain, int8)
    if quantize in ("fp32", "fp16"):
        return Recipe(quantize, preset, plain, plain, plain, plain)
    if preset == "size":
        # Every matrix in the smallest form; an int4 encoder costs about half a percent of cosine and saves no time.
        return Recipe(quantize, preset, plain, plain, plain, plain)
    # The encoder multiplies many rows at once, where per-channel int8 weights with dynamic int8 activations are the
    # fastest CPU form (2x of fp32) and lose nothing measurable; 4-bit weights gain no speed there. Embedding and head
    # stay int8: they lose most to 4 bits. The projector is one matrix whose error every image token carries.
    if preset == "balanced":
        return Recipe(quantize, preset, dynamic, int8, plain, int8)
    # Dynamic int8 reads a prompt two to three times as fast as any weight-only form, and 4-bit blocks decode fastest:
    # latency ships both decoders and spends the disk space.
    decoder = dynamic if quantize == "int8" else plain
    return Recipe(quantize, preset, dynamic, int8, decoder, int8, prefill=dynamic if quantize == "int4" else None)
