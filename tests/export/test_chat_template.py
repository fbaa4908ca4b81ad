"""The written templates say what PromptSpec says, and what the original says, in each program's own engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from cases import heavy_but
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from build_smolvlm import CHAT_TEMPLATE
from tiny import deepseek_vl, gemma3, internvl, llava15, minicpmv4_6, nanovlm, qwen2_5_vl, qwen3_vl

from edgevlm.checkpoint.chat_template import ChatFormat, probes, read_chat_template
from edgevlm.export.chat_template import llama_cpp_template, processor_template
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.inputs.render import Picture, render, takes
from edgevlm.inputs.spec import Chat, RoleText
from edgevlm.io.json import JsonFile
from edgevlm.runtimes.ort.session import import_onnxruntime

Render = Callable[[str, list[dict[str, Any]], bool], str]

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'][0]['text'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ '<s>' }}"
    "{% for message in rest %}{% if message['role'] == 'user' %}{{ '[INST] ' }}{% endif %}"
    "{% if loop.first %}{{ system }}{% endif %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{{ ' [/INST]' if message['role'] == 'user' else '</s>' }}{% endfor %}"
)
ORIGINALS = {
    "smolvlm": (CHAT_TEMPLATE, "<image>"),
    "internvl": (internvl.CHAT_TEMPLATE, "<IMG_CONTEXT>"),
    "deepseek_vl": (deepseek_vl.CHAT_TEMPLATE, deepseek_vl.IMAGE),
    "llava": (llava15.CHAT_TEMPLATE, "<image>"),
    "qwen2_5_vl": (qwen2_5_vl.CHAT_TEMPLATE, "<|image_pad|>"),
    "qwen3_vl": (qwen3_vl.CHAT_TEMPLATE, "<|image_pad|>"),
    "nanovlm": (nanovlm.CHAT_TEMPLATE, "<|image|>"),
    "gemma3": (gemma3.CHAT_TEMPLATE, "<start_of_image>"),
    "minicpmv4_6": (minicpmv4_6.CHAT_TEMPLATE, "<|image_pad|>"),
    "llama2": (LLAMA2, "<image>"),
}


@cache
def compiled(template: str) -> jinja2.Template:
    return jinja2.Environment().from_string(template)


def by_jinja2(template: str, messages: list[dict[str, Any]], generation: bool) -> str:
    return compiled(template).render(messages=messages, add_generation_prompt=generation)


def by_transformers(template: str, messages: list[dict[str, Any]], generation: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=generation)
    return str(rendered[0])


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path) -> dict[str, Render]:
    import_onnxruntime()
    genai = pytest.importorskip("onnxruntime_genai")
    tokenizer = genai.Tokenizer(genai.Model(str(tiny_bundle)))

    def by_genai(template: str, messages: list[dict[str, Any]], generation: bool) -> str:
        said = json.dumps(messages)
        return str(tokenizer.apply_chat_template(said, template_str=template, add_generation_prompt=generation))

    return {"jinja2": by_jinja2, "transformers": by_transformers, "onnxruntime-genai": by_genai}


@cache
def formats() -> dict[str, tuple[str, ChatFormat, str]]:
    """Of each original: the template, what is read out of it, and its image token."""
    import tempfile

    found = {}
    for name, (template, image) in ORIGINALS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "chat_template.jinja").write_text(template, "utf-8")
            nothing = JsonFile(Path(folder) / "none", {})
            found[name] = template, read_chat_template(Path(folder), nothing, nothing, {}, image), image
    return found


def flat(messages: list[dict[str, Any]], image: str) -> list[dict[str, Any]]:
    """For originals of the decoder alone, which take texts."""
    return [{**m, "content": "".join(item.get("text", image) for item in m["content"])} for m in messages]


def cases() -> Iterator[tuple[str, list[dict[str, Any]], bool]]:
    for name, (_, found, _) in formats().items():
        for probe in probes():
            if takes(found.chat, probe):
                yield name, probe, True
                if name != "deepseek_vl":  # its original leaves the last turn open then, which Chat cannot say
                    yield name, probe, False


@pytest.mark.parametrize("engine", heavy_but(["jinja2"], ["jinja2", "transformers", "onnxruntime-genai"]))
def test_probes_read_as_upstreams_template_writes_them(engines: dict[str, Render], engine: str) -> None:
    written = engines[engine]
    for name, probe, generation in cases():
        original, found, image = formats()[name]
        messages = flat(probe, image) if name == "nanovlm" else probe
        expected = by_transformers(original, messages, generation)
        picture = f"{found.image_open}{image}{found.image_close}"
        assert written(processor_template(found.chat, picture), probe, generation) == expected, (name, probe)
        marker = "<__media_x7Fq__>"
        for kind in ("text", "media_marker"):
            marked = [
                {**m, "content": [i if "text" in i else {"type": kind, "text": marker} for i in m["content"]]}
                for m in probe
            ]
            got = written(llama_cpp_template(found.chat), marked, generation)
            assert got == expected.replace(picture, marker), (name, marked)


@pytest.mark.heavy
def test_transformers_js_renders_them_too(node_modules: Path, tmp_path: Path) -> None:
    """All probes, and nothing as content, in @huggingface/jinja."""
    asked = []
    for name, probe, generation in cases():
        _, found, image = formats()[name]
        nothing = [{"role": "user", "content": None}, {"role": "assistant"}, {"role": "user", "content": []}]
        picture = f"{found.image_open}{image}{found.image_close}"
        for template in (processor_template(found.chat, picture), llama_cpp_template(found.chat)):
            asked += [{"template": template, "messages": m, "generation": generation} for m in (probe, nothing)]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "render.mjs").write_text("""
