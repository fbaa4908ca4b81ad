"""Windows, soft caps, several RoPEs, halves that turn apart, masks that show later positions, in both ONNX forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import HALVES, LAYOUT, WIDTH, Drawn, clip, gemma, logits

from edgevlm.errors import EdgeVLMError
from edgevlm.export.onnx_.emit import write_onnx
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.quantize.round import quantize
from edgevlm.inputs.layout import Layout, next_part
from edgevlm.models.spec import Decoder, Norm, Rope, with_cache
from edgevlm.runtimes.ort.runtime import OrtDecoder
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.runtimes.ort.states import Cache, PassedCache, SharedCache, position_feeds
from edgevlm.runtimes.ort.versions import check_version


def two_ropes(d: Decoder) -> Decoder:
    """Layers with a window turn by another RoPE, and normalize their heads."""
    near, far = d.blocks
    own = replace(near.mixers[0], rope="local", qk_norm=Norm("rms", 1e-6))
    return replace(d, blocks=(replace(near, mixers=(own,)), far), ropes=d.ropes | {"local": Rope(1e2, 16)})


GEMMA = replace(gemma(), ropes={"main": Rope(1e4, 16)})
DECODERS = {
    "windows": GEMMA,
    "two ropes": two_ropes(GEMMA),
    "pictures": replace(two_ropes(GEMMA), mask="image"),
    "prompts": replace(GEMMA, mask="prompt"),
}


@pytest.fixture(scope="module", params=[*DECODERS, "halves"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec, folder = clip(DECODERS.get(request.param, HALVES)), tmp_path_factory.mktemp("onnx")
    weights = Drawn(spec)
    write_onnx(folder, spec, weights, make_recipe("fp32"), lambda name: quantize(weights.read(name), "fp32", name))
    return SimpleNamespace(spec=spec, weights=weights, folder=folder)


@pytest.mark.parametrize(("suffix", "make"), [("", SharedCache), ("_portable", PassedCache)])
def test_logits_are_the_references(written: Any, suffix: str, make: Callable[..., Cache]) -> None:
    """In one call, in parts of 7 positions that cut no picture, token by token, and the last ones together."""
    ort, d = import_onnxruntime(), written.spec.decoder
    session = ort.InferenceSession(str(written.folder / f"decoder_model_merged{suffix}.onnx"))
    embeds = np.random.default_rng(4).normal(0, 1, (LAYOUT.length + 6, WIDTH)).astype(np.float32)
    wanted = logits(written.spec, written.weights, embeds, LAYOUT, keep=7)
    for most in (LAYOUT.length, 7):
        cache = make(ort, d, [session])
        decoder = OrtDecoder(None, [session], cache, d, "CPU", rounds=False, part=most)
        steps = [decoder.forward(embeds[: LAYOUT.length], LAYOUT)[None]]
        for at in range(LAYOUT.length, len(embeds)):
            steps.append(cache.run(embeds[at : at + 1], position_feeds(d, LAYOUT, at, 1)))
        np.testing.assert_allclose(np.concatenate(steps), wanted, atol=2e-5)
        for count in (6, 2, 2, 3):
            cache.position = LAYOUT.length  # what was behind the prompt is forgotten
            feeds = position_feeds(d, LAYOUT, LAYOUT.length, count)
            together = cache.run(embeds[LAYOUT.length : LAYOUT.length + count], feeds, count)
            np.testing.assert_allclose(together, wanted[1 : 1 + count], atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_each_part_of_the_masks_matters(name: str) -> None:
    """What the test above compares would show a window that is one off, and a mask that is only causal."""
    spec = clip(DECODERS[name])
    weights, d = Drawn(spec), spec.decoder
    embeds = np.random.default_rng(4).normal(0, 1, (LAYOUT.length + 6, WIDTH)).astype(np.float32)
    right = logits(spec, weights, embeds, LAYOUT)
    near, far = d.blocks
    shifted = replace(d, blocks=(replace(near, mixers=(replace(near.mixers[0], window=9),)), far))
    others = [shifted] + ([] if d.mask == "causal" else [replace(d, mask="causal")])
    for other in others:
        assert np.abs(logits(replace(spec, decoder=other), weights, embeds, LAYOUT) - right).max() > 1e-3


@pytest.mark.parametrize("changes", [{"norm_after": False}, {"second_rope": None}, {"second_rope": "main"}])
def test_each_part_of_turning_halves_matters(changes: dict[str, Any]) -> None:
    embeds = np.random.default_rng(4).normal(0, 1, (LAYOUT.length + 6, WIDTH)).astype(np.float32)
    (block,), weights = HALVES.blocks, Drawn(clip(HALVES))
    other = replace(HALVES, blocks=(replace(block, mixers=(replace(block.mixers[0], **changes),)),))
    right, wrong = (logits(clip(d), weights, embeds, LAYOUT) for d in (HALVES, other))
    assert np.abs(right - wrong).max() > 1e-3


def test_a_rope_that_the_kernel_lacks_is_refused(tmp_path: Path) -> None:
    spec = clip(gemma())
    weights = Drawn(spec)
    with pytest.raises(EdgeVLMError, match="RoPE turns 8 values"):
        write_onnx(
            tmp_path, spec, weights, make_recipe("fp32"), lambda name: quantize(weights.read(name), "fp32", name)
        )


def test_parts_of_a_prompt_cut_no_block() -> None:
    """Pictures at 3 to 13 and 15 to 21."""
    assert [next_part(LAYOUT, "image", start, 24, 7) for start in (0, 3, 13, 15, 21)] == [3, 13, 15, 22, 24]
    assert next_part(LAYOUT, "image", 0, 24, 14) == 14
    assert next_part(LAYOUT, "prompt", 0, 24, 7) == 24
    assert next_part(LAYOUT, "causal", 2, 24, 7) == 9
    assert next_part(LAYOUT, "prompt", 24, 40, 7) == 31
    assert next_part(Layout(24), "image", 0, 5, 7) == 5


@pytest.mark.parametrize(
    ("name", "portable", "since"),
    [("windows", False, "1.24"), ("pictures", False, "1.30"), ("prompts", False, "1.30"), ("prompts", True, "1.27")],
)
def test_an_older_onnxruntime_is_refused(name: str, portable: bool, since: str) -> None:
    version = f"1.{int(since[2:]) - 1}.2"
    with pytest.raises(EdgeVLMError, match=f"onnxruntime {version} is too old for this model, .* from {since} on"):
        check_version(SimpleNamespace(__version__=version), DECODERS[name], portable)
    check_version(SimpleNamespace(__version__=f"{since}.0"), DECODERS[name], portable)
    check_version(SimpleNamespace(__version__="1.19.0"), clip().decoder, portable)


def test_8_bit_keys_and_values_want_a_newer_onnxruntime() -> None:
    d, older = with_cache(clip().decoder, "int8"), SimpleNamespace(__version__="1.26.0")
    with pytest.raises(EdgeVLMError, match=r"whose keys and values have 8 bits, which it computes right from 1\.27 on"):
        check_version(older, d, portable=False)
    check_version(older, d, portable=True)
    check_version(SimpleNamespace(__version__="1.27.0"), d, portable=False)
