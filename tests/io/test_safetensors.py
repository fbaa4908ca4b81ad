"""Files that are written here, read by the safetensors package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgevlm.io.safetensors import SafetensorsFile, write_safetensors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read_by_safetensors(tmp_path: Path, dtype: str) -> None:
    random = np.random.default_rng(0)
    shapes = {"b": (3, 5), "a.weight": (7,), "empty": (0, 2), "one": ()}
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_safetensors(tmp_path / "x.safetensors", shapes, values.__getitem__, dtype)
    found, ours = load_file(tmp_path / "x.safetensors"), SafetensorsFile(tmp_path / "x.safetensors")
    assert found.keys() == shapes.keys()
    for name, value in values.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], value.astype(dtype))
        np.testing.assert_array_equal(ours.read(name), value.astype(dtype).astype(np.float32))
