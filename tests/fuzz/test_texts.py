"""Damaged tokenizers and chat templates give what they should or a sentence, never a traceback or a hang."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import qwen2_5_vl
from tiny import tokenizer as tiny

from edgevlm.checkpoint import played
from edgevlm.checkpoint.chat_template import read_chat_template
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import StreamDecoder, decode, encode, inner_tokenizer, load_tokenizer
from edgevlm.io.child import Limits
from edgevlm.io.json import JsonFile

TEXT = "What is in the picture? 12 cats  and\n<b>\u00e9\u5199\U0001f642</b>"
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 70, 1e400, "", "a" * 300, "\x1b[2J\n", [], {}, [[]], "(a+)+$", "Sequence", "NFKC",
    {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b" * 20},
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys; of long ones, some."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys[:8]:
        yield value, key
        yield from places(value[key])


def damaged(text: str, rng: random.Random) -> str:
    data = json.loads(text)
    copies = [json.dumps(inside[key]) for inside, key in places(data)]
    for _ in range(rng.choice((1, 1, 2))):
        spots = [(inside, key) for inside, key in places(data) if inside is not data]
        inside, key = rng.choice(spots)
        how = rng.random()
        if how < 0.6:
            inside[key] = rng.choice(STRANGE)
        elif how < 0.8:
            del inside[key]
        else:
            inside[key] = json.loads(rng.choice(copies))
    return json.dumps(data)


@pytest.mark.parametrize("times", [150, pytest.param(6000, marks=pytest.mark.campaign)])
def test_damaged_tokenizers(times: int, tmp_path: Path) -> None:
    rng = random.Random(3)
    good = [
        tiny.qwen().to_str(),
        tiny.llama(("<image>",), form="metaspace").to_str(),
        tiny.llama(("<image>",)).to_str(),
    ]
    path, read = tmp_path / "tokenizer.json", 0
    for _ in range(times):
        path.write_text(damaged(rng.choice(good), rng), "utf-8")
        try:
            tokenizer = load_tokenizer(path, 5000)
            ids = encode(inner_tokenizer(tokenizer), TEXT)
            assert all(0 <= i < 5000 for i in ids)
            stream = StreamDecoder(tokenizer)
            assert "".join(map(stream.push, ids)) + stream.finish() == decode(tokenizer, ids)
            read += 1
        except EdgeVLMError as error:
            assert str(error).isprintable() and len(str(error)) < 700
    assert 0.05 * times < read < times


@pytest.mark.parametrize("times", [8, pytest.param(500, marks=pytest.mark.campaign)])
def test_damaged_templates(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(played, "PLAYER", Limits(seconds=10, memory=256 << 20))
    rng = random.Random(5)
    empty = JsonFile(tmp_path / "none.json", {})
    words = (
        "{%",
        "%}",
        "{{",
        "}}",
        "-",
        "for",
        "endfor",
        "if",
        " * 99999999",
        "\x1b[2J",
        "loop",
        "messages",
        "'",
        ")",
        "[0]",
    )
    for _ in range(times):
        text = qwen2_5_vl.CHAT_TEMPLATE
        for _ in range(rng.randint(1, 3)):
            at, until = sorted(rng.randrange(len(text)) for _ in range(2))
            text = (
                text[:at]
                + rng.choice((rng.choice(words), text[at:until] * 2, text[until:]))
                + text[min(until, at + 9) :]
            )
        (tmp_path / "chat_template.jinja").write_text(text, "utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read_chat_template(tmp_path, empty, empty, {}, "<image>")
            except EdgeVLMError as error:
                assert str(error).isprintable() and len(str(error)) < 700
