"""How a model writes boxes, where its tokenizer tells."""

from __future__ import annotations

from itertools import count

from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.inputs.grounding import Grounding


def loc_tokens(files: ProcessorFiles) -> Grounding | None:
    """Of a model that was trained with <loc_N> tokens: N is a bin, or, where there is one more, both edges have a N."""
    tokens = next(n for n in count() if files.tokenizer.token_to_id(f"<loc_{n}>") is None)
    edges = tokens % 2
    return Grounding("tokens", tokens - edges, middle=not edges, open="<loc_", close=">") if tokens else None
