"""A model that is made deeper says what it said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from edgevlm.errors import EdgeVLMError
from edgevlm.train.models import open_source
from edgevlm.train.shipped.grow import grow, main, places
from edgevlm.train.shipped.parts import Shape, build

SMALL = Shape(vision_width=64, vision_layers=2, vision_mlp=96, width=128, layers=1, mlp=96, tile=32, patch=8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("grow") / "small", SMALL)


def logits(folder: Path, patch: int = SMALL.patch) -> torch.Tensor:
    """Of one picture, whose patches are enlarged each by itself."""
    source = open_source(str(folder))
    model = source.load().eval()
    tokens, side = source.spec.image_tokens, SMALL.tile // SMALL.patch
    ids = torch.tensor([[*[model.config.image_token_id] * tokens, 40, 50, 60]])
    pixels = torch.rand(1, 3, SMALL.tile, SMALL.tile, generator=torch.Generator().manual_seed(0))
    patches = F.unfold(pixels, SMALL.patch, stride=SMALL.patch)[0].T.unflatten(1, (3, SMALL.patch, SMALL.patch))
    if patch != SMALL.patch:
        patches = F.interpolate(patches, (patch, patch), mode="bicubic", antialias=True)
    pixels = F.fold(patches.flatten(1).T[None], side * patch, patch, stride=patch)[:, None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits
    return found


def test_a_deeper_model_computes_the_same_until_it_is_trained(small: Path, tmp_path: Path) -> None:
    deep = grow(str(small), tmp_path / "deep", vision_layers=5, layers=3)
    config = open_source(str(deep)).checkpoint.config
    assert config["vision_config"]["num_hidden_layers"] == 5 and config["text_config"]["num_hidden_layers"] == 3
    torch.testing.assert_close(logits(deep), logits(small))
    model = open_source(str(deep)).load()
    names = {name.split("layers.")[1].split(".")[0] for name in model.state_dict() if "vision_model.encoder" in name}
    assert names == set("01234")


def test_a_larger_patch_sees_the_same_in_an_enlarged_picture(small: Path, tmp_path: Path) -> None:
    large = grow(str(small), tmp_path / "large", patch=13)
    source = open_source(str(large))
    assert source.spec.vision.image_size == 52 and source.spec.vision.patch_size == 13
    assert source.image.rule.side == 52 and source.spec.image_tokens == open_source(str(small)).spec.image_tokens
    torch.testing.assert_close(logits(large, 13), logits(small), rtol=1e-3, atol=1e-4)


def test_every_new_weight_gets_a_gradient_in_two_steps(small: Path, tmp_path: Path) -> None:
    """The outputs are zero, so that what is before them learns one step later; what stays zero would be lost."""
    source = open_source(str(grow(str(small), tmp_path / "deep", layers=2)))
    model = source.load()
    ids = torch.arange(20, 40)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    new = {name: p for name, p in model.named_parameters() if "text_model.layers.1." in name}
    assert new and all(p.grad is not None and p.grad.abs().max() > 0 for p in new.values())


@given(st.integers(1, 12), st.integers(0, 24))
def test_layers_are_added_evenly(count: int, added: int) -> None:
    order = places(count, count + added)
    times = [order.count(old) for old in range(count)]
    assert order == sorted(order) and len(order) == count + added and sum(times) == len(order)
    assert min(times) >= 1 and max(times) - min(times) <= 1


def test_a_model_does_not_shrink_and_nothing_is_overwritten(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small), "--out", str(tmp_path / "out"), "--vision-layers", "1"]) == 2
    assert "it can only grow" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([str(small), "--out", str(tmp_path / "out"), "--patch", "4"]) == 2
    with pytest.raises(EdgeVLMError, match="small"):
        grow(str(small), small)
