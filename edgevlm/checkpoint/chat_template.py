"""A checkpoint's chat template -> literal text: a device needs no template engine.

The template is played with marked messages and taken apart at the marks. Where the text between two marks can be cut in
several ways, each is tried, and the one that reproduces the template on other conversations is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.later_system import with_later_system
from edgevlm.checkpoint.played import Asked, Message, Render, played
from edgevlm.checkpoint.thinking import with_switch
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.render import ControlText, UserText, render, takes
from edgevlm.inputs.spec import Chat, RoleText
from edgevlm.io import limits
from edgevlm.io.json import JsonFile, read_json_file
from edgevlm.io.regular import read_regular

TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))  # as in transformers
MARK = "MARKED"
TEXT, IMAGE = {"type": "text", "text": MARK}, {"type": "image"}


@dataclass(frozen=True)
class ChatFormat:
    """A template's text around messages, and around an image token."""

    chat: Chat
    image_open: str = ""
    image_close: str = ""


def chatml(system: str) -> Chat:
    """OpenAI's ChatML, with a system message where a conversation does not start with one."""
    start, end = "<|im_start|>", "<|im_end|>\n"
    roles = {r: RoleText(f"{start}{r}\n", f"{start}{r}\n", end) for r in ("user", "assistant", "system")}
    return Chat("", roles, f"{start}assistant\n", default_system=f"{start}system\n{system}{end}")


def read_chat_template(
    folder: Path, processor: JsonFile, tokenizer_config: JsonFile, names: Mapping[str, Any], image_token: str,
    special: Collection[str] = (),
) -> ChatFormat:  # fmt: skip
    """The format of the chat template of the checkpoint in `folder`; names: its special tokens, by key.

    special: those that no text may be cut inside of.
    """
    path, template = find_template(folder, processor, tokenizer_config)
    asked: list[Asked]
    asked = [(messages, generation, None) for messages in _conversations() for generation in (True, False)]
    asked += [(messages, True, thinking) for messages in probes() for thinking in (True, False)]
    tokens = {key: text for key in TOKENS if (text := token_text(names, key))}
    run = played(path, template, tokens, asked, image_token)
    found = literal_format(path, run, image_token, special)

    def holds(chat: Chat, thinking: bool) -> bool:
        return _reproduces(replace(found, chat=chat), run, image_token, generation=True, thinking=thinking)

    later = [_say(role, MARK) for role in ("user", "system", "user")]
    chat = with_switch(found.chat, run, probes(), holds)
    return replace(found, chat=with_later_system(chat, run, later))


def find_template(folder: Path, processor: JsonFile, tokenizer_config: JsonFile) -> tuple[Path, str]:
    """The file that holds the template, and the template; EdgeVLMError where there is none."""
    found = stored_template(folder, processor, tokenizer_config)
    if found is None:
        raise EdgeVLMError(
            f"'{folder}' has no chat template: expected chat_template.jinja, chat_template.json or the "
            "key chat_template in tokenizer_config.json; take these from the model it was tuned from."
        )
    return found


