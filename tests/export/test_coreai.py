"""The second opinion: on Core AI's runtime a right model agrees with the reference and a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.export.coreai_.write import write_aimodel
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder, ProjectorSpec
from edgevlm.models.towers.vit import Vit
from edgevlm.runtimes import coreai
from edgevlm.runtimes.coreai import DECODER, ROWS, VISION, CoreAIRuntime
from edgevlm.verify import second_opinion as opinions
from edgevlm.verify.reference import Reference, cosine

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
def program(folder: Path, spec: ModelSpec, weights: Any, context: int) -> Iterator[CoreAIRuntime]:
    write_aimodel(folder, spec, weights, context)
    with closing(CoreAIRuntime(folder, spec, weights, context)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def ask(bundle: Bundle, folder: Path, written: Any = None) -> opinions.Opinion:
    weights, asked = ShippedWeights(bundle), opinions.questions(bundle)[:1]
    with program(folder, bundle.manifest.spec, written or weights, len(asked[0].ids)) as runtime:
        (opinion,) = opinions.second_opinion(bundle, weights, runtime, asked)
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
@pytest.mark.parametrize("table", ["_sin", "_keys", "_values"])
def test_a_wrong_rotation_or_cache_is_found(
    bundle: Bundle, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = CoreAIRuntime._decode

    def decode(self: CoreAIRuntime, embeds: Any) -> Any:
        getattr(self, table)[...] *= -1
        return begin(self, embeds)

    monkeypatch.setattr(CoreAIRuntime, "_decode", decode)
    opinion = ask(bundle, tmp_path)
    assert opinion.features > 0.999999 and opinion.logits < opinions.BOUND


SPEC = ModelSpec(
    "small",
    "llava",
    Vit(16, 4, 24, 40, 2, 3, 1e-6, "gelu", post_norm=False),
    ProjectorSpec("mlp", activation="gelu"),
    Decoder(50, 32, 48, 2, 4, 1, 8, 1e-5, 10000.0, 128, False),
    49,
)


class Drawn:
    """Random weights, each drawn when it is first read; of the decoder only q has a bias."""

    def __init__(self) -> None:
        self._rng, self._drawn = np.random.default_rng(0), dict[str, Any]()

    def __contains__(self, name: object) -> bool:
        return str(name).startswith(("vision.", "projector.")) or str(name).endswith(".q.bias")

    def read(self, name: str) -> Any:
        if name not in self._drawn:
            self._drawn[name] = self._rng.normal(0, 0.3, self._shape(name)).astype(np.float32)
        return self._drawn[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        parts = name.split(".")
        sizes: dict[str, tuple[int, int]] = {
            "fc1": (40, 24), "fc2": (24, 40), "linear_1": (32, 24), "linear_2": (32, 32), "embed": (50, 32),
            "head": (50, 32), "gate": (48, 32), "up": (48, 32), "down": (32, 48),
        }  # fmt: skip
        if parts[1] == "patch_embedding":
            return (24, 3, 4, 4) if parts[-1] == "weight" else (24,)
        if parts[1] == "position_embedding":
            return (16, 24)
        wide = 24 if parts[0] == "vision" else 32
        if "norm" in parts[-2]:
            return (wide,)
        rows = {"k": 8, "v": 8}.get(parts[-2], 32) if parts[0] == "decoder" else wide
        shape = sizes.get(parts[-2], (rows, wide))
        return shape if parts[-1] == "weight" else shape[:1]


@needs_coreai
def test_other_architectures_and_long_prompts(tmp_path: Path) -> None:
    """MLP projector, exact GELU, one key head, biases on some packed maps, an untied head, three calls of rows."""
    weights, rng = Drawn(), np.random.default_rng(1)
    reference = Reference(SPEC, weights)
    tiles = rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    prompt = rng.normal(0, 1, (2 * ROWS + 7, 32)).astype(np.float32)
    with program(tmp_path, SPEC, weights, 80) as runtime:
        assert cosine(runtime.encode(tiles), reference.features(tiles)) > 0.999999
        assert cosine(runtime.prefill(prompt), reference.logits(prompt)[-1]) > 0.999999
        runtime.truncate(ROWS + 3)
        expected = reference.logits(prompt[: ROWS + 3], reference.embed(np.array([5])))
        assert cosine(runtime.step(5), expected[-1]) > 0.999999
        assert runtime.position == ROWS + 4
        with pytest.raises(EdgeVLMError, match="80"):
            runtime.prefill(prompt)
        runtime.close()  # and once more on leaving


@needs_coreai
def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    weights = Drawn()
    write_aimodel(tmp_path, SPEC, weights, 64)
    path = tmp_path / DECODER / "main.mlirb"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgeVLMError, match=rf"cannot load .*{DECODER}"):
        CoreAIRuntime(tmp_path, SPEC, weights, 64)
    with pytest.raises(EdgeVLMError, match=rf"cannot load .*{VISION}"):
        CoreAIRuntime(tmp_path / "missing", SPEC, weights, 64)
    with pytest.raises(EdgeVLMError, match="could not be written"):
        write_aimodel(path, SPEC, weights, 64)


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
    with pytest.raises(EdgeVLMError, match=r"pip install 'edgevlm\[coreai\]'"):
        write_aimodel(tmp_path, SPEC, Drawn(), 64)
