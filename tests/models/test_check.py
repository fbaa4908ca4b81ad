"""A model's description: every number of every part has a bound, and what is beyond it is refused."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import (
    HALVES,
    MROPE,
    PLAIN,
    asked,
    averaged,
    bottlenecks,
    clip,
    convolved,
    deep,
    gated,
    gemma,
    halved,
    intern,
    levels,
    pooled,
    qwen,
    sheet,
    streaming,
    windowed,
)

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.models.bounds import BOUNDS
from edgevlm.models.check import check_model
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Queries
from edgevlm.models.region import Region
from edgevlm.models.spec import Attention, Decoder, DeltaRule, Norm, RopeScaling, ShortConv


def scaled() -> ModelSpec:
    rope = replace(PLAIN.ropes["main"], scaling=RopeScaling(8.0, 1.0, 4.0, 64))
    conv = replace(PLAIN.blocks[0], mixers=(ShortConv(3),))
    rule = replace(PLAIN.blocks[0], mixers=(DeltaRule(2, 4, 8, 8, 4, Norm()),))
    blocks = (*PLAIN.blocks, conv, rule)
    decoder = replace(PLAIN, ropes={"main": rope}, blocks=blocks, layers=(0, 1, 2), learned_positions=9)
    return replace(clip(decoder), projector=(Queries("qformer", 4),), region=Region(7, 16, 64, 8, 8))


MODELS = [
    clip(), convolved(), bottlenecks(), intern(), pooled(), levels(), windowed(), sheet(), qwen(), deep(), halved(),
    asked(), gated(), clip(gemma()), clip(MROPE), clip(HALVES), scaled(), averaged(),
    clip(streaming()),
]  # fmt: skip


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.family)
def test_models_are_models(spec: ModelSpec) -> None:
    check_model(spec, "it", "try again")


def parts(hint: Any) -> Iterator[type]:
    """The dataclasses that a hint leads to."""
    if dataclasses.is_dataclass(hint):
        yield hint  # type: ignore[misc]
        for inner in typing.get_type_hints(hint).values():
            yield from parts(inner)
    for inner in typing.get_args(hint):
        yield from parts(inner)


def test_every_number_and_word_of_every_part_has_a_bound() -> None:
    """So that a new field cannot be forgotten."""
    found = set(parts(ModelSpec))
    assert found == set(BOUNDS)
    for part in found:
        hints = typing.get_type_hints(part)
        plain = {name for name, hint in hints.items() if {int, float, str} & set(leaves(hint))}
        assert plain == set(BOUNDS[part]), part


def leaves(hint: Any) -> Iterator[Any]:
    inner = [arg for arg in typing.get_args(hint) if typing.get_origin(hint) is not dict or arg is not str]
    if inner and (typing.get_origin(hint) in (tuple, dict, typing.Union) or isinstance(hint, types.UnionType)):
        for each in inner:
            yield from leaves(each)
    else:
        yield hint


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, dataclass) of everything in a spec."""
    if dataclasses.is_dataclass(value):
        yield path, value
        for field in dataclasses.fields(value):
            yield from places(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, tuple | dict):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    if isinstance(value, tuple):
        return tuple(changed(v, tuple(rest), new) if i == key else v for i, v in enumerate(value))
    if isinstance(value, dict):
        return value | {key: changed(value[key], tuple(rest), new)}
    return replace(value, **{key: changed(getattr(value, key), tuple(rest), new)})


def test_whatever_is_beyond_a_bound_is_refused_by_name() -> None:
    tried = set()
    for spec in MODELS:
        for path, part in places(spec):
            for name, bound in BOUNDS[type(part)].items():
                if not bound:
                    wrong: tuple[Any, ...] = ("x" * (limits.TEXT + 1),)
                elif isinstance(bound[0], str):
                    wrong = ("no such word",)
                else:
                    wrong = (bound[0] - 1, bound[1] * 2 + 1, float("nan"))
                for value in wrong:
                    value = (value,) if isinstance(getattr(part, name), tuple) else value
                    with pytest.raises(EdgeVLMError, match=rf"^it does not describe a model: .*{name}.* expected") as e:
                        check_model(changed(spec, (*path, name), value), "it", "try again")
                    assert len(str(e.value)) < 400
                tried.add((type(part), name))
    assert tried == {(part, name) for part, bounds in BOUNDS.items() for name in bounds}


