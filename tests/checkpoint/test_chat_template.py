"""Chat templates: Hugging Face's dialect, held to transformers, and hostile ones, held to limits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from cases import heavy_but
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from edgevlm.checkpoint import played
from edgevlm.checkpoint.chat_template import ChatFormat, read_chat_template
from edgevlm.errors import EdgeVLMError, EdgeVLMWarning
from edgevlm.inputs.render import Picture, render
from edgevlm.io.child import Limits
from edgevlm.io.json import JsonFile

IMAGE = "<image>"
NAMES = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is it?"}],
    [{"role": "user", "content": " 1 "}, {"role": "assistant", "content": "two\n"}, {"role": "user", "content": "3"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b> & 'c' \u00e9 {{ x }}"}],
]


def read(template: str, folder: Path) -> ChatFormat:
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    empty = JsonFile(folder / "none.json", {})
    return read_chat_template(folder, empty, empty, NAMES, IMAGE)


def written(found: ChatFormat, messages: list[dict[str, Any]], generation: bool) -> str:
    pieces = render(found.chat, messages, 0, add_generation_prompt=generation)
    return "".join("" if isinstance(piece, Picture) else piece.text for piece in pieces)


# A message's text between fixed texts, each with another word of the dialect. {T} is the text.
WORDS = {
    "plain": "{{ m.content }}",
    "generation": "{% generation %}{{ m.content }}{% endgeneration %}",
    "generation, trimmed": "{%- generation -%}\n{{ m.content }}\n{%- endgeneration -%}",
    "generation by role": "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
    "a value set inside generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ m.content }}"
    "{% endgeneration %}{{ x }}",
    "break": "{% for i in range(9) %}{% if i == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "continue": "{% for i in range(3) %}{% if i != 1 %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{% set n = namespace(a='x', self=2) %}{% set n.a = m.content %}{{ n.a }}{{ n.self }}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(m.content) }}",
    "tojson": "{{ {'b': 'é<&>\\'', 'a': [1, none, true]} | tojson }}{{ m.content }}",
    "tojson, indented": "{{ {'b': 1, 'a': ['é']} | tojson(indent=2, ensure_ascii=true) }}{{ m.content }}",
    "tojson, sorted": "{{ {'b': 1, 'a': [2]} | tojson(separators=(',', ':'), sort_keys=true) }}{{ m.content }}",
    "tojson in order": "{{ {'b': 1, 'a': 2} | tojson }}{{ m.content }}",
    "tools and documents": "{{ tools is none }}{{ documents is not defined }}{{ m.content }}",
    "no tools": "{% if tools is not none %}TOOLS{% endif %}{{ m.content }}",
    "special tokens": "{{ bos_token }}{{ m.content }}{{ eos_token }}{{ pad_token is defined }}{{ sep_token }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}{{ m.content }}",
    "exception not raised": "{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}",
    "answers alone trimmed": "{{ m.content | trim if m.role == 'assistant' else m.content }}",
    "items of the user alone": "{% if m.role == 'user' and m.content is not string %}{% for i in m.content %}"
    "{{ i.text if i.type == 'text' else '<image>' }}{% endfor %}{% else %}{{ m.content }}{% endif %}",
    "date test": "{{ strftime_now is defined }}{{ m.content }}",
}
AROUND = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n_TEXT_<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = AROUND.replace("_TEXT_", "{{ m.content }}")


@pytest.mark.parametrize("word", heavy_but(list(WORDS)[1::3], WORDS))
def test_the_dialect_reads_as_in_transformers(word: str, tmp_path: Path) -> None:
    template = AROUND.replace("_TEXT_", WORDS[word])
    found = read(template, tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0})), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    for messages in CONVERSATIONS:
        for generation in (True, False):
            theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            assert written(found, messages, generation) == theirs


def test_a_template_that_asks_for_no_answer_behind_one(tmp_path: Path) -> None:
    found = read(
        PLAIN.replace("add_generation_prompt", "add_generation_prompt and messages[-1].role == 'user'"), tmp_path
    )
    question = [{"role": "user", "content": "a"}]
    start = "<|im_start|>assistant\n"
    asked = f"<|im_start|>user\na<|im_end|>\n{start}"
    assert written(found, question, True) == asked and found.chat.generation == start
    answered = [*question, {"role": "assistant", "content": "b"}]
    assert written(found, [*answered, *question], True) == f"{asked}b<|im_end|>\n{asked}"
    assert written(found, answered, False) == f"{asked}b<|im_end|>\n"


def test_todays_date_is_told(tmp_path: Path) -> None:
    template = AROUND.replace("_TEXT_", "{{ strftime_now('%Y') }} {{ m.content }}")
    with pytest.warns(EdgeVLMWarning, match="writes today's date into the prompt; the bundle will keep this date"):
        found = read(template, tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), chat_template=template)
    assert written(found, CONVERSATIONS[0], True) == tokenizer.apply_chat_template(
        CONVERSATIONS[0], tokenize=False, add_generation_prompt=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(AROUND.replace("_TEXT_", WORDS["date test"]), tmp_path)


HUGE = {
    "a wide format": "{{ '%9000000000d' % 1 }}",
    "a wide line": "{{ 'a'.ljust(8000000000) }}",
    "a long text": "{{ 'a' * 9000000000 }}",
    "a long list": "{{ [0] * 9000000000 }}",
    "a growing text": "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "much text": "{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}",
    "a wide indent": "{{ {'a': 1} | tojson(indent=3000000000) }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a deep expression": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a deep list": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
}
ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a tower of powers": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("name", heavy_but([*list(HUGE)[::3], *list(ENDLESS)[:1]], [*HUGE, *ENDLESS]))
def test_hostile_templates_end_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for a conversation of four messages only."""
    seconds = 1 if name in ENDLESS else 30
    monkeypatch.setattr(played, "PLAYER", Limits(seconds=seconds, memory=256 << 20))
    expected = "cannot format a conversation|needed more than 256 MiB|is not a chat template|broke the process"
    hostile = (HUGE | ENDLESS)[name]
    with pytest.raises(EdgeVLMError, match="took longer than 1 seconds" if name in ENDLESS else expected) as caught:
        read(PLAIN + "{% if messages | length > 3 %}" + hostile + "{% endif %}", tmp_path)
    sentence = str(caught.value)
    assert str(tmp_path / "chat_template.jinja") in sentence and len(sentence) < 600 and sentence.isprintable()


