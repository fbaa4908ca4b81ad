"""EdgeVLM's portable graphs, for engines that run those: the float32 bundle, and what its graphs are fed.

Needs numpy, Pillow and tokenizers: of EdgeVLM, the checkout's own code that every runtime feeds graphs with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy.typing as npt

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
SIDE = 512  # pixels of a tile where an encoder takes any size


def write_portable(checkpoint: Path, folder: Path) -> None:
    """Made by EdgeVLM in its own environment (EDGEVLM_PYTHON)."""
    command = [os.environ["EDGEVLM_PYTHON"], "-m", "edgevlm", "export", str(checkpoint), str(folder / "fp32")]
    subprocess.run([*command, "--quantize", "fp32", "--no-gate", "--force"], check=True, stdout=sys.stderr, cwd=ROOT)


class Portable:
    """A float32 bundle without its weights: the graphs' files, and the inputs that depend on no weight."""

    def __init__(self, folder: Path) -> None:
        from edgevlm.bundle.manifest import open_bundle
        from edgevlm.bundle.targets import OnnxTarget

        self._bundle = open_bundle(folder / "fp32")
        self._spec = self._bundle.manifest.spec
        target = self._bundle.manifest.targets["onnx"]
        assert isinstance(target, OnnxTarget)
        self.files = {name: self._bundle.path(graph.portable) for name, graph in target.graphs.items()}
        self.side: int = getattr(self._spec.vision, "image_size", SIDE)

    def picture(self, tile: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """The encoder's inputs for an RGB tile."""
        from edgevlm.inputs.preprocess import normalize
        from edgevlm.runtimes.ort.states import vision_feeds

        return vision_feeds(self._spec, normalize(tile, self._bundle.image_spec))

    def positions(self, past: int, new: int) -> dict[str, npt.NDArray[Any]]:
        """What the decoder takes for positions of text, beside embeddings, mask and states."""
        from edgevlm.inputs.layout import Layout
        from edgevlm.runtimes.ort.states import position_feeds

        return position_feeds(self._spec.decoder, Layout(0), past, new)
