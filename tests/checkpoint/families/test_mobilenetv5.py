"""timm's MobileNetV5 encoder on every backend, held to its published definition in torch."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import heavy_but
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from small_models import Drawn, clip, cosine
from tiny.mobilenetv5 import MobileNetV5Encoder, Wrapper, randomize_tower

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families.mobilenetv5 import read_tower, tower_names
from edgevlm.checkpoint.families.tensors import map_tree
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreml_ import CoreMLOptions, write_coreml
from edgevlm.export.onnx_.emit import write_onnx
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.io.json import read_json_file
from edgevlm.models.check import check_model
from edgevlm.models.eager import EagerOps
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear
from edgevlm.models.record import Record
from edgevlm.models.towers.mobilenet import MobileNet
from edgevlm.runtimes.mil.evaluator import MilEvaluator
from edgevlm.runtimes.mil.file import open_package
from edgevlm.runtimes.ort.products import session_options
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.types import F32


class Tower:
    """A checkpoint of a tower alone, as it is read, in a model whose other parts are small."""

    def __init__(self, folder: Path, multiplier: float | None, side: int, prefix: str = "model.vision_tower.") -> None:
        self.folder, self.torch = folder, Wrapper(multiplier or 1.0).eval()
        randomize_tower(self.torch, 0)
        save_file({prefix + name: t for name, t in self.torch.state_dict().items()}, folder / "model.safetensors")
        write(folder, side, multiplier and {"channel_multiplier": multiplier})
        self.pixels = (
            np.random.default_rng(0)
            .random((2 if side == 256 else 1, 3, side, side))
            .astype(np.float16)
            .astype(np.float32)
        )

    def read(self) -> tuple[ModelSpec, Any]:
        checkpoint = open_checkpoint(str(self.folder))
        spec = replace(clip(), vision=read_tower(checkpoint, read_json_file(self.folder / "config.json")))
        check_model(spec, "it", "try again")
        record = Record()
        assert isinstance(spec.vision, MobileNet)
        spec.vision.states(record, {"pixels": (1, *self.pixels.shape[1:])})
        return spec, map_tree(checkpoint, record.found, tower_names(checkpoint, spec), lambda name: False)

    def expected(self) -> F32:
        """(pictures, tokens, 2048), as Gemma3nModel.get_image_features of transformers has them before its map."""
        with torch.no_grad():
            found = self.torch(torch.from_numpy(self.pixels)).last_hidden_state
        return (found.flatten(2).transpose(1, 2) * 2048**0.5).numpy()


def write(folder: Path, side: int, arguments: Any, **vision: Any) -> None:
    tower = {"architecture": "mobilenetv5_300m_enc", "model_args": arguments, "hidden_size": 2048}
    config = {"model_type": "gemma3n", "vision_config": tower | vision}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": side, "width": side}}))


@pytest.mark.parametrize(
    ("multiplier", "side", "prefix"),
    heavy_but(
        [(0.05, 256, "vision_tower.")],
        [(1 / 64, 512, "model.vision_tower."), (0.05, 256, "vision_tower.")],
        several=True,
    ),
)
def test_states_are_the_published_definitions(tmp_path: Path, multiplier: float, side: int, prefix: str) -> None:
    tower = Tower(tmp_path, multiplier, side, prefix)
    spec, weights = tower.read()
    ours, theirs = spec.vision.states(EagerOps(weights), {"pixels": tower.pixels})[0], tower.expected()
    assert spec.token_grid(side, side) == (16, 16)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


class Whole:
    """The tower's weights, and drawn ones of what is behind it."""

    def __init__(self, spec: ModelSpec, tower: Any) -> None:
        self._tower, self._rest = tower, Drawn(spec)

    def __contains__(self, name: object) -> bool:
        return name in self._rest

    def read(self, name: str) -> F32:
        return (self._tower if name in self._tower else self._rest).read(name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec, Any, F32, F32]:
    """A folder with onnx/ and coreml/, the model and its weights, pictures and their features."""
    folder = tmp_path_factory.mktemp("tower")
    tower = Tower(folder, 1 / 64, 256)
    spec, read = tower.read()
    spec = replace(spec, projector=(Linear("linear", spec.decoder.hidden_size, bias=False),))
    weights = Whole(spec, read)
    expected = tower.expected() @ weights.read("projector.linear.weight").T
    return folder, spec, weights, tower.pixels, expected


