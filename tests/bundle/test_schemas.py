"""docs/schemas holds what the writers write: their files are valid by it, and what readers refuse it refuses, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.io.records import from_dict

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_they_are_the_programs_own() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_schemas.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["manifest", "preprocess", "prompt"])
def test_a_bundles_files_are_valid(name: str, tiny_bundle: Path) -> None:
    data = json.loads((tiny_bundle / f"{name}.json").read_text("utf-8"))
    validator(name).validate(data)
    version = "schema" if name == "manifest" else "version"
    assert data[version] == 2
    for wrong in (data | {"extra": 1}, data | {version: 1}, {k: v for k, v in data.items() if k != version}):
        assert not validator(name).is_valid(wrong)


RULES = [
    {"kind": "stretch", "side": 48},
    {"kind": "crop", "shortest": 48, "side": 48},
    {"kind": "pad", "side": 48, "color": [1, 2, 3]},
    {"kind": "fit", "side": 48, "least": 14, "color": [1, 2, 3]},
    {"kind": "ratio_tiles", "side": 48, "least": 1, "most": 6, "thumbnail": True},
    {"kind": "covering_tiles", "side": 48, "most": 6},
    {"kind": "overlapping_tiles", "side": 48, "margin": 8, "most": 6},
    {
        "kind": "padded_tiles", "side": 48, "patch": 4, "unit": 8, "most": 6, "color": [255, 255, 255],
        "whole_resample": "bicubic_plain",
    },
    {"kind": "native", "unit": 16, "least": 1024, "most": 10240},
    {"kind": "whole_then_tiles", "side": 48, "longest_edge": 144, "enlarge": False, "whole_resample": "bilinear"},
    {
        "kind": "tiles_then_whole", "side": 48, "longest_edge": None, "max_edge": 4096, "short_edge_multiple": 2,
        "split": False,
    },
]  # fmt: skip
SPECS = json.loads((VECTORS / "preprocess.json").read_text("utf-8"))["specs"]


def accepted(cls: type, data: Any) -> bool:
    try:
        from_dict(cls, data, "it")
    except EdgeVLMError:
        return False
    return True


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["kind"]))
def test_schema_and_reader_agree_on_rules(rule: dict[str, Any]) -> None:
    check, good = validator("preprocess"), SPECS["small"] | {"rule": rule}
    assert check.is_valid(good) and accepted(ImageSpec, good)
    for name in rule:
        damaged = [{k: v for k, v in rule.items() if k != name}, rule | {name: [1]}, rule | {f"{name}_": 1}]
        for wrong in damaged:
            assert not check.is_valid(good | {"rule": wrong}) and not accepted(ImageSpec, good | {"rule": wrong})


@pytest.mark.parametrize("change", [{"std": [1e-300, 1, 1]}, {"mean": [1e300, 0, 0]}, {"version": "x" * 9999}])
def test_absurd_numbers_of_pictures_are_one_short_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(EdgeVLMError) as caught:
        from_dict(ImageSpec, SPECS["small"] | change, "it")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("change", [{"stop_ids": [10**30]}, {"bos_id": -1}, {"pad_id": 1 << 31}])
def test_token_ids_are_bounded(change: dict[str, Any]) -> None:
    good = json.loads((VECTORS / "prompt.json").read_text("utf-8"))["spec"]
    assert not accepted(PromptSpec, good | change)


def test_schema_and_reader_agree_on_prompts() -> None:
    check, good = validator("prompt"), json.loads((VECTORS / "prompt.json").read_text("utf-8"))["spec"]
    assert check.is_valid(good) and accepted(PromptSpec, good)
    for part in ("chat", "picture"):
        for wrong in ({**good[part], "extra": ""}, {}, None):
            if part == "picture" and wrong == {}:  # every text may be left out
                assert check.is_valid(good | {part: wrong}) and accepted(PromptSpec, good | {part: wrong})
                continue
            assert not check.is_valid(good | {part: wrong}) and not accepted(PromptSpec, good | {part: wrong})