WIDE = Attention(1024, 1024, 1024, rope="main")
TOGETHER: list[tuple[Any, str]] = [
    (lambda m: replace(m, decoder=replace(m.decoder, layers=())), "asks for 0 layers"),
    (lambda m: replace(m, decoder=replace(m.decoder, layers=(0,) * 1001)), "asks for 1001 layers, expected 1 to 1000"),
    (lambda m: replace(m, decoder=replace(m.decoder, layers=(0, 3))), "names a block that is not in decoder.blocks"),
    (lambda m: replace(m, decoder=replace(m.decoder, blocks=())), "names a block that is not in decoder.blocks"),
    (lambda m: replace(m, projector=()), "its projector has 0 steps"),
    (lambda m: replace(m, projector=m.projector * 20), "its projector has 60 steps"),
    (lambda m: replace(m, decoder=replace(m.decoder, ropes={})), "the RoPE 'main', which is not in decoder.ropes"),
    (lambda m: deep(m, mixers=()), "has no mixer, or more than two"),
    (lambda m: deep(m, mixers=(DeltaRule(1024, 1024, 1024, 1024, 4, Norm()),)), "beside keys and values, expected at"),
    (
        lambda m: deep(m, mixers=(DeltaRule(3, 4, 8, 8, 4, Norm()),)),
        "linear attention are no multiple of its key heads",
    ),
    (lambda m: deep(m, mixers=(WIDE,)), "keeps 6291456 values per position, expected at most 1048576"),
    (
        lambda m: deep(
            m, {"context_length": 1 << 20, "ropes": wide(m.decoder, 256)}, mixers=(replace(WIDE, heads=1, kv_heads=1),)
        ),
        "needs RoPE tables of over 134217728 values",
    ),
    (lambda m: replace(m, vision=replace(m.vision, image_size=8192, patch_size=1)), "takes 67108864 patches"),
    (lambda m: replace(m, vision=replace(m.vision, hidden_size=63)), "no multiple of num_attention_heads"),
    (lambda m: replace(m, decoder=replace(m.decoder, hidden_size=49)), "gives 48 channels and the decoder takes 49"),
    (
        lambda m: replace(halved(), vision=replace(halved().vision, halved=3)),
        "joins neighbours behind a layer that it has not",
    ),
    (lambda m: replace(m, image_token_id=90), "image_token_id 90 is outside the vocabulary"),
]


def deep(spec: ModelSpec, decoder: dict[str, Any] | None = None, **block: Any) -> ModelSpec:
    blocks = (replace(spec.decoder.blocks[0], **block),)
    return replace(spec, decoder=replace(spec.decoder, blocks=blocks, **(decoder or {})))


def wide(decoder: Decoder, size: int) -> dict[str, Any]:
    return {"main": replace(decoder.ropes["main"], size=size), "other": replace(decoder.ropes["main"], size=size)}


@pytest.mark.parametrize(("change", "sentence"), TOGETHER)
def test_numbers_that_do_not_go_together_are_refused(change: Any, sentence: str) -> None:
    with pytest.raises(EdgeVLMError) as caught:
        check_model(change(clip()), "it", "try again")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"layers": (2, 0, 1, 3)},
            "layer 0 reads keys and values of an earlier layer, and there is none",
        ),
        (
            {"layers": (0, 2, 3, 1)},
            "layer 2 reads keys and values of an earlier layer, and there is none",
        ),
        ({"norm": None}, "its layers take 40 values of a token, or further levels"),
        ({"norm": Norm("layer", weight=False)}, "a layer norm of it has no weight"),
    ],
)
def test_layers_that_share_find_what_they_share(wrong: dict[str, Any], said: str) -> None:
    spec = averaged()
    with pytest.raises(EdgeVLMError, match=said):
        check_model(replace(spec, decoder=replace(spec.decoder, **wrong)), "it", "try again")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"depths": (1, 2)}, "other numbers of stages and blocks"),
        ({"num_layers": 5}, "other numbers of stages and blocks"),
        ({"widths": (8, 12, 64)}, "no multiples of those before"),
        ({"squeeze": 5}, "no multiples of those before"),
        ({"patch_size": 8}, "no whole number of states"),
        ({"image_size": 40}, "no whole number of states"),
        ({"widths": ()}, "its tower has 0 stages"),
        ({"attending": 4}, "its tower has 3 stages, expected 4 to 16"),
        ({"attending": 2, "widths": (4, 4, 64)}, "no multiples of a head"),
    ],
)
def test_stages_that_do_not_fit_each_other(wrong: dict[str, Any], said: str) -> None:
    spec = convolved()
    with pytest.raises(EdgeVLMError, match=said):
        check_model(replace(spec, vision=replace(spec.vision, **wrong)), "it", "try again")


def layered(number: int, **fields: Any) -> dict[str, Any]:
    """The tower's layers, one with other fields."""
    layers = bottlenecks().vision.layers
    return {"layers": (*layers[:number], replace(layers[number], **fields), *layers[number + 1 :])}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_layers": 8}, "another number of layers than it says"),
        ({"fine": 9}, "none between the grids that it fuses"),
        ({"image_size": 56}, "no whole number of states"),
        ({"patch_size": 4}, "no whole number of fused states"),
        ({"patch_size": 24}, "no whole number of fused states"),
        (layered(5, stride=2), "no kernel that makes its grid smaller"),
        (layered(0, first=3), "too many kernels"),
        (layered(4, stride=16), "no whole number of states"),
        (layered(4, attention=Attention(3, 2, 8)), "attention with more than heads"),
        (layered(4, attention=Attention(2, 1, 8, bias=True)), "attention with more than heads"),
        (layered(7, attention=Attention(2, 1, 16)), "differs between layers"),
        ({"deepstack": (1,)}, "further levels of features"),
    ],
)
def test_bottlenecks_that_do_not_fit_each_other(wrong: dict[str, Any], said: str) -> None:
    spec = bottlenecks()
    with pytest.raises(EdgeVLMError, match=said):
        check_model(replace(spec, vision=replace(spec.vision, **wrong)), "it", "try again")