def plain(weights: Any) -> Any:
    return lambda name: quantize(weights.read(name), "fp32", name)


def test_onnx_graphs_give_the_published_features(exported: tuple[Path, ModelSpec, Any, F32, F32]) -> None:
    folder, spec, weights, pixels, expected = exported
    (folder / "onnx").mkdir()
    write_onnx(folder / "onnx", spec, weights, make_recipe("fp32"), plain(weights))
    ort = import_onnxruntime()
    for suffix in ("", "_portable"):
        path = folder / "onnx" / f"vision_encoder{suffix}.onnx"
        (ours,) = ort.InferenceSession(str(path), session_options(ort, False)).run(None, {"pixel_values": pixels})
        assert cosine(ours.astype(np.float64), expected.astype(np.float64)) >= 0.99999


@pytest.mark.heavy
@pytest.mark.parametrize("profile", ["gpu", "ane"])
def test_coreml_packages_give_the_published_features(
    exported: tuple[Path, ModelSpec, Any, F32, F32], tmp_path: Path, profile: str
) -> None:
    """In fp16's weights, and pixels that fp16 holds."""
    pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
    _, spec, weights, pixels, expected = exported
    (tmp_path / "coreml").mkdir()
    options = CoreMLOptions(profile, (64,))
    write_coreml(tmp_path / "coreml", spec, weights, make_recipe("fp32"), plain(weights), options)
    evaluator = MilEvaluator(open_package(tmp_path / "coreml" / "VisionEncoder.mlpackage"), "fp32")
    ours = np.concatenate([evaluator.run({"pixels": view[None]})["image_features"] for view in pixels])
    assert cosine(ours.astype(np.float64), expected.astype(np.float64)) >= 0.99999


@pytest.mark.parametrize(("multiplier", "parameters"), [(None, 294_126_912), (1.3, 457_069_064), (0.3, 48_264_440)])
def test_weights_are_timms(tmp_path: Path, multiplier: float | None, parameters: int) -> None:
    """As many as timm 1.0.31 makes, and none that nothing reads."""
    with torch.device("meta"):
        tensors = MobileNetV5Encoder(multiplier or 1.0).state_dict()
    shapes = {f"tower.{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    assert sum(map(math.prod, shapes.values())) == parameters
    write(tmp_path, 768, multiplier and {"channel_multiplier": multiplier})
    files: Any = SimpleNamespace(folder=tmp_path, processor=tmp_path, names=lambda: list(shapes), shape=shapes.get)
    tower = read_tower(files, read_json_file(tmp_path / "config.json"))
    record = Record()
    tower.states(record, {"pixels": (1, 3, 768, 768)})
    spec = replace(clip(), vision=tower)
    check_model(spec, "it", "try again")
    map_tree(files, record.found, tower_names(files, spec), lambda name: False)
    assert {info.role for info in record.found.values()} == {"kernel", "matrix", "vector"}


@pytest.mark.parametrize(
    ("side", "arguments", "vision", "said"),
    [
        (700, None, {}, "a multiple of 256 pixels per side"),
        (768, {"msfa_output_resolution": 8}, {}, "nothing but channel_multiplier"),
        (768, {"channel_multiplier": "2"}, {}, "model_args.channel_multiplier = '2'"),
        (768, None, {"architecture": "mobilenetv4_hybrid_large"}, "expected 'mobilenetv5_300m_enc'"),
        (768, None, {"hidden_size": 1024}, "hidden_size = 1024, expected 2048"),
    ],
)
def test_other_towers_are_refused(tmp_path: Path, side: int, arguments: Any, vision: Any, said: str) -> None:
    write(tmp_path, side, arguments, **vision)
    with pytest.raises(EdgeVLMError) as caught:
        read_tower(SimpleNamespace(processor=tmp_path), read_json_file(tmp_path / "config.json"))  # type: ignore[arg-type]
    assert said in str(caught.value)
