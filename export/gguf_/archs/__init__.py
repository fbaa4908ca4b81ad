"""What llama.cpp can compute: a table for each of its text architectures and projector types.

Which one a model takes follows from its description. Nothing here knows a family.
"""

from edgevlm.export.gguf_.archs.projector import ProjectorType
from edgevlm.export.gguf_.archs.projectors import projector_type, why_no_pictures
from edgevlm.export.gguf_.archs.text import TextArch, text_arch

__all__ = ["ProjectorType", "TextArch", "projector_type", "text_arch", "why_no_pictures"]
