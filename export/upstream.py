"""The checkpoint's small files in the bundle, with the chat template where each program looks for it."""

from __future__ import annotations

from pathlib import Path

from edgevlm.bundle.files import write_json
from edgevlm.checkpoint.chat_template import stored_template
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.checkpoint.upstream import copy_upstream

TOKENIZER, JINJA = "tokenizer_config.json", "chat_template.jinja"


def write_upstream(checkpoint: Checkpoint, folder: Path, template: str) -> None:
    """Copy the small files, and give tokenizer_config.json the chat template in plain Jinja, `template`.

    transformers.js and onnxruntime-genai read tokenizer_config.json, and render it with engines that know less than
    jinja2. transformers reads chat_template.jinja first: an original out of tokenizer_config.json moves there.
    """
    copy_upstream(checkpoint.folder, folder, checkpoint.processor)
    files = ProcessorFiles(checkpoint.processor)
    config = files.tokenizer_config.data
    found = stored_template(files.folder, files.processor, files.tokenizer_config)
    own = found[1] if found and found[0].name == TOKENIZER else config.get("chat_template")
    if isinstance(own, str) and not (folder / JINJA).exists():
        (folder / JINJA).write_text(own, encoding="utf-8", newline="\n")
    write_json(folder / TOKENIZER, config | {"chat_template": template})
