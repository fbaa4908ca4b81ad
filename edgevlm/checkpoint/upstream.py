"""A checkpoint's small files, which are copied beside what is made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgevlm.errors import EdgeVLMError
from edgevlm.io.links import stays_inside

# What upstream tools (transformers, transformers.js, tokenizers, llama.cpp's converters) look for beside the weights.
UPSTREAM = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)


def upstream_files(folder: Path, processor: Path | None = None) -> list[Path]:
    """Those that the checkpoint in `folder` has. processor: where all but config.json lie, if elsewhere.

    EdgeVLMError for a link out of it: whoever made the link would choose a file of this machine to be published.
    """
    places = [(folder if name == "config.json" else processor or folder) / name for name in UPSTREAM]
    found = [path for path in places if path.is_file()]
    for path in found:
        if not stays_inside(path, path.parent):
            raise EdgeVLMError(
                f"'{path}' is a link to '{path.resolve()}', which is outside of the checkpoint and would be copied "
                "into what is made of it: put the file itself there, if it belongs to the model."
            )
    return found


def copy_upstream(source: Path, folder: Path, processor: Path | None = None) -> None:
    """Copy them from the checkpoint in `source`, and its `processor`, into `folder`."""
    for path in upstream_files(source, processor):
        shutil.copyfile(path, folder / path.name)
