"""One check for everything that preprocess.json and prompt.json may get wrong."""

from __future__ import annotations

from edgevlm.errors import EdgeVLMError


def check(good: bool, which: str, name: str, expected: object, found: object) -> None:
    """Raise EdgeVLMError unless `good`. which: "image" or "prompt"."""
    if not good:
        raise EdgeVLMError(
            f"The {which} spec has {name} = {repr(found)[:100]}, expected {expected}: export the bundle again, "
            "or update edgevlm if the bundle is newer."
        )
