"""Ids of tokens: under which key a config.json has them, and those that it leaves to the tokenizer."""

from __future__ import annotations

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.json import JsonFile, read_json_file


def token_key(config: JsonFile, name: str) -> str:
    """The key of the id of the token `name`, "image" or another: transformers 4 ends it in index, 5 in id."""
    return f"{name}_token_index" if config.value(f"{name}_token_id") is None else f"{name}_token_id"


def token_text(files: ProcessorFiles, name: str, usual: int) -> str:
    """The token `name` of config.json. usual: its id where the file has none."""
    key = token_key(files.config, name)
    found = files.tokenizer.id_to_token(files.config.count(key, usual, least=0))
    if found is None:
        raise files.config.wrong(key, "a token of tokenizer.json")
    return str(found)


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
