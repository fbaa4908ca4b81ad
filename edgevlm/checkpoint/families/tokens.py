"""Ids of tokens that a config.json leaves to the tokenizer."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import read_json_file


def token_id(checkpoint: Checkpoint, token: str) -> int:
    """The id of an added token of the checkpoint's tokenizer.json."""
    path = checkpoint.processor / "tokenizer.json"
    added = read_json_file(path, largest=limits.TOKENIZER_FILE).value("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and entry.get("content") == token and type(entry.get("id")) is int:
            return int(entry["id"])
    raise EdgeVLMError(
        f"'{path}' has no added token '{token:.60}', which pictures stand for: take the model's own file."
    )
