"""Towers of convolutions as ONNX graphs, on ONNX Runtime beside the eager reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import Drawn, bottlenecks, convolved, cosine

from edgevlm.bundle.qtensor import QTensor
from edgevlm.export.onnx_.emit import write_onnx
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.models.model import ModelSpec
from edgevlm.models.record import weight_tree
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes.eager import encode_view
from edgevlm.runtimes.ort.products import session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime


def written(folder: Path, spec: ModelSpec) -> Drawn:
    weights = Drawn(spec)
    write_onnx(folder, spec, weights, make_recipe("fp32"), lambda name: QTensor("fp32", weights.read(name)))
    return weights


@pytest.mark.parametrize("make", [convolved, bottlenecks], ids=lambda make: make.__name__)
def test_features_of_any_number_of_tiles(tmp_path: Path, make: Callable[[], ModelSpec]) -> None:
    spec, ort = make(), import_onnxruntime()
    weights = written(tmp_path, spec)
    assert isinstance(spec.vision, Vit)
    side = spec.vision.image_size
    for tiles in (1, 3):
        pixels = np.random.default_rng(tiles).uniform(-1, 1, (tiles, 3, side, side)).astype(np.float32)
        theirs = np.stack([encode_view(spec, weights, tile) for tile in pixels])
        for suffix in ("", "_portable"):
            path = tmp_path / f"vision_encoder{suffix}.onnx"
            session = ort.InferenceSession(str(path), session_options(ort, not suffix and signed_saturates(ort)))
            (ours,) = session.run(None, {"pixel_values": pixels})
            assert cosine(ours, theirs) >= 0.99999


def test_a_convolution_is_one_node(tmp_path: Path) -> None:
    """Zeros around the grid, more of them behind, are the node's own."""
    spec = bottlenecks()
    written(tmp_path, spec)
    nodes = onnx.load(tmp_path / "vision_encoder.onnx", load_external_data=False).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == sum(info.role == "kernel" for info in weight_tree(spec).values())
    assert not [node for node in nodes if node.op_type == "Pad"]
    pads = {tuple(a.ints) for node in convolutions for a in node.attribute if a.name == "pads"}
    assert pads == {(0, 0, 1, 1), (1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 2, 2)}
