"""The files that define how a checkpoint's pictures and text are processed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.io.json import JsonFile, read_json_file


class ProcessorFiles:
    """The files in `folder`, each read on first use; EdgeVLMError names the file that is missing or damaged.

    Both layouts are read: preprocessor_config.json beside processor_config.json and, since transformers 5, everything
    in processor_config.json.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> JsonFile:
        return read_json_file(self.folder / "config.json", required=False)

    @cached_property
    def processor(self) -> JsonFile:
        return read_json_file(self.folder / "processor_config.json", required=False)

    @cached_property
    def image(self) -> JsonFile:
        """The image processor's settings."""
        inner = self.processor.section("image_processor")
        return inner if inner.given else read_json_file(self.folder / "preprocessor_config.json")

    @cached_property
    def video(self) -> JsonFile:
        """The video processor's settings; where it has no file of its own, transformers takes the image processor's."""
        inner = self.processor.section("video_processor")
        own = inner if inner.given else read_json_file(self.folder / "video_preprocessor_config.json", required=False)
        return own if own.given else self.image

    @cached_property
    def tokenizer_config(self) -> JsonFile:
        return read_json_file(self.folder / "tokenizer_config.json", required=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_json)

    @property
    def tokenizer_json(self) -> Path:
        return self.folder / "tokenizer.json"

    @cached_property
    def names(self) -> dict[str, Any]:
        """bos_token and its like."""
        special = read_json_file(self.folder / "special_tokens_map.json", required=False)
        return special.data | self.tokenizer_config.data

    def token(self, key: str, usual: str) -> str:
        """A token that tokenizer_config.json names by `key`, at its top or in named extra_special_tokens."""
        extra = self.tokenizer_config.value("extra_special_tokens")
        named = isinstance(extra, dict) and extra.get(key) is not None
        return (self.tokenizer_config.section("extra_special_tokens") if named else self.tokenizer_config).text(
            key, usual
        )

    def check_class(self, *known: str) -> None:
        """Refuse a file that names another processor."""
        if self.processor.value("processor_class") not in (None, *known):
            raise self.processor.wrong("processor_class", " or ".join(known))

    def check_tokens(self, key: str, tokens: int) -> None:
        """Refuse a processor that gives a view another number of image tokens than config.json does."""
        if self.processor.value(key, tokens) != tokens:
            raise self.processor.wrong(key, f"the {tokens} image tokens of a view in config.json")
