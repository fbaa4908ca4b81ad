"""A checkpoint's chat template -> the literal pieces of a PromptSpec: a device needs no template engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.prompt import Control, Plain, render
from edgevlm.inputs.spec import PROMPT_SPEC_VERSION, PromptSpec, RoleText
from edgevlm.io.json import JsonFile, read_json_file

IMAGE, END = "<image>", "<end_of_utterance>"

# The template that every SmolVLM and Idefics3 ships, after its prefix.
FAMILY_TEMPLATE = (
    "{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_ROLES = ("user", "assistant", "system")

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]


def read_chat_format(
    folder: Path, processor: JsonFile, tokenizer_config: JsonFile, names: Mapping[str, Any]
) -> tuple[str, dict[str, RoleText], str]:
    """Prefix, text around each role's messages, and what asks for an answer."""
    path, template = _chat_template(folder, processor, tokenizer_config)
    plain = template.replace("['role'].capitalize()", "['role'] | capitalize")
    plain = plain.replace("{% elif line['type'] == 'video' %}{{ '<video>' }}", "")
    prefix = plain.removesuffix(FAMILY_TEMPLATE)
    if prefix != plain and "{" not in prefix:
        close = f"{END}\n"
        roles = {r: RoleText(f"{r.capitalize()}: ", f"{r.capitalize()}:", close) for r in _ROLES}
        return prefix, roles, "Assistant:"
    return _infer(path, _jinja(path, template, names))


def _chat_template(folder: Path, processor: JsonFile, tokenizer_config: JsonFile) -> tuple[Path, str]:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja, jinja.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise EdgeVLMError(f"'{jinja}' cannot be read ({e}): take the file anew.") from e
    legacy = read_json_file(folder / "chat_template.json", required=False)
    for file in (legacy, processor, tokenizer_config):
        value = file.data.get("chat_template")
        if isinstance(value, list):  # named templates
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return file.path, value
        if file.data.get("chat_template") is not None:
            raise file.wrong("chat_template", "a template")
    raise EdgeVLMError(
        f"'{folder}' has no chat template: expected chat_template.jinja, chat_template.json or the "
        "key chat_template in tokenizer_config.json; take these from the model it was tuned from."
    )


def _jinja(path: Path, template: str, names: Mapping[str, Any]) -> Render:
    """Render as transformers does: sandboxed, blocks trimmed, special tokens at hand."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as e:
        raise EdgeVLMError(
            f"'{path}' is not the chat template of SmolVLM or Idefics3, and examining it needs jinja2: "
            "install it (pip install jinja2) and export again."
        ) from e
    tokens = {k: token_text(names, k) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}

    def refuse(message: str) -> str:
        raise TemplateError(message)

    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        compiled = environment.from_string(template)
    except Exception as e:
        raise EdgeVLMError(f"'{path}' is not a chat template ({e}): take the original file.") from e

    def run(messages: Sequence[Mapping[str, Any]], generation: bool) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=generation, **tokens)
        except Exception as e:  # a template may fail in any way
            raise EdgeVLMError(
                f"'{path}' cannot format a conversation ({e}): use the chat template of SmolVLM or Idefics3."
            ) from e

    return run


def _infer(path: Path, run: Render) -> tuple[str, dict[str, RoleText], str]:
    """Take an unknown template apart with marked messages; prove on others that the parts reproduce it."""
    unsupported = EdgeVLMError(
        f"'{path}' is a chat template that does not put fixed text around each message: "
        "use the chat template of SmolVLM or Idefics3."
    )
    mark = "MARKED"
    text, image = {"type": "text", "text": mark}, {"type": "image"}

    def parts(role: str) -> tuple[str, RoleText]:
        message = {"role": role, "content": [text]}
        head, middle, close = _split(run([message, message], False), mark, 3, unsupported)
        if not middle.startswith(close):
            raise unsupported
        open_text = middle.removeprefix(close)
        with_image, _ = _split(run([{"role": role, "content": [image, text]}], False), mark, 2, unsupported)
        prefix = head.removesuffix(open_text)
        open_image = with_image.removeprefix(prefix).removesuffix(IMAGE)
        return prefix, RoleText(open_text, open_image, close)

    found = {role: parts(role) for role in _ROLES}
    prefix = found["user"][0]
    roles = {role: around for role, (_, around) in found.items()}
    question = [{"role": "user", "content": [text]}]
    generation = run(question, True).removeprefix(run(question, False))
    spec = PromptSpec(PROMPT_SPEC_VERSION, prefix, roles, generation, IMAGE, 0, 1, "", "", "", "", "", (0,))
    for probe in _probes():
        for wanted in (True, False):
            images = sum(item["type"] == "image" for message in probe for item in message["content"])
            pieces = render(spec, probe, images, add_generation_prompt=wanted)
            ours = "".join(p.text if isinstance(p, Control | Plain) else IMAGE for p in pieces)
            if ours != run(probe, wanted):
                raise unsupported
    return prefix, roles, generation


def _split(text: str, mark: str, count: int, error: EdgeVLMError) -> list[str]:
    parts = text.split(mark)
    if len(parts) != count:
        raise error
    return parts


def _probes() -> list[list[dict[str, Any]]]:
    image = {"type": "image"}

    def say(role: str, *items: Any) -> dict[str, Any]:
        return {
            "role": role,
            "content": [i if isinstance(i, dict) else {"type": "text", "text": i} for i in items],
        }

    return [
        [say("user", image, "What is it?")],
        [say("user", "  two\n\nlines\t ", image, image, "{{ x }} <b> & more\n")],
        [
            say("system", "Be brief."),
            say("user", image, "a"),
            say("assistant", " b "),
            say("user", "c", image),
        ],
        [say("user", "1"), say("assistant", "2"), say("user", "3"), say("assistant", "4")],
    ]


def token_text(names: Mapping[str, Any], key: str) -> str:
    """A token of tokenizer_config.json or special_tokens_map.json, which store it as text or as an object."""
    value = names.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