import { Template } from "@huggingface/jinja";
import { readFileSync } from "node:fs";
const render = ({ template, messages, generation }) =>
  new Template(template).render({ messages, add_generation_prompt: generation });
console.log(JSON.stringify(JSON.parse(readFileSync("asked.json")).map(render)));
""")
    done = subprocess.run(["node", "render.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for case, rendered in zip(asked, json.loads(done.stdout), strict=True):
        assert rendered == by_jinja2(case["template"], case["messages"], case["generation"]), case


@pytest.mark.parametrize("engine", ["jinja2", "transformers", "onnxruntime-genai"])
def test_nothing_and_plain_texts_are_content(engines: dict[str, Render], engine: str) -> None:
    written = engines[engine]
    for name, (_, found, image) in formats().items():
        for template in (processor_template(found.chat, image), llama_cpp_template(found.chat)):
            asked = [{"role": "user", "content": "Hello"}]
            listed = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
            assert written(template, asked, True) == written(template, listed, True), name
            said = [found.chat.prefix, found.chat.default_system]
            for role in ("user", "assistant"):
                said += [found.chat.roles[role].open_text, found.chat.roles[role].close]
            empty = "".join(said)
            for content in ({"content": None}, {"content": []}, {}):
                messages = [{"role": "user", **content}, {"role": "assistant", **content}]
                if engine != "transformers" or content:  # it wants the key itself
                    assert written(template, messages, False) == empty, (name, content)


def test_a_text_that_begins_with_the_marker_begins_with_a_picture(engines: dict[str, Render]) -> None:
    """llama-server joins the items of a message with pictures to one text."""
    _, found, _ = formats()["smolvlm"]
    template = llama_cpp_template(found.chat)
    for engine in engines.values():
        for marker in ("<__media__>", "<__media_x7Fq__>"):
            got = engine(template, [{"role": "user", "content": f"{marker}What?"}], True)
            assert got == f"<|im_start|>User:{marker}What?<end_of_utterance>\nAssistant:"
        got = engine(template, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], False)
        assert got == "<|im_start|>User:<__media__>a<end_of_utterance>\n"


@pytest.mark.parametrize("engine", ["jinja2", "onnxruntime-genai"])
def test_unknown_roles_are_refused(engines: dict[str, Render], engine: str) -> None:
    _, found, image = formats()["llava"]
    with pytest.raises(Exception, match=r"raise_exception|Roles are assistant, system, user\."):
        engines[engine](processor_template(found.chat, image), [{"role": "tool", "content": "a"}], True)


TEXT = st.text(alphabet="ab'\"\\\n\r\t{}%# <|>é🙂", max_size=8)
ROLE = st.builds(RoleText, TEXT, st.none() | TEXT, TEXT)
ROLES = st.fixed_dictionaries({"user": ROLE, "assistant": ROLE}, optional={"system": ROLE})
CHATS = st.builds(
    Chat, TEXT, ROLES, TEXT, TEXT, st.sampled_from(["turn", "in_first_user"]), st.booleans(), TEXT, TEXT, TEXT,
    TEXT, TEXT, st.booleans(), join=TEXT,
)  # fmt: skip
ITEM = st.one_of(st.just({"type": "image"}), st.builds(lambda text: {"type": "text", "text": text}, TEXT))
MESSAGE = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system"]),
    st.lists(ITEM, min_size=1, max_size=4),
)


@given(chat=CHATS, messages=st.lists(MESSAGE, min_size=1, max_size=4), generation=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_chat_reads_as_prompt_json_says(
    engines: dict[str, Render], chat: Chat, messages: list[dict[str, Any]], generation: bool
) -> None:
    messages = [message for message in messages if takes(chat, [message])]
    count = sum(item["type"] == "image" for message in messages for item in message["content"])
    if not messages:
        return
    pieces = list(render(chat, messages, count, add_generation_prompt=generation))
    expected = "".join("<image>" if isinstance(piece, Picture) else piece.text for piece in pieces)
    for name in ("jinja2", "onnxruntime-genai"):
        assert engines[name](processor_template(chat, "<image>"), messages, generation) == expected, name
        got = engines[name](llama_cpp_template(chat), messages, generation)
        assert got == expected.replace("<image>", "<__media__>"), name


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_bundle_holds_both_templates(tiny_checkpoint: Path, tmp_path: Path, place: str) -> None:
    """transformers finds the original wherever it stood, and the plain one stands in tokenizer_config.json."""
    from transformers import AutoTokenizer, ProcessorMixin

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    if place != "chat_template.jinja":
        original = (folder / "chat_template.jinja").read_text("utf-8")
        (folder / "chat_template.jinja").unlink()
        data = json.loads((folder / place).read_text()) if (folder / place).exists() else {}
        (folder / place).write_text(json.dumps({**data, "chat_template": original}))
    out = export_model(ExportOptions(str(folder), tmp_path / "out", quantize="fp32", gate=False)).folder
    for reader in (
        lambda where: AutoTokenizer.from_pretrained(where).chat_template,
        lambda where: ProcessorMixin.get_processor_dict(where)[0].get("chat_template"),
    ):
        before = reader(folder)
        assert reader(out) == before or before is None
    plain = json.loads((out / "tokenizer_config.json").read_text())
    before = json.loads((folder / "tokenizer_config.json").read_text())
    assert {**plain, "chat_template": None} == {**before, "chat_template": None}
    for probe in probes():
        assert by_jinja2(plain["chat_template"], probe, True) == by_transformers(CHAT_TEMPLATE, probe, True)
