"""How the tests of limits hold a refusal: one short sentence, soon."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgevlm.errors import EdgeVLMError


def refused(call: Callable[[], object], sentence: str) -> None:
    start = time.monotonic()
    with pytest.raises(EdgeVLMError) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - start < 10
