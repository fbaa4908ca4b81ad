"""region.safetensors: the weights of a bundle's region head, which numpy plays beside any engine's graphs."""

from __future__ import annotations

import math

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import BundleError
from edgevlm.io.safetensors import SafetensorsFile
from edgevlm.models.model import ModelSpec

REGION = "region.safetensors"


def region_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of the file by name; none where the model has no such head."""
    return spec.region.shapes(spec.decoder.hidden_size) if spec.region else {}


def region_dtype(quantize: str) -> str:
    """How the file holds them. quantize: the recipe's. 16 bits are exact for a model that was published in bfloat16,
    but for numbers below 2^-14."""
    return "float32" if quantize == "fp32" else "float16"


def region_bytes(spec: ModelSpec, quantize: str) -> int:
    """About what the file takes; 0 where there is none."""
    item = np.dtype(region_dtype(quantize)).itemsize
    return sum(math.prod(shape) * item for shape in region_shapes(spec).values())


def region_file(bundle: Bundle) -> SafetensorsFile:
    """The file of a bundle, whose tensors are those of the manifest's model. Raises EdgeVLMError otherwise."""
    file, shapes = SafetensorsFile(bundle.path(REGION)), region_shapes(bundle.manifest.spec)
    found = {name: info.shape for name, info in file.tensors.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise BundleError(
                f"{REGION} and manifest.json disagree: '{name[:200]}' is {found.get(name, 'missing')}, expected "
                f"{shapes.get(name, 'none')}; export or copy the bundle again."
            )
    return file
