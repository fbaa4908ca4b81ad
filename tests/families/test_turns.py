"""Conversations of several turns with pictures, in every family that has a chat: token ids are transformers'.

Moondream and PaliGemma answer one question about one picture: theirs are no conversations.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import heavy_but
from jinja2 import TemplateError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.common import picture

sys.path.insert(0, str(Path(__file__).parent))
from harness import FamilyTests, Variant

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import find_family, read_model
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import plan
from edgevlm.inputs.prompt import Prompter

PICTURES = [picture(50, 70), picture(64, 48, 1)]


def _variants() -> dict[str, Variant]:
    """Each family's first."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(path.stem) if path.stem not in ("test_turns", "test_videos") else None
        for value in vars(module).values() if module else ():
            own = isinstance(value, type) and issubclass(value, FamilyTests) and hasattr(value, "variants")
            if own and value.__module__ == module.__name__:
                found[f"{path.stem.removeprefix('test_')}-{value.__name__}"] = next(iter(value.variants.values()))
    return found


VARIANTS = _variants()


def _say(role: str, *items: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"} if i is None else {"type": "text", "text": i} for i in items]}


CONVERSATIONS = {
    "turns": [
        _say("user", None, "What is in the picture?"),
        _say("assistant", "A disc and a bar."),
        _say("user", None, "And in this one?"),
        _say("assistant", "A bar."),
        _say("user", "Which is larger?"),
    ],
    "question": [
        _say("user", "Hello."),
        _say("assistant", "How can I help?"),
        _say("user", None, None, "Which is larger?"),
    ],
}


def _written(processor: Any, messages: list[dict[str, Any]]) -> str:
    """The template's text. Some take a list of items from a user alone, and a text from others."""
    try:
        text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TypeError:
        plain = [{**m, "content": m["content"][0]["text"]} if len(m["content"]) == 1 else m for m in messages]
        text = processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    return text


ALONE = ("moondream", "paligemma", "fast_vlm-TestFastVlmAsItsAuthorsPublishIt")  # which take one picture


# Of the default suite: beside a plain template, those with views, numbers or roles of their own.
KEPT = (
    "smolvlm",
    "qwen2_5",
    "qwen3_vl",
    "internvl",
    "llava_next",
    "gemma3-",
    "minicpmv-",
    "phi4",
    "lfm2",
    "glm4v-TestGlm4V",
)


@pytest.mark.parametrize(
    "name",
    heavy_but(
        [name for name in VARIANTS if name.startswith(KEPT)],
        [name for name in VARIANTS if not name.startswith(ALONE)],
    ),
)
def test_turns_are_transformers(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    variant.build(tmp_path / "c")
    checkpoint = open_checkpoint(str(tmp_path / "c"))
    model, _ = read_model(checkpoint)
    family, files = find_family(checkpoint.config, "tiny"), ProcessorFiles(checkpoint.folder)
    image, spec = family.image(files, model), family.prompt(files, model).spec
    prompter = Prompter(spec, files.tokenizer_json)
    processor = variant.processor(tmp_path / "c")
    rule = image.among(len(PICTURES))
    placed = [rule.view_tokens(plan(*p.size, rule), p.size) for p in PICTURES]
    first = [] if variant.system is None else [_say("system", variant.system)]
    for messages in CONVERSATIONS.values():
        text = _written(processor, [*first, *messages])
        expected = processor(text=text, images=PICTURES, return_tensors="pt")["input_ids"][0].tolist()
        assert prompter.encode(messages, placed)[0].tolist() == expected
    if "system" not in spec.chat.roles:
        return
    later = [*CONVERSATIONS["turns"][:2], _say("system", "Be brief."), _say("user", None, "And this one?")]
    text = ""
    with suppress(TemplateError):  # which some write themselves
        text = _written(processor, [*first, *later])
    expected = processor(text=text, images=PICTURES, return_tensors="pt")["input_ids"][0].tolist() if text else []
    written = Prompter(replace(spec, chat=replace(spec.chat, system_first=False)), files.tokenizer_json)
    assert (written.encode(later, placed)[0].tolist() == expected) == (not spec.chat.system_first)
    if spec.chat.system_first:
        with pytest.raises(EdgeVLMError, match="a system message at the beginning alone"):
            prompter.encode(later, placed)
