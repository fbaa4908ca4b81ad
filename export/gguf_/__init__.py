"""GGUF emitter: the decoder and the mmproj file, written from the one quantizer's codes."""

from edgevlm.errors import EdgeVLMError, install_hint

try:
    import gguf as _gguf  # noqa: F401
except ImportError:
    raise EdgeVLMError(
        f"Writing GGUF needs the package gguf, which is not installed: {install_hint('gguf')}."
    ) from None

from edgevlm.export.gguf_.validate import validate_gguf
from edgevlm.export.gguf_.writer import plan, write_gguf

__all__ = ["plan", "validate_gguf", "write_gguf"]
