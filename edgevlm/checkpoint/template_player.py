"""The second process of `chat_template`: a template rendered as transformers renders it, for given conversations.

Templates are programs by strangers. Here they run under jinja2's sandbox, within the limits of the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

MOST_TEXT = 1 << 20  # characters of a prompt: more than any context holds

NO_JINJA = b"jinja2 is not installed"


def answer(request: bytes) -> bytes:
    """{"template", "tokens", "conversations": [[messages, whether an answer is asked for, thinking], ...]} -> JSON.

    thinking: what the template is told under `enable_thinking`; null: nothing.

    {"texts": the text of each, or {"error": what the template said}} or {"wrong": why it is no template}, and
    "today": whether it asked for the date; or NO_JINJA.
    """
    try:
        import jinja2
    except ImportError:
        return NO_JINJA
    asked = json.loads(request)
    dates: list[str] = []
    try:
        template = _environment(dates).from_string(asked["template"])
    except MemoryError:
        raise
    except Exception as error:  # of jinja2, and of Python's parser for what jinja2 makes of it
        return json.dumps({"wrong": _said(error)}).encode()

    def play(messages: list[Any], generation: bool, thinking: bool | None) -> str | dict[str, str]:
        told = asked["tokens"] if thinking is None else {**asked["tokens"], "enable_thinking": thinking}
        try:
            text: str = template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=generation, **told
            )
        except MemoryError:
            raise
        except jinja2.TemplateError as error:
            return {"error": _said(error)}
        except Exception as error:  # a template may fail in any way
            return {"error": f"{type(error).__name__}: {_said(error)}"}
        if len(text) > MOST_TEXT:
            return {"error": f"it writes over {MOST_TEXT} characters"}
        if any("\ud800" <= char <= "\udfff" for char in text):
            return {"error": "it writes half of a surrogate pair, which is no character"}
        return text

    texts = [play(*conversation) for conversation in asked["conversations"]]
    return json.dumps({"texts": texts, "today": bool(dates)}).encode()


def _said(error: Exception) -> str:
    return str(error)[:1000]


def _environment(dates: list[str]) -> Any:
    """As in transformers 5.24, utils/chat_template_utils.py; `dates` gets the date formats that are asked for."""
    from jinja2 import TemplateError, nodes, pass_eval_context
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} around what an assistant said, for training; its text stays as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _same(self, context: Any, caller: Callable[[], str]) -> str:
            return caller()

    class PlainNamespace(Namespace):
        """Without names that begin with an underscore, which lead out of the sandbox."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # a template may have a value named self
            self, *rest = args
            for name in dict(*rest, **kwargs):
                _refuse_hidden(name)
            Namespace.__init__(self, *rest, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_hidden(name)
            super().__setitem__(name, value)

    class PlainDict:
        """dict(...) and dict.fromkeys(...), and nothing else of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def _refuse_hidden(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold the name {name!r}")

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        dates.append(format)
        return datetime.now().strftime(format)

    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    found.filters["tojson"] = tojson
    found.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "namespace": PlainNamespace,
        "dict": PlainDict(),
    }
    return found
