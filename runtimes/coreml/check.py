"""What a CoreML package must be for the manifest beside it: runtimes pad, allocate and read by both."""

from __future__ import annotations

import math

from edgevlm.bundle.targets import CoreMLTarget
from edgevlm.io import limits
from edgevlm.models.components import HIDDEN
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import states
from edgevlm.runtimes.base import disagreement
from edgevlm.runtimes.coreml.inputs import MASK_VALUE, package_tensor
from edgevlm.runtimes.mil.file import MilPackage


def check_vision(package: MilPackage, target: CoreMLTarget, spec: ModelSpec) -> None:
    """The encoder takes the tower's inputs in the shapes that the manifest declares; EdgeVLMError otherwise."""
    function = package.functions[package.default_function]
    wanted = {name: package_tensor(name, tensor).shape for name, tensor in spec.vision.inputs().items()}
    declared = target.vision.inputs
    if not wanted.keys() == declared.keys() == function.inputs.keys():
        raise disagreement(f"{package.folder.name} takes {', '.join(sorted(function.inputs))[:200]}")
    for name, shape in declared.items():
        ours, program = wanted[name], function.inputs[name].shape
        if not len(ours) == len(shape) == len(program):
            raise disagreement(f"{package.folder.name} has the input '{name}' of shape {program}")
        for expected, given, size in zip(ours, shape, program, strict=True):
            fixed = isinstance(given, int)
            if (isinstance(expected, int) and given != expected) or (fixed and size not in (None, given)):
                raise disagreement(f"{package.folder.name} has the input '{name}' of shape {program}")
        if math.prod(size for size in shape if isinstance(size, int)) > limits.INPUT_VALUES:
            raise disagreement(f"the manifest gives '{name}' the shape {shape}")
    if "image_features" not in function.outputs:
        raise disagreement(f"{package.folder.name} does not give image_features")


def check_decoder(package: MilPackage, target: CoreMLTarget, spec: ModelSpec) -> None:
    """Every function that the manifest names keeps the states of its context and gives the parts of the logits."""
    if target.decoder.mask_value != MASK_VALUE:
        raise disagreement(f"the manifest hides positions by {target.decoder.mask_value}, expected {MASK_VALUE}")
    for name, declared in target.decoder.functions.items():
        function = package.functions.get(name)
        if function is None:
            raise disagreement(f"{package.folder.name} has no function '{name}'")
        shapes = [tuple(size or declared.context for size in state.shape) for state in states(spec.decoder)]
        kept = sum(math.prod(size or 0 for size in kind.shape) for kind in function.states.values())
        if kept != sum(map(math.prod, shapes)):
            raise disagreement(f"the function '{name}' keeps {kept} values")
        if (HIDDEN in function.outputs) != (spec.region is not None):
            raise disagreement(f"the function '{name}' gives {', '.join(function.outputs)[:200]}")
        if tuple(target.decoder.outputs) != function.outputs:  # their order is the vocabulary's
            raise disagreement(f"the function '{name}' gives {', '.join(function.outputs)[:200]}")
