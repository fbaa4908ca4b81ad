"""Keys and values of the two files (llama.cpp: gguf-py/gguf/constants.py, tools/mtmd/clip.cpp)."""

from __future__ import annotations

import json
from typing import Any

from gguf import GGUFWriter, LlamaFileType

from edgevlm.export.chat_template import llama_cpp_template
from edgevlm.export.gguf_.archs.parts import Value
from edgevlm.export.gguf_.tokenizer import Vocabulary
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.io.records import to_dict

SCHEMA = 2
_FILE_TYPES = {
    "fp32": LlamaFileType.ALL_F32,
    "fp16": LlamaFileType.MOSTLY_F16,
    "int8": LlamaFileType.MOSTLY_Q8_0,
    "int4": LlamaFileType.MOSTLY_Q4_0,
}


def add_model(writer: GGUFWriter, kind: str, name: str, form: str, keys: dict[str, Value]) -> None:
    """kind: "model" or "mmproj"; form: of most weights. The writer already holds `general.architecture`."""
    writer.add_type(kind)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[form])
    writer.add_quantization_version(2)
    for key, value in keys.items():
        if key != "general.architecture":
            _add(writer, key, value)


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    adders: dict[type, Any] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    adders[type(value)](key, value)


def add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary, prompt: PromptSpec) -> None:
    """A bos token in the template must not be added a second time."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    if prompt.bos_id is not None:
        writer.add_bos_token_id(prompt.bos_id)
    writer.add_eos_token_id(prompt.stop_ids[0])
    writer.add_eot_token_id(prompt.stop_ids[-1])
    if prompt.pad_id is not None:
        writer.add_pad_token_id(prompt.pad_id)
    writer.add_add_bos_token(prompt.add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(llama_cpp_template(prompt.chat))


def add_own(writer: GGUFWriter, image: ImageSpec, prompt: PromptSpec) -> None:
    """Our specs in both files: GGUF has no keys for filter, padding, tiling or EXIF, and a file may travel alone."""
    writer.add_uint32("edgevlm.schema", SCHEMA)
    writer.add_string("edgevlm.preprocess", json.dumps(to_dict(image), sort_keys=True))
    writer.add_string("edgevlm.prompt", json.dumps(to_dict(prompt), sort_keys=True))
