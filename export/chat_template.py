"""A chat format as a plain Jinja template, for programs that bring a template engine of their own.

Upstream's template is a program in the whole language of jinja2. This one says what PromptSpec says with what every
engine has: jinja2, transformers.js (@huggingface/jinja), llama.cpp and onnxruntime-genai (minja). That is `for`, `if`,
`set`, namespaces, `is string`, `is iterable`, and the methods startswith, lstrip and rstrip of a text. There is no line
break between its tags: engines differ in which ones they drop.

A message's content is a text, a list of {"type": "text", "text": ...} and {"type": "image"} items, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgevlm.inputs.spec import Chat, RoleText

# What llama.cpp puts where a message holds a picture: libmtmd "<__media__>", llama-server one with a random middle.
MEDIA_MARKER = "<__media__>"
MEDIA_START = MEDIA_MARKER.removesuffix("_>")


def processor_template(chat: Chat, picture: str) -> str:
    """For a processor, which looks for `picture` in the rendered text and fills in the image tokens."""
    return _Writer(chat, lambda part: f"{part}['type'] != 'text'", lambda part: _print(picture)).template()


def llama_cpp_template(chat: Chat) -> str:
    """For llama.cpp, which hands a picture over as its media marker: in an item of text, or of a type of its own.

    llama-server joins the items of a message with pictures to one text, which begins with the marker if a picture comes
    first.
    """

    def is_picture(part: str) -> str:
        return f"{part}['type'] != 'text' or {part}['text'].startswith({_quote(MEDIA_START)})"

    def marker(part: str) -> str:
        return f"{{% if {part}['text'] %}}{{{{ {part}['text'] }}}}{{% else %}}{_print(MEDIA_MARKER)}{{% endif %}}"

    return _Writer(chat, is_picture, marker).template()


class _Writer:
    """is_picture, picture: a condition on the name of an item, and statements that write a picture's place."""

    def __init__(self, chat: Chat, is_picture: Callable[[str], str], picture: Callable[[str], str]) -> None:
        self.chat, self.is_picture, self.picture = chat, is_picture, picture

    def template(self) -> str:
        chat, others = self.chat, {role: text for role, text in self.chat.roles.items() if role != "system"}
        if chat.system == "in_first_user" and len(others) < len(chat.roles):
            system = self.message("said", {"system": chat.roles["system"]}, trims=chat.trim and not chat.trim_each)
            waiting = f"{{% for said in kept.system %}}{system}{{% endfor %}}{{% set kept.system = [] %}}"
            message = (
                "{% if message['role'] == 'system' %}{% set kept.system = kept.system + [message] %}"
                f"{{% else %}}{self.message('message', others, waiting)}{{% endif %}}"
            )
        else:
            message = self.message("message", chat.roles)
        start = "{% set kept = namespace(system=[], pictures=[], texts=[]) %}" if "kept." in message else ""
        default = _print(chat.default_system)
        if default:
            default = f"{{% if not messages or messages[0]['role'] != 'system' %}}{default}{{% endif %}}"
        return (
            f"{start}{_print(chat.prefix)}{default}{{% for message in messages %}}{message}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{_print(chat.generation)}{{% endif %}}"
        )

    def message(
        self, name: str, roles: Mapping[str, RoleText], after_opening: str = "", trims: bool | None = None
    ) -> str:
        """Statements that write the message in the variable `name`; trims: None is the format's own way."""
        parts, trims = f"{name}_parts", self.chat.trim if trims is None else trims
        trim = _choose(name, {role: self.trim() if trims or text.trim else "" for role, text in roles.items()})
        return (
            f"{self.items(name, parts)}{self.opening(name, parts, roles)}{after_opening}{self.content(parts, trim)}"
            f"{_choose(name, {role: _print(text.close) for role, text in roles.items()})}"
        )

    def items(self, name: str, parts: str) -> str:
        """Set `parts` to the list of the message's items, in the order in which they are written."""
        content = f"{name}['content']"
        found = (
            f"{{% if {content} is string %}}{{% set {parts} = [{{'type': 'text', 'text': {content}}}] %}}"
            f"{{% elif {content} is iterable %}}{{% set {parts} = {content} %}}"
            f"{{% else %}}{{% set {parts} = [] %}}{{% endif %}}"
        )
        if not self.chat.images_first:
            return found
        return (
            f"{found}{{% set kept.pictures = [] %}}{{% set kept.texts = [] %}}{{% for part in {parts} %}}"
            f"{{% if {self.is_picture('part')} %}}{{% set kept.pictures = kept.pictures + [part] %}}"
            "{% else %}{% set kept.texts = kept.texts + [part] %}{% endif %}{% endfor %}"
            f"{{% set {parts} = kept.pictures + kept.texts %}}"
        )

    def opening(self, name: str, parts: str, roles: Mapping[str, RoleText]) -> str:
        first = f"{parts} and ({self.is_picture(f'{parts}[0]')})"
        openings = {}
        for role, text in roles.items():
            opening = _print(text.open_text)
            if text.open_image is None:
                refused = f"{{{{ raise_exception({_quote(f'The role {role} takes no pictures.')}) }}}}"
                opening += (
                    f"{{% for part in {parts} %}}{{% if {self.is_picture('part')} %}}{refused}{{% endif %}}"
                    "{% endfor %}"
                )
            elif text.open_text != text.open_image:
                opening = f"{{% if {first} %}}{_print(text.open_image)}{{% else %}}{opening}{{% endif %}}"
            openings[role] = opening
        known = ", ".join(sorted(self.chat.roles))
        return _choose(name, openings, f"{{{{ raise_exception({_quote(f'Roles are {known}.')}) }}}}")

    def trim(self) -> str:
        """Statements that take the white space from the variable `text`."""
        if self.chat.trim_each:
            return "{% set text = text.lstrip() %}{% set text = text.rstrip() %}"
        return (
            "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}"
            "{% if loop.last %}{% set text = text.rstrip() %}{% endif %}"
        )

    def content(self, parts: str, trim: str) -> str:
        chat, before = self.chat, f"{parts}[loop.index0 - 1]"
        join = (
            f"{{% if not loop.first %}}{{% if not ({self.is_picture(before)}) %}}{_print(chat.text_join)}"
            "{% endif %}{% endif %}"
        )
        picture = (
            f"{_between('not loop.first', chat.image_before)}{self.picture('part')}"
            f"{_between('not loop.last', chat.image_after)}"
        )
        return (
            f"{{% for part in {parts} %}}{_between('not loop.first', chat.join)}"
            f"{{% if {self.is_picture('part')} %}}{picture}{{% else %}}"
            f"{{% set text = part['text'] %}}{trim}{join if chat.text_join else ''}"
            f"{_print(chat.text_open)}{{{{ text }}}}{_print(chat.text_close)}{{% endif %}}{{% endfor %}}"
        )


def _choose(name: str, statements: Mapping[str, str], otherwise: str = "") -> str:
    """What is written for the role of the message `name`."""
    if not otherwise and len(set(statements.values())) == 1:
        return next(iter(statements.values()))
    branches = "".join(
        f"{{% {'elif' if number else 'if'} {name}['role'] == {_quote(role)} %}}{written}"
        for number, (role, written) in enumerate(statements.items())
    )
    return f"{branches}{f'{{% else %}}{otherwise}' if otherwise else ''}{{% endif %}}"


def _between(condition: str, text: str) -> str:
    return f"{{% if {condition} %}}{_print(text)}{{% endif %}}" if text else ""


def _print(text: str) -> str:
    return f"{{{{ {_quote(text)} }}}}" if text else ""


def _quote(text: str) -> str:
    """A string literal."""
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f"'{text}'"
