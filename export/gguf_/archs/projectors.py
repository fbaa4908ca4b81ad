"""Which of llama.cpp's projector types a model's tower and projector take."""

from __future__ import annotations

from edgevlm.export.gguf_.archs.bottlenecks import BOTTLENECKS
from edgevlm.export.gguf_.archs.grids import GRIDS
from edgevlm.export.gguf_.archs.projector import ProjectorType
from edgevlm.export.gguf_.archs.squares import SQUARE
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.inputs.squares import Fit, Pad
from edgevlm.models.model import ModelSpec


def projector_type(
    spec: ModelSpec, image: ImageSpec | None = None, prompt: PromptSpec | None = None
) -> ProjectorType | None:
    """The type for a model's tower and projector; None where llama.cpp has none (`why_no_pictures`).

    image, prompt: of types that compute the same, they choose the one that pads pictures with the model's colour, and
    breaks rows of image tokens where the model does.
    """
    found = [each for each in _of_shape(spec) if not each.refused(spec)]
    padding = image.rule.color if image and isinstance(image.rule, Fit | Pad) else None
    broken = prompt is not None and prompt.picture.line_break != ""
    alike = [each for each in found if (each.line_break is not None) == broken] or found
    return next((each for each in alike if padding and each.padding == padding), alike[0] if alike else None)


def why_no_pictures(spec: ModelSpec) -> str | None:
    """What keeps llama.cpp from encoding a model's pictures; None where nothing does.

    Of several types, what keeps the nearest from it.
    """
    reasons = [each.refused(spec) for each in _of_shape(spec)]
    if not reasons:
        kinds = " + ".join(step.kind for step in spec.projector)
        return f"it has no projector type for the tower '{spec.vision.kind}' with {kinds}"
    nearest = min(reasons, key=len)
    return f"its {nearest[0]}" if nearest else None


def _of_shape(spec: ModelSpec) -> list[ProjectorType]:
    shape = spec.vision.kind, tuple(step.kind for step in spec.projector)
    return [each for each in (*SQUARE, *GRIDS, *BOTTLENECKS) if (each.tower, each.steps) == shape]