SANDBOX = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ dict.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set n = namespace(_Namespace__attrs=1) %}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ strftime_now.__globals__.json }}",
)


@pytest.mark.parametrize("template", SANDBOX)
def test_the_sandbox_holds(template: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError):
        read(PLAIN + template, tmp_path)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('\x1b[2J\nError: all is well') }}", r"cannot format a conversation \('\\x1b\[2J\\nError"),
        ("{{ raise_exception('x' * 9999) }}", "cannot format a conversation"),
        ("{{ '\\ud800' }}", "half of a surrogate pair"),
        ("{% \x1b[2J\n %}", "is not a chat template"),
    ],
)
def test_what_a_template_says_is_cut_and_quoted(template: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        read(template, tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


# How prompts end where an answer is asked for, and what `enable_thinking` makes of it: Qwen3's, Qwen3.5's and GLM's.
SWITCHES = {
    "thinks unless told": "<a>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}",
    "always opens": "<a>{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>\n{% endif %}",
    "thinks when told": "<a>{% if enable_thinking %}<think>{% endif %}",
}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}"


OFF = "{% if enable_thinking is defined and not enable_thinking %}"
MARKED = CHAT.replace("</s>", f"{{% if m.role == 'user' %}}{OFF}/nothink{{% endif %}}{{% endif %}}</s>")
SWITCHED = {
    **{name: CHAT + end for name, end in SWITCHES.items()},
    "behind questions": f"{MARKED}<a>",  # GLM's with pictures
    "behind questions and at the end": f"{MARKED}<a>{OFF}<think></think>\n{{% endif %}}",
}


@pytest.mark.parametrize("name", SWITCHED)
def test_switches_of_thinking(name: str, tmp_path: Path) -> None:
    template = f"{SWITCHED[name]}{{% endif %}}"
    found = read(template, tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")), chat_template=template)
    for thinking in (None, True, False):
        told = {} if thinking is None else {"enable_thinking": thinking}
        ours = ChatFormat(found.chat.switched(thinking))
        for messages in CONVERSATIONS:
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told)
            assert written(ours, messages, True) == whole
    assert found.chat.switched(True) != found.chat.switched(False) and found.chat.generation in (
        found.chat.thinking,
        found.chat.direct,
    )


@pytest.mark.parametrize(
    "end",
    [
        "<a>",
        "<a>{% if enable_thinking %}{{ messages | length }}{% else %}x{% endif %}",  # no fixed text
        "{% if enable_thinking is defined %}{{ raise_exception('no') }}{% endif %}<a>",
    ],
)
def test_templates_without_a_switch(end: str, tmp_path: Path) -> None:
    try:
        found = read(f"{CHAT}{end}{{% endif %}}", tmp_path).chat
    except EdgeVLMError:
        return  # text that changes by conversation is refused whatever the switch
    assert (found.thinking, found.direct) == (None, None) and found.switched(None) == found
    with pytest.raises(EdgeVLMError, match="This model has no switch for thinking"):
        found.switched(False)
