"""The second opinion: on Core AI's runtime a right model agrees with the reference and a wrong one does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import (
    HALVES,
    IMAGE,
    LAYOUT,
    PLAIN,
    WIDTH,
    Drawn,
    bottlenecks,
    clip,
    convolved,
    cosine,
    deep,
    features,
    gemma,
    intern,
    logits,
    picture,
    pooled,
    qwen,
    woven,
)  # fmt: skip

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreai_.write import write_aimodel
from edgevlm.inputs.layout import Layout, Span
from edgevlm.inputs.spec import ImageSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Block, ShortConv
from edgevlm.runtimes import coreai
from edgevlm.runtimes.base import Runtime
from edgevlm.runtimes.coreai import DECODER, ROWS, VISION, CoreAIRuntime
from edgevlm.verify import second_opinion as opinions

needs_coreai = pytest.mark.skipif(find_spec("coreai") is None, reason="the extra coreai is not installed")
Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Spoiled:
    """Weights of which one is wrong."""

    def __init__(self, inner: Any, name: str, change: Change) -> None:
        self._inner, self._name, self._change = inner, name, change

    def read(self, name: str) -> Any:
        value = self._inner.read(name)
        return self._change(value) if name == self._name else value

    def __contains__(self, name: object) -> bool:
        return name in self._inner


@contextmanager
def program(
    folder: Path, spec: ModelSpec, weights: Any, context: int, image: ImageSpec = IMAGE
) -> Iterator[CoreAIRuntime]:
    write_aimodel(folder, spec, weights, context, views=[(48, 48), (24, 40)])
    with closing(CoreAIRuntime(folder, spec, weights, image, context)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def ask(bundle: Bundle, folder: Path, written: Any = None) -> opinions.SecondOpinionRow:
    weights, asked = ShippedWeights(bundle), opinions.questions(bundle)[:1]
    with program(folder, bundle.manifest.spec, written or weights, len(asked[0].ids), bundle.image_spec) as engine:
        (opinion,) = opinions.second_opinion(bundle, weights, Runtime(engine, engine), asked)
    return opinion


@needs_coreai
def test_agrees_on_the_tiny_model(bundle: Bundle, tmp_path: Path) -> None:
    opinion = ask(bundle, tmp_path)
    assert opinion.features > 0.999999 and opinion.logits > 0.999999 and opinion.agreed


@needs_coreai
@pytest.mark.parametrize(
    ("name", "change", "spoiled"),
    [
        ("vision.layers.0.fc1.weight", lambda w: w[::-1], "features"),
        ("vision.layers.0.o.bias", lambda w: w + np.linspace(0, 1, len(w), dtype=np.float32), "features"),
        ("decoder.layers.0.k.weight", lambda w: w[::-1], "logits"),
        ("decoder.norm.weight", lambda w: w * np.linspace(0.5, 1.5, len(w), dtype=np.float32), "logits"),
    ],
)
def test_a_wrong_weight_is_found(bundle: Bundle, tmp_path: Path, name: str, change: Change, spoiled: str) -> None:
    opinion = ask(bundle, tmp_path, Spoiled(ShippedWeights(bundle), name, change))
    assert not opinion.agreed and opinion.row()[-1] == "MISSED"
    assert getattr(opinion, spoiled) < opinions.BOUND
    assert (opinion.features < opinions.BOUND) == (spoiled == "features")


@needs_coreai
@pytest.mark.parametrize("spoiled", ["sin", "key", "value"])
def test_a_wrong_rotation_or_state_is_found(
    bundle: Bundle, tmp_path: Path, spoiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = CoreAIRuntime._call

    def call(self: CoreAIRuntime, function: Any, inputs: dict[str, Any]) -> Any:
        wrong = {name: -value if name.endswith(spoiled) else value for name, value in inputs.items()}
        return begin(self, function, wrong)

    monkeypatch.setattr(CoreAIRuntime, "_call", call)
    opinion = ask(bundle, tmp_path)
    assert opinion.features > 0.999999 and opinion.logits < opinions.BOUND


@needs_coreai
@pytest.mark.parametrize(
    "spec",
    [clip(), convolved(), bottlenecks(), intern(), clip(gemma()), clip(HALVES)],
    ids=["clip", "convolved", "bottlenecks", "intern", "gemma", "halves"],
)
def test_square_towers_and_long_prompts(tmp_path: Path, spec: ModelSpec) -> None:
    """Three calls of rows, a step back, and the limit of the cache."""
    weights, side = Drawn(spec), getattr(spec.vision, "patches_per_side", 0)
    view = picture(side, side, spec.vision.patch_size)
    views = [view, 191 - view // 2]
    prompt = np.random.default_rng(1).normal(0, 1, (2 * ROWS + 7, WIDTH)).astype(np.float32)
    with program(tmp_path, spec, weights, 80) as runtime:
        for ours, view in zip(runtime.encode(views), views, strict=True):
            assert cosine(ours, features(spec, weights, view)) > 0.999999
        assert cosine(runtime.forward(prompt), logits(spec, weights, prompt, Layout(0))[-1]) > 0.999999
        runtime.rewind(ROWS + 3)
        told = np.concatenate([prompt[: ROWS + 3], runtime.embed(np.array([5]))])
        assert cosine(runtime.step(5), logits(spec, weights, told, Layout(0))[-1]) > 0.999999
        assert runtime.position == ROWS + 4
        with pytest.raises(EdgeVLMError, match="80"):
            runtime.forward(prompt)
        runtime.close()  # and once more on leaving


@needs_coreai
def test_pictures_of_any_grid_and_positions_of_three_axes(tmp_path: Path) -> None:
    spec = qwen()
    weights = Drawn(spec)
    embeds = np.random.default_rng(5).normal(0, 1, (30, WIDTH)).astype(np.float32)
    with program(tmp_path, spec, weights, 40) as runtime:
        for grid in ((6, 10), (4, 4), (2, 14), (12, 12)):
            view = picture(*grid, 4)
            assert cosine(runtime.encode([view])[0], features(spec, weights, view)) > 0.999999
        with pytest.raises(EdgeVLMError, match="too large for a Core AI program"):
            runtime.encode([picture(14, 14, 4)])
        wanted = logits(spec, weights, embeds, LAYOUT, keep=30)
        assert cosine(runtime.forward(embeds[:24], LAYOUT), wanted[23]) > 0.999999
        assert cosine(runtime.forward(embeds[24:]), wanted[29]) > 0.999999
        runtime.rewind(0)
        assert cosine(runtime.forward(embeds), logits(spec, weights, embeds, Layout(0))[-1]) > 0.999999


@needs_coreai
@pytest.mark.parametrize("make", [deep, woven], ids=["levels and a mixed table", "a smooth table"])
def test_tables_that_are_resampled_and_levels_of_features(tmp_path: Path, make: Callable[[], ModelSpec]) -> None:
    spec = make()
    if getattr(spec.vision, "convolving", ()):
        spec = replace(spec, vision=replace(spec.vision, convolving=()))  # type: ignore[call-arg]
    weights = Drawn(spec)
    embeds = np.random.default_rng(5).normal(0, 1, (24, spec.decoder.embed_width)).astype(np.float32)
    with program(tmp_path, spec, weights, 40) as runtime:
        for grid in ((6, 10), (4, 4), (2, 14)):
            view = picture(*grid, 4)
            assert cosine(runtime.encode([view])[0], features(spec, weights, view)) > 0.999999
        assert cosine(runtime.forward(embeds, LAYOUT), logits(spec, weights, embeds, LAYOUT)[-1]) > 0.999999


@needs_coreai
@pytest.mark.parametrize("mask", ["image", "prompt"])
def test_positions_that_see_later_ones(tmp_path: Path, mask: str) -> None:
    """More than a causal call has, of neighbours that become their mean."""
    spec, layout = replace(pooled(), decoder=replace(gemma(), mask=mask)), Layout(50, (Span(4, (6, 6)),))
    weights, side = Drawn(spec), getattr(spec.vision, "patches_per_side", 0)
    embeds = np.random.default_rng(5).normal(0, 1, (52, WIDTH)).astype(np.float32)
    wanted, view = logits(spec, weights, embeds, layout, keep=52), picture(side, side, spec.vision.patch_size)
    with program(tmp_path, spec, weights, 64) as runtime:
        assert cosine(runtime.encode([view])[0], features(spec, weights, view)) > 0.999999
        assert cosine(runtime.forward(embeds[:50], layout), wanted[49]) > 0.999999
        assert cosine(runtime.forward(embeds[50:]), wanted[51]) > 0.999999


@needs_coreai
def test_a_state_that_is_replaced_is_refused(tmp_path: Path) -> None:
    blocks = (*PLAIN.blocks, Block((ShortConv(3),), PLAIN.blocks[0].mlp))
    spec = clip(replace(PLAIN, blocks=blocks, layers=(0, 1)))
    with pytest.raises(EdgeVLMError, match=r"also carries '1\.conv'"):
        write_aimodel(tmp_path, spec, Drawn(spec), 64)


@needs_coreai
def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    spec = clip()
    weights = Drawn(spec)
    write_aimodel(tmp_path, spec, weights, 64)
    path = tmp_path / DECODER / "main.mlirb"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgeVLMError, match=rf"cannot load .*{DECODER}"):
        CoreAIRuntime(tmp_path, spec, weights, IMAGE, 64)
    with pytest.raises(EdgeVLMError, match=rf"cannot load .*{VISION}"):
        CoreAIRuntime(tmp_path / "missing", spec, weights, IMAGE, 64)
    with pytest.raises(EdgeVLMError, match="could not be written"):
        write_aimodel(path, spec, weights, 64)


@needs_coreai
def test_verify_on_the_default_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "default")
    export = ["export", "default", "-o", out, "--quantize", "int8", "--no-gate"]
    for words in (export, ["verify", out, "--second-opinion"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.err.splitlines() if line.split()[:1] and "." in line.split()[0]]
    told = {row[0]: [float(cell) for cell in row[1:]] for row in rows if len(row) == 3}
    assert shown.out == "" and len(told) == len(opinions.PICTURES)
    assert min(min(row) for row in told.values()) > 0.999999


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(coreai.importlib, "import_module", missing)
    with pytest.raises(EdgeVLMError, match=r"pip install '\.\[coreai\]'"):
        write_aimodel(tmp_path, clip(), Drawn(clip()), 64)
