"""What several tests of answers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm.bundle.manifest import open_bundle
from edgevlm.generate.loop import Pipeline
from edgevlm.runtimes import open_runtime


@pytest.fixture(scope="module")
def fast(tiny_bundle: Path) -> Iterator[Pipeline]:
    bundle = open_bundle(tiny_bundle)
    runtime = open_runtime(bundle, threads=1)
    yield Pipeline(bundle, runtime)
    runtime.close()
