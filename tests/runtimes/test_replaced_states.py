"""States that a call overwrites: every engine carries them, whatever the pieces of a prompt, and refuses to go back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cases import heavy_but

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import PLAIN, WIDTH, Drawn, clip, cosine, logits

from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.targets import CoreMLTarget, OnnxTarget
from edgevlm.errors import EdgeVLMError
from edgevlm.export.onnx_.emit import write_onnx
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.layout import Layout
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Block, DeltaRule, Mixer, Mlp, Norm, ShortConv
from edgevlm.runtimes.base import Decoder, EngineOptions
from edgevlm.runtimes.eager import EagerDecoder
from edgevlm.runtimes.ort.runtime import open_decoder
from edgevlm.types import F32

NORM = Norm("rms", 1e-6)
MIXERS: dict[str, Mixer] = {"short_conv": ShortConv(3), "delta_rule": DeltaRule(2, 6, 8, 12, 4, NORM)}


def model(mixer: str) -> ModelSpec:
    """With layers of gated attention among those of the mixer."""
    gates = "heads" if mixer == "short_conv" else "values"
    attention = Attention(4, 2, 16, rope="main", qk_norm=NORM, gated=gates)
    blocks = (Block((mixer,), Mlp(80), NORM) for mixer in (MIXERS[mixer], attention))
    return clip(replace(PLAIN, blocks=tuple(blocks), layers=(0, 1, 0, 0)))


def onnx(folder: Path, spec: ModelSpec, weights: Drawn, *, portable: bool = False) -> Decoder:
    (folder / "onnx").mkdir()
    entry, _ = write_onnx(folder / "onnx", spec, weights, make_recipe("fp32"), _plain(weights))
    return open_decoder(_bundle(folder, spec, onnx=entry), EngineOptions(portable=portable))


def coreml(folder: Path, spec: ModelSpec, weights: Drawn, *, profile: str) -> Decoder:
    pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
    from edgevlm.export.coreml_ import CoreMLOptions, write_coreml
    from edgevlm.runtimes.coreml.runtime import CoreMLDecoder

    (folder / "coreml").mkdir()
    options = CoreMLOptions(profile, (128,))
    entry = write_coreml(folder / "coreml", spec, weights, make_recipe("fp32"), _plain(weights), options)
    assert len(entry.decoder.states) == 2
    return CoreMLDecoder(_bundle(folder, spec, coreml=entry), EngineOptions(storage="fp32"), evaluate=True)


def _plain(weights: Drawn) -> Any:
    return lambda name: quantize(weights.read(name), "fp32", name)


def _bundle(folder: Path, spec: ModelSpec, **targets: OnnxTarget | CoreMLTarget) -> Bundle:
    files = {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_file()}
    return Bundle(
        folder,
        cast(Any, SimpleNamespace(spec=spec, targets=targets, files=files, recipe={"decoder": {"kind": "fp32"}})),
    )


ENGINES: dict[str, Callable[[Path, ModelSpec, Drawn], Decoder]] = {
    "eager": lambda folder, spec, weights: EagerDecoder(spec.decoder, weights),
    "onnx": onnx,
    "portable": lambda folder, spec, weights: onnx(folder, spec, weights, portable=True),
    "gpu": lambda folder, spec, weights: coreml(folder, spec, weights, profile="gpu"),
    "ane": lambda folder, spec, weights: coreml(folder, spec, weights, profile="ane"),
}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("engine", heavy_but(["eager", "onnx", "ane"], ENGINES))
def test_any_pieces_of_a_prompt_give_what_it_gives_at_once(tmp_path: Path, mixer: str, engine: str) -> None:
    spec = model(mixer)
    weights = Drawn(spec)
    decoder = ENGINES[engine](tmp_path, spec, weights)
    embeds = np.random.default_rng(5).normal(0, 1, (90, WIDTH)).astype(np.float32)
    wanted = logits(spec, weights, embeds, Layout(90), keep=90)
    for _ in range(2):  # the second conversation knows nothing of the first
        _close(decoder.forward(embeds[:1], Layout(90)), wanted[0])
        for start, stop in ((1, 40), (40, 41), (41, 80)):
            _close(decoder.forward(embeds[start:stop]), wanted[stop - 1])
        for i in range(80, 90):
            _close(decoder.forward(embeds[i : i + 1]), wanted[i])
        with pytest.raises(EdgeVLMError, match="cannot go back from position 90 to 80"):
            decoder.rewind(80)
        decoder.rewind(90)
        assert getattr(decoder, "most_steps", 0) == 0
        assert decoder.position == 90
        decoder.rewind(0)
    _close(decoder.forward(embeds, Layout(90)), wanted[-1])


def _close(ours: F32, theirs: F32) -> None:
    assert cosine(ours, theirs) >= 0.999999