def stored_template(folder: Path, processor: JsonFile, tokenizer_config: JsonFile) -> tuple[Path, str] | None:
    """The same, or None: some families write no chat."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        try:
            return jinja, read_regular(jinja, limits.CONFIG_FILE, "download it again").decode("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise EdgeVLMError(f"'{jinja}' cannot be read ({e}): download it again.") from e
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
    return None


def _conversations() -> list[list[dict[str, Any]]]:
    """Every conversation that a template is asked for below."""
    u, a, s = (_say(role, MARK) for role in ("user", "assistant", "system"))
    return [
        [u], [u, a], [u, a, u], [s, u], [u, s, u],
        [_say("user", MARK, MARK)], [_say("user", f"  {MARK}  ")], [_say("user", f"  {MARK}  ", f"  {MARK}  ")],
        [_say("user", IMAGE, MARK)], [_say("user", IMAGE, IMAGE, MARK)], [_say("user", MARK, IMAGE)],
        *([u, _say(role, IMAGE, MARK), u] for role in ("assistant", "system")), [u, _say("assistant", f"  {MARK}  ")],
        [_say("system", f"  {MARK}  "), u],
        *probes(),
    ]  # fmt: skip


def literal_format(path: Path, run: Render, image_token: str, special: Collection[str] = ()) -> ChatFormat:
    """The literal text of a template, checked on other conversations."""
    best: ChatFormat | None = None
    try:
        for found in _candidates(run, image_token):
            if not _cuts(found.chat, special) and _reproduces(found, run, image_token, generation=True):
                if _reproduces(found, run, image_token, generation=False):
                    return found
                best = best or found  # some templates leave the last message open where no answer is asked for
    except _MarkNotFound:
        pass
    if best is None:
        raise EdgeVLMError(
            f"'{path}' is a chat template that does not put fixed text around each message: use the chat template of "
            "the original model."
        )
    return best


def _candidates(run: Render, image: str) -> Iterator[ChatFormat]:
    """Every way to cut the text between marks; u, a, s: user, assistant, system."""
    u, a, s = (_say(role, MARK) for role in ("user", "assistant", "system"))
    (head, u_a, a_u, end), (_, _, a_end) = _cut(run([u, a, u], True), 4), _cut(run([u, a], True), 3)
    silent = run([u, a], True) == run([u, a], False)  # some templates ask for no answer behind one
    _, between, _ = _cut(run([_say("user", MARK, MARK)], True), 3)
    trim, trim_answers = (
        f"  {MARK}  " not in run([*before, _say(role, f"  {MARK}  ")], True)
        for role, before in (("user", []), ("assistant", [u]))
    )
    apart = run([_say("user", f"  {MARK}  ", f"  {MARK}  ")], True)
    with_image = run([_say("user", IMAGE, MARK)], True)
    images = _cut(run([_say("user", IMAGE, IMAGE, MARK)], True), 3, image)
    after = run([_say("user", MARK, IMAGE)], True)
    before_image, image_close = with_image.split(image)[0], with_image.split(image)[-1].split(MARK)[0]
    image_open = images[1].removeprefix(image_close)
    images_first = after.find(image) < after.find(MARK)
    open_tail = _cut(run([u], False), 2)[1]
    for text_open, text_close in dict.fromkeys((("", ""), ("", between), (between, ""))):
        before = (part.removesuffix(text_open) for part in (u_a, a_u))
        parts = [part.removeprefix(text_close) for part in (*before, end, a_end, open_tail)]
        shared = _shared(parts[0], parts[2])
        closes = [parts[4], *(shared[:n] for n in range(len(shared), -1, -1))]
        for close in dict.fromkeys(c for c in closes if shared.startswith(c)):
            generation = parts[2][len(close) :]
            if parts[3].endswith(generation):
                assistant_close = parts[3].removesuffix(generation)
            elif silent:
                shared_end = _shared(head.removesuffix(text_open)[::-1], parts[1][::-1])[::-1]
                assistant_close = parts[1].removesuffix(shared_end)
            else:
                continue
            opening = parts[1].removeprefix(assistant_close)
            if not (parts[1].startswith(assistant_close) and head.endswith(opening + text_open)):
                continue
            base = head.removesuffix(opening + text_open)  # what comes before the first message
            answering = parts[0][len(close) :]
            image_opening = before_image.removeprefix(base).removesuffix(image_open)
            chat = Chat(
                prefix=base,
                roles={
                    "user": RoleText(opening, image_opening, close),
                    "assistant": RoleText(answering, answering, assistant_close, trim_answers and not trim),
                },
                generation=generation,
                images_first=images_first,
                text_open=text_open,
                text_close=text_close,
                text_join="" if text_open else between.removeprefix(text_close),
                trim=trim,
                trim_each=trim and _cut(apart, 3)[1] == between,
            )
            chat = _with_system(chat, run, s, u)
            yield ChatFormat(
                _with_images(chat, run, image, image_open), image_open, image_close.removesuffix(text_open)
            )
            if image_open or image_close:  # not around every image, but between it and what stands beside it
                between_items = replace(chat, image_before=image_open, image_after=image_close)
                user = replace(chat.roles["user"], open_image=before_image.removeprefix(base))
                between_items = replace(between_items, roles={**chat.roles, "user": user})
                yield ChatFormat(_with_images(between_items, run, image, ""))
            if between and between == image_close and not (text_open or text_close):  # between any two items
                user = replace(chat.roles["user"], open_image=before_image.removeprefix(base))
                joined = replace(chat, text_join="", join=between, roles={**chat.roles, "user": user})
                yield ChatFormat(_with_images(joined, run, image, ""))


def _with_system(chat: Chat, run: Render, s: Message, u: Message) -> Chat:
    """What the template does with a system message, and without one."""
    try:
        head, s_u, _ = _cut(run([s, u], True), 3)
        wide = run([_say("system", f"  {MARK}  "), u], True)
    except EdgeVLMError:
        return chat
    trim = chat.trim_each and f"  {MARK}" not in wide and f"{MARK}  " not in wide
    user, s_u = chat.roles["user"], s_u.removeprefix(chat.text_close).removesuffix(chat.text_open)
    head = head.removesuffix(chat.text_open)
    if not s_u.endswith(user.open_text):
        roles = {**chat.roles, "system": RoleText("", "", s_u, trim)}
        return replace(chat, roles=roles, system="in_first_user")
    try:  # where a later system message begins
        later = _cut(run([u, s, u], True), 4)[1].removeprefix(chat.text_close + user.close)
        later = later.removesuffix(chat.text_open)
    except EdgeVLMError:
        later = head.removeprefix(_shared(head, chat.prefix))
    prefix = head.removesuffix(later)
    roles = {**chat.roles, "system": RoleText(later, later, s_u.removesuffix(user.open_text), trim)}
    return replace(chat, prefix=prefix, default_system=chat.prefix.removeprefix(prefix), roles=roles)


def _with_images(chat: Chat, run: Render, image: str, image_open: str) -> Chat:
    """How a message that starts with an image begins, where that is not the user's: some write "User:" there, others
    no image at all."""
    roles, user = dict(chat.roles), chat.roles["user"]
    others = {"assistant"} if chat.system == "in_first_user" else set(roles) - {"user"}
    for role in sorted(others):
        try:
            text = run([_say("user", MARK), _say(role, IMAGE, MARK), _say("user", MARK)], True)
        except EdgeVLMError:
            continue
        opening = text.split(MARK)[1].removeprefix(chat.text_close + user.close).partition(f"{image_open}{image}")
        if opening[1] or image not in text:
            roles[role] = replace(roles[role], open_image=opening[0] if opening[1] else None)
    return replace(chat, roles=roles)


def _reproduces(found: ChatFormat, run: Render, image: str, *, generation: bool, thinking: bool | None = None) -> bool:
    for probe in probes():
        if not takes(found.chat, probe):
            continue
        images = sum(item["type"] == "image" for message in probe for item in message["content"])
        pieces = render(found.chat.switched(thinking), probe, images, add_generation_prompt=generation)
        picture = f"{found.image_open}{image}{found.image_close}"
        ours = "".join(p.text if isinstance(p, ControlText | UserText) else picture for p in pieces)
        try:
            theirs = run(probe, generation, thinking)
            if probe[-1]["role"] == "assistant" and theirs == run(probe, False):
                continue  # it asks for no answer behind one
            if ours != theirs:
                return False
        except EdgeVLMError:
            if not any(m["role"] == "assistant" and IMAGE in m["content"] for m in probe):
                raise  # some templates take no picture from the assistant, who has none to show
    return True


def _cuts(chat: Chat, special: Collection[str]) -> bool:
    """Whether a special token lies on both sides of where two texts meet."""
    closes = {chat.prefix, *(role.close for role in chat.roles.values())}
    opens = {chat.generation, *(role.open_text for role in chat.roles.values())}
    seams = [(close + opening, len(close)) for close in closes for opening in opens]
    return any(text.find(token, max(0, at - len(token) + 1)) in range(at) for text, at in seams for token in special)


class _MarkNotFound(EdgeVLMError):
    """A mark is missing or repeated: the template does not write each message once."""


def _cut(text: str, count: int, mark: str = MARK) -> list[str]:
    parts = text.split(mark)
    if len(parts) != count:
        raise _MarkNotFound("The chat template repeats or drops a message.")
    return parts


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    return next((one[:n] for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(one, other, key=len))


def _say(role: str, *items: Any) -> dict[str, Any]:
    return {"role": role, "content": [i if isinstance(i, dict) else {"type": "text", "text": i} for i in items]}


def probes() -> list[list[dict[str, Any]]]:
    """Conversations that a template and its literal text must write alike."""
    return [
        [_say("user", IMAGE, "What is it?")],
        [_say("user", "What is it?", IMAGE)],
        [_say("user", IMAGE)],
        [_say("user", "  two\n\nlines\t ", IMAGE, IMAGE, "{{ x }} <b> & more\n")],
        [_say("user", " a ", " b ", IMAGE, " c ")],
        [_say("system", "Be brief."), _say("user", IMAGE, "a"), _say("assistant", " b "), _say("user", "c", IMAGE)],
        [_say("user", "1"), _say("assistant", "2"), _say("user", "3"), _say("assistant", "4")],
        [_say("user", "1"), _say("assistant", IMAGE, "2"), _say("user", "3")],
    ]


def token_text(names: Mapping[str, Any], key: str) -> str:
    """A token of tokenizer_config.json or special_tokens_map.json, which store it as text or as an object."""
    value = names.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
