"""Options of the wrong type are one sentence that says what is wanted, in every dataclass of options there is."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io.options import check_types


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Options:
    count: int = 1
    share: float = 0.5
    name: str = "a"
    place: Path | None = None
    force: bool = False
    parts: tuple[str, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": "2"}, "count is '2': give a whole number."),
        ({"count": 2.0}, "count is 2.0: give a whole number."),
        ({"count": None}, "count is None: give a whole number."),
        ({"count": True}, "count is True: give a whole number."),
        ({"count": [1]}, "count is of type list: give a whole number."),
        ({"share": "1"}, "share is '1': give a number."),
        ({"share": False}, "share is False: give a number."),
        ({"name": 5}, "name is 5: give a text."),
        ({"name": b"a"}, "name is of type bytes: give a text."),
        ({"place": 5}, "place is 5: give a path, or None."),
        ({"place": ""}, "place is '': give a path, or None."),
        ({"force": 1}, "force is 1: give True or False."),
        ({"parts": "vision"}, "parts is 'vision': give a tuple, each a text."),
        ({"parts": (1,)}, "parts is of type tuple: give a tuple, each a text."),
        ({"bounds": {"kl": "x"}}, "bounds is of type dict: give a dict, each value a number."),
        ({"bounds": ["kl"]}, "bounds is of type list: give a dict, each value a number."),
        ({"inner": {"size": 1}}, "inner is of type dict: give an Inner."),
    ],
)
def test_a_wrong_type_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgeVLMError) as caught:
        Options(**given)
    assert str(caught.value) == sentence


def test_what_means_one_thing_only_is_put_right() -> None:
    options = Options(
        count=np.int64(3),  # type: ignore[arg-type]
        share=np.float32(0.25),
        name=PurePosixPath("b"),  # type: ignore[arg-type]
        place="c",  # type: ignore[arg-type]
        parts=["d"],  # type: ignore[arg-type]
    )
    assert options == Options(3, 0.25, "b", Path("c"), parts=("d",))
    assert (type(options.count), type(options.share)) == (int, float)
    assert Options(share=1).share == 1


MODULES = (
    "generate.sampling", "runtimes.base", "evaluation.runner", "bench.measure", "report.gather", "verify.gate",
    "export.pipeline", "export.calibrate.plan", "export.coreml_.options", "train.options", "train.compose",
    "train.shipped.stages", "train.shipped.recipe",
)  # fmt: skip


def classes() -> Iterator[type[Any]]:
    for module in MODULES:
        for name, found in vars(importlib.import_module(f"edgevlm.{module}")).items():
            if (name.endswith("Options") or name == "Recipe") and found.__module__ == f"edgevlm.{module}":
                yield found


def test_every_dataclass_of_options_checks_its_types(tmp_path: Path) -> None:
    found = list(classes())
    assert len(found) >= 13
    fitting = {str: "default", Path: tmp_path, int: 1}
    for kind in found:
        hints = typing.get_type_hints(kind)
        required = {f.name: fitting[hints[f.name]] for f in dataclasses.fields(kind) if is_required(f)}
        for name, hint in hints.items():
            for value in (object(), 5 if "str" in str(hint) or "Path" in str(hint) else "2.5"):
                if (hint is str and isinstance(value, str)) or ("Path" in str(hint) and value == "2.5"):
                    continue
                with pytest.raises(EdgeVLMError, match=f"^{name} is .*: give .*\\.$"):
                    kind(**{**required, name: value})


def is_required(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
