"""bench/peers: turns and errors of compare.py, pictures as transformers lays them out, and scaling by layers."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import lfm2_vl, qwen3_vl
from transformers import AutoConfig

PEERS = Path(__file__).parents[2] / "bench" / "peers"
FAKE = """
import sys, time
sys.path.insert(0, {peers!r})
import numpy as np
from pathlib import Path
from protocol import OneByOne, serve

class Fake(OneByOne):
    def encode(self, tile):
        if {blind}:
            raise NotImplementedError("it sees nothing")
        time.sleep({seconds})
        return np.eye(3, dtype=np.float32)
    def restart(self):
        pass
    def append(self, ids):
        time.sleep({seconds})
        return len(ids)

def prepare(checkpoint, folder):
    assert (checkpoint / "ready").exists(), "not ready yet"

serve(prepare, lambda folder, threads: Fake())
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module


@pytest.mark.heavy
def test_peers_take_turns_and_what_fails_is_said_and_tried_again(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare: ModuleType = load("compare")
    qwen3_vl.build(checkpoint := tmp_path / "checkpoint")
    scripts = {"edgevlm_onnx": (0.02, False), "transformers_eager": (0.06, False), "blind": (0.02, True)}
    for name, (seconds, blind) in scripts.items():
        (tmp_path / f"{name}.py").write_text(FAKE.format(peers=str(PEERS), seconds=seconds, blind=blind))
    programs = tuple(compare.Program(str(tmp_path / f"{name}.py"), name) for name in scripts)
    monkeypatch.setattr(compare, "PROGRAMS", programs)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(checkpoint), "--out", str(tmp_path / "out"), "--repeat", "2"])
    compare.main()
    assert "- blind: AssertionError: not ready yet" in capsys.readouterr().out
    (checkpoint / "ready").touch()
    compare.main()
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert "- blind, encode a tile: NotImplementedError: it sees nothing" in shown and "not ready" not in shown
    assert str(tmp_path) not in json.dumps(found)
    assert found["cosine"] == {"edgevlm_onnx": 1.0, "transformers_eager": 1.0, "blind": None}
    assert len(found["cold"]["edgevlm_onnx"]["seconds"]) == 2 and not found["cold"]["blind"]["seconds"]
    slow, fast = (found["warm"][name]["times"]["prefill 80"] for name in ("transformers_eager", "edgevlm_onnx"))
    assert all(a / b > 1.2 for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("family", [qwen3_vl, lfm2_vl])
def test_pictures_are_laid_out_as_transformers_does(load: Any, tmp_path: Path, family: ModuleType) -> None:
    family.build(tmp_path, layout="memory")
    side = 48  # that both leave as it is
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    processor = family.load_processor(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    theirs = dict(processor.image_processor(images=[Image.fromarray(tile)], return_tensors="pt"))
    pixels = torch.from_numpy(tile).permute(2, 0, 1).float() / 127.5 - 1
    ours = load("transformers_eager").as_processed(config, pixels)
    assert ours.keys() == theirs.keys()
    count = ours["pixel_values"].shape[-2]
    for name, value in ours.items():
        given = torch.as_tensor(theirs[name])
        if family is lfm2_vl and name != "spatial_shapes":
            given = given[:, :count]  # without padding
        assert value.shape == given.shape
        torch.testing.assert_close(value.float(), given.float(), atol=1e-5, rtol=0)


def test_time_that_is_linear_in_layers_is_scaled_exactly(load: Any) -> None:
    """Of 24 layers in the encoder and 28 in the decoder, whatever else a call takes."""
    shape = load("shapes").Shape("X", (24, 28), (4, 8))

    def time(layers: int, other: float) -> float:
        return other + 0.25 * layers

    low, high = ([time(depth, other) for other in (1.0, 3.0)] for depth in (4, 8))
    assert shape.whole("encode a tile", low, high) == [time(24, 1.0), time(24, 3.0)]
    assert shape.whole("decode at 80", low, high) == [time(28, 1.0), time(28, 3.0)]
    assert shape.whole("prefill 80", "no memory", high) == "no memory"
    assert "too noisy" in shape.whole("prefill 80", high, low)


def test_a_shape_s_rounds_hold_both_depths(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, compare = load("shapes"), load("compare")
    programs = [program for program in compare.PROGRAMS if program.name in ("edgevlm_onnx", "llamacpp", "mnn")]

    def prepare(chosen: Any, checkpoint: Path, out: Path, environments: Path, threads: int) -> Any:
        can = [program for program in chosen if program.name != "mnn"]
        made = {program.name: {"seconds": 1.0} if program in can else {"error": "no"} for program in chosen}
        return made, [compare.Place(program, out, environments, threads) for program in can]

    def warm(places: Any, repeat: int) -> Any:
        assert [place.out.name for place in places] == ["x-4-layers"] * 2 + ["x-8-layers"] * 2
        found = []
        for place in places:
            layers = int(place.out.name.split("-")[1]) * (2 if place.program.name == "llamacpp" else 1)
            found.append({"times": dict.fromkeys(compare.WORK, [0.25 * layers] * repeat), "features": None})
        return found

    monkeypatch.setattr(compare, "prepare", prepare)
    monkeypatch.setattr(compare, "warm", warm)
    shape = shapes.Shape("X", (24, 28), (4, 8))
    found = shapes.measure(shape, programs, tmp_path, tmp_path, 3, os.cpu_count() or 1)
    shown = compare.table(programs, json.loads(json.dumps(found)))
    assert "| EdgeVLM, onnxruntime, int4 | 6.00 s (1.00) | 7.00 s (1.00) |" in shown
    assert "12.00 s (2.00) | 14.00 s (2.00)" in shown and "memory" not in shown
    assert "- MNN, int8 weights: no" in shown
