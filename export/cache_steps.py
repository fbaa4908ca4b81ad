"""Steps of a decoder's keys and values that are kept in 8 bits: from the largest values that prompts leave in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgevlm.checkpoint.checkpoint import Weights as NamedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.model import QuantizedModel
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.inputs.preprocess import prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.decoder import decoder
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights
from edgevlm.models.spec import with_cache
from edgevlm.models.states import States
from edgevlm.types import F32
from edgevlm.verify.gate import picture_folder
from edgevlm.verify.reference import Reference

# Not the gate's pictures and question.
PROMPTS = (
    ("astronaut.jpg", "Describe the picture in detail: the person, the clothes, the colours, and what is behind."),
    ("scene-sign.png", "Read all of the text, word for word, then count the things and say where each of them is."),
    (
        "rocket.jpg",
        'Answer in JSON, as in {"object": "...", "where": [10, 20, 30, 40], "certain": 0.75}: what is this?',
    ),
)
MARGIN = 1.1  # other prompts' values may be a little larger than the largest of these
LEAST = 1e-6  # a channel that is always 0 has steps, too


def keep_in_8_bits(
    spec: ModelSpec, expected: QuantizedModel, image: ImageSpec, prompter: Prompter
) -> tuple[ModelSpec, QuantizedModel]:
    """The model with keys and values of 8 bits, and its weights with the steps that codes of each channel count."""
    spec = replace(spec, decoder=with_cache(spec.decoder, "int8"))
    ranges: dict[str, F32] = {}
    reference = Reference(spec, expected, image)
    for name, question in PROMPTS:
        part = prepare(open_image(picture_folder() / name), image, max_tiles=1)
        ids, layout = prompter.encode(question, [part.tokens])
        if len(ids) <= spec.decoder.context_length:
            _play(spec, expected, reference.prompt(ids, layout, part.views), layout, ranges)
    if not ranges:
        raise EdgeVLMError(
            f"No prompt with a picture fits the model's context of {spec.decoder.context_length} positions, by which "
            "steps for 8-bit keys and values are found: leave --kv-cache int8 out."
        )
    steps = {name: step_of(largest) for name, largest in ranges.items()}
    return spec, replace(expected, weights=WithSteps(expected.weights, steps))


def step_of(largest: F32) -> F32:
    """What a code counts where no value should be larger: of four steps between powers of two the next one up, so that
    sums in another order, as on another CPU, give the same."""
    wanted = np.maximum(largest.astype(np.float64) * (MARGIN / 127), LEAST)
    found: F32 = np.exp2(np.ceil(4 * np.log2(wanted)) / 4).astype(np.float32)
    return found


def _play(spec: ModelSpec, weights: Weights, embeds: F32, layout: Layout, ranges: dict[str, F32]) -> None:
    inputs = decoder_inputs(spec.decoder, layout, 0, len(embeds))
    decoder(_Ranges(weights, States(), inputs, ranges), embeds, spec.decoder)


class _Ranges(EagerOps):
    """Rounds nothing, and keeps the largest value of each channel in `ranges`, by the name of its steps."""

    def __init__(self, weights: Weights, states: States, inputs: Mapping[str, object], ranges: dict[str, F32]) -> None:
        super().__init__(weights, states, inputs)
        self._ranges = ranges

    def rounded(self, x: F32, name: str, count: int, size: int) -> F32:
        largest = np.abs(x).max(-2).reshape(-1)
        self._ranges[name] = np.maximum(largest, self._ranges.get(name, largest))
        return x


class WithSteps:
    """A model's weights, and steps beside them."""

    def __init__(self, weights: NamedWeights, steps: dict[str, F32]) -> None:
        self._weights, self._steps = weights, steps

    def names(self) -> list[str]:
        return [*self._weights.names(), *self._steps]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._steps[name].shape if name in self._steps else self._weights.shape(name)

    def is_linear(self, name: str) -> bool:
        return name not in self._steps and self._weights.is_linear(name)

    def read(self, name: str) -> F32:
        return self._steps[name] if name in self._steps else self._weights.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._steps or name in self._weights
