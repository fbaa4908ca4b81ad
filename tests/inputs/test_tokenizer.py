"""Byte-level BPE and SentencePiece's kinds: text to ids piece by piece, and streams, against tokenizers itself."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tokenizer as tiny

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import (
    StreamDecoder,
    decode,
    encode,
    inner_tokenizer,
    library_errors,
    load_tokenizer,
    settle_tokenizer,
)


def gemma() -> Tokenizer:
    """Gemma's kind: spaces become "▁" without one in front, bytes for the rest, and nothing is stripped."""
    made = tiny.llama(("<image>",))
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def t5() -> Tokenizer:
    """T5's kind: Metaspace for both ways, no bytes."""
    made = tiny.llama(("<image>",), form="metaspace")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return made


MADE = {
    "qwen": tiny.qwen(),
    "byte level": tiny.byte_level(("<s>",), ("<image>",), [pre_tokenizers.Digits(individual_digits=True)]),
    "prepend": tiny.llama(("<image>",), form="prepend"),
    "metaspace": tiny.llama(("<image>",), form="metaspace"),
    "gemma": gemma(),
    "t5": t5(),
}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, made in MADE.items():
        path = folder / f"{name}.json"
        made.save(str(path))
        LOADED[name] = load_tokenizer(path)


LOADED: dict[str, Tokenizer] = {}
TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=" \n\t.,aeWht0123?'é写🙂👍🏽\u200d▁\ufffd", max_size=40),
    st.sampled_from(["What is in the picture?", "  two  spaces", "\n\n", " ", "\x00"]),
)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = StreamDecoder(tokenizer)
    return [*(stream.push(i) for i in ids), stream.finish()]


@pytest.mark.parametrize("name", MADE)
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_the_whole(name: str, data: st.DataObject) -> None:
    """Whatever ids come, invalid UTF-8, special and unknown ones too."""
    tokenizer = LOADED[name]
    size = tokenizer.get_vocab_size()
    low = st.integers(-2, min(270, size - 1))  # bytes come first in SentencePiece's vocabularies
    ids = data.draw(st.lists(st.one_of(low, st.integers(0, size + 3)), max_size=50))
    known = [i for i in ids if 0 <= i < size]
    assert "".join(pieces(tokenizer, ids)) == MADE[name].decode(known, skip_special_tokens=True)


@pytest.mark.parametrize("name", MADE)
@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_no_piece_holds_half_a_character(name: str, text: str) -> None:
    ids = MADE[name].encode(text, add_special_tokens=False).ids
    made = pieces(LOADED[name], ids)
    whole = MADE[name].decode(ids, skip_special_tokens=True)
    assert "".join(made) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in made)


def test_a_stream_is_as_fast_as_its_tokens() -> None:
    """Words come with their token, also where spaces stand in tokens."""
    for name in ("qwen", "prepend", "metaspace"):
        ids = MADE[name].encode("The answer is 42.", add_special_tokens=False).ids
        made = pieces(LOADED[name], ids)
        assert made[-1] == "" and sum(map(bool, made)) >= len(ids) - 1


@pytest.mark.parametrize("name", MADE)
@given(st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_text_between_special_tokens(name: str, texts: list[str]) -> None:
    """First and inner pieces by themselves are what one call makes of all with special tokens between."""
    special = "<|image_pad|>" if name == "qwen" else "<image>"
    tokens = [t.content for t in MADE[name].get_added_tokens_decoder().values()]
    assume(not any(token in text for text in texts for token in tokens))
    expected = MADE[name].encode(special.join(texts), add_special_tokens=False).ids
    first, inner = LOADED[name], inner_tokenizer(LOADED[name])
    ids: list[int] = []
    for number, text in enumerate(texts):
        ids += [MADE[name].token_to_id(special)] * (number > 0)
        ids += (inner if ids else first).encode(text, add_special_tokens=False).ids if text else []
    assert ids == expected


@pytest.mark.parametrize("name", MADE)
def test_special_tokens_in_text_are_letters(name: str) -> None:
    special = {i for i, t in LOADED[name].get_added_tokens_decoder().items() if t.special}
    for token in sorted(special):
        text = LOADED[name].id_to_token(token)
        for rules in (LOADED[name], inner_tokenizer(LOADED[name])):
            found = rules.encode(f"a{text}b", add_special_tokens=False).ids
            assert not special & set(found) - {LOADED[name].token_to_id("<unk>")}


def test_only_where_it_matters_there_are_two_tokenizers() -> None:
    assert {name for name in MADE if inner_tokenizer(LOADED[name]) is not LOADED[name]} == {"metaspace", "t5"}


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.CTC(), "CTC"),
        (None, "none"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("  ", " ")]), '{"type": "Replace"'),
        (decoders.Replace(Regex(" +"), " "), '{"type": "Replace"'),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), '{"type": "Strip"'),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), '{"type": "Strip"'),
    ],
)
def test_refuses_decoders_that_take_text_back(decoder: Any, name: str, tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({"a": 0}, []))
    made.add_special_tokens([AddedToken("<s>", special=True)])
    if decoder is not None:
        made.decoder = decoder
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EdgeVLMError, match=f"has the decoder {name}.*, expected byte-level BPE or SentencePiece's"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_panic_of_the_library_is_one_sentence(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model | {"continuing_subword_prefix": "too long"}}))
    with pytest.raises(EdgeVLMError, match=r"is not a tokenizer\.json"):
        load_tokenizer(path)


def file_of(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "qwen") -> Path:
    """The file of a good tokenizer, changed."""
    path = folder / "tokenizer.json"
    data = json.loads(MADE[name].to_str())
    change(data)
    path.write_text(json.dumps(data), "utf-8")
    return path


@pytest.mark.parametrize("name", MADE)
def test_an_id_beyond_the_embedding_table_is_refused(name: str, tmp_path: Path) -> None:
    """Such a token would be read as a row of zeros, or not at all, by the engine's choice."""
    path = file_of(tmp_path, lambda d: None, name)
    rows = max(MADE[name].get_vocab(with_added_tokens=True).values()) + 1
    assert load_tokenizer(path, rows).get_vocab_size() == MADE[name].get_vocab_size()
    last = MADE[name].id_to_token(rows - 1)
    for size in (rows - 1, 5):
        with pytest.raises(EdgeVLMError, match=f"the id {rows - 1}, but the model has {size} embeddings") as caught:
            load_tokenizer(path, size)
    assert ascii(last) in str(caught.value)


def test_an_ordinary_token_beyond_the_table(tmp_path: Path) -> None:
    path = file_of(tmp_path, lambda d: d["model"]["vocab"].update(extra=70_000))
    with pytest.raises(EdgeVLMError, match="gives the token 'extra' the id 70000, but the model has 70000 embeddings"):
        load_tokenizer(path, 70_000)


def test_added_tokens_have_the_ids_that_the_file_says(tmp_path: Path) -> None:
    """The library gives them the numbers after the vocabulary's, without a word; other programs read the file's."""
    first = json.loads(MADE["qwen"].to_str())["added_tokens"][0]
    for change in (
        lambda d: d["model"]["vocab"].update(extra=70_000),
        lambda d: d["added_tokens"][0].update(id=7),
        lambda d: d["added_tokens"].append(first | {"id": 400}),
    ):
        with pytest.raises(EdgeVLMError, match=r"gives the added token .* the id .*, but it would be read as"):
            load_tokenizer(file_of(tmp_path, change))


def test_dropout_is_for_training(tmp_path: Path) -> None:
    text = "What is in the picture? " * 4
    path = file_of(tmp_path, lambda d: d["model"].update(dropout=0.5))
    drawn = Tokenizer.from_file(str(path))
    assert len({tuple(drawn.encode(text).ids) for _ in range(20)}) > 1  # the library draws lots
    for rules in (load_tokenizer(path), inner_tokenizer(load_tokenizer(path))):
        assert {tuple(rules.encode(text).ids) for _ in range(20)} == {tuple(LOADED["qwen"].encode(text).ids)}
    settle_tokenizer(path)
    settled = path.read_bytes()
    assert Tokenizer.from_file(str(path)).to_str() == MADE["qwen"].to_str()
    settle_tokenizer(path)
    assert path.read_bytes() == settled


def normalizer(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def charsmap(longest: int) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"a\0" + b"b" * longest + b"\0").decode()


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a letter becomes a megabyte": (
        normalizer(replace({"String": "a"}, "b" * 1_000_000)),
        "can make 1000000 characters",
    ),
    "letters double": (normalizer(*[replace({"String": "a"}, "aa")] * 30), "can make 1073741824 characters of one"),
    "nothing becomes much": (normalizer(replace({"Regex": "x*"}, "b" * 200)), "can make 201 characters of one"),
    "a long beginning": (normalizer({"type": "Prepend", "prepend": "b" * 200}), "can make 201 characters"),
    "a table that multiplies": (
        normalizer({"type": "Precompiled", "precompiled_charsmap": charsmap(500)}),
        "make 500 ch",
    ),
    "a table that is none": (normalizer({"type": "Precompiled", "precompiled_charsmap": "?"}), "is not a tokenizer"),
    "many steps": (normalizer(*[{"type": "NFC"}] * 100), "works in 10. steps, at most 64"),
    "an exploding normalizer": (
        normalizer(replace({"Regex": "(a+)+$"}, "")),
        r"the expression '\(a\+\)\+\$', which can",
    ),
    "an exploding split": (lambda d: d.update(pre_tokenizer=split("(a|aa)+$")), "can take very long on some texts"),
    "an exploding split inside": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [d["pre_tokenizer"], split("a*a*b")]}),
        "can take very long",
    ),
    "an exploding decoder": (
        lambda d: d.update(
            decoder={"type": "Sequence", "decoders": [replace({"Regex": "(a+)+$"}, ""), {"type": "Fuse"}]}
        ),
        "can take very long",
    ),
    "a multiplying decoder": (
        lambda d: d.update(decoder=replace({"String": "a"}, "b" * 999)),
        "can make 999 characters",
    ),
    "a wrong expression": (lambda d: d.update(pre_tokenizer=split("${2}")), "is not a tokenizer.json"),
    "a long token": (lambda d: d["model"]["vocab"].update({"a" * 5000: 900}), "has a token of 5000 characters"),
    "an id of no table": (lambda d: d["model"]["vocab"].update(extra=1 << 21), "but the model has 1048576 embeddings"),
    "an id of text": (lambda d: d["model"]["vocab"].update(extra="1"), "is not a tokenizer.json"),
    "no vocabulary": (lambda d: d["model"].pop("vocab"), r"is not a tokenizer.json \(KeyError"),
    "no model": (lambda d: d.pop("model"), "is not a tokenizer.json"),
    "another kind": (lambda d: d["model"].update(type="WordPiece"), "has the model 'WordPiece', expected BPE"),
    "an unknown step": (lambda d: d.update(normalizer={"type": "New"}), "is not a tokenizer.json"),
    "a step without type": (lambda d: d.update(normalizer={"a": 1}), "is not a tokenizer.json"),
    "a step that is none": (lambda d: d.update(pre_tokenizer=[1]), "is not a tokenizer.json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    change, sentence = HOSTILE[name]
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        load_tokenizer(file_of(tmp_path, change))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    text = MADE["qwen"].to_str()
    for content, sentence in (
        ("[" * 100_000, "nested too deep"),
        ("[" + "{}," * 3_000_000 + "1]", "too many objects"),
        (text.replace('"normalizer":', '"normalizer":{"type":"NFC"},"normalizer":', 1), "a key occurs twice"),
        ("\ufeff{}", "is not a tokenizer.json"),
        ("[1]", "is not a tokenizer.json"),
        ("", "is not a tokenizer.json"),
    ):
        path.write_text(content, "utf-8")
        with pytest.raises(EdgeVLMError, match=sentence):
            load_tokenizer(path)
    path.unlink()
    with pytest.raises(EdgeVLMError, match=r"is missing: a model needs its tokenizer.json"):
        load_tokenizer(path)
    path.mkdir()
    with pytest.raises(EdgeVLMError, match="is a folder, expected a regular file"):
        load_tokenizer(path)


def test_panics_on_texts_and_ids_are_one_sentence() -> None:
    """Of expressions that the check of a file would refuse."""
    made = tiny.qwen()
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with pytest.raises(BaseException) as panic:
        made.encode("a" * 40 + "b")
    assert not isinstance(panic.value, Exception)
    with pytest.raises(EdgeVLMError, match=r"The tokenizer fails on this text .*: ask in other words"):
        encode(made, "a" * 40 + "b")
    made.decoder = decoders.Sequence([decoders.Replace(Regex("(a+)+$"), ""), decoders.Fuse()])
    a, b = made.token_to_id("a"), made.token_to_id("b")
    made.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("(a+)+$"), "")])
    with pytest.raises(EdgeVLMError, match=r"The tokenizer fails on the model's answer .*: download the model"):
        decode(made, [a] * 40 + [b])
    stream = StreamDecoder(made)
    with pytest.raises(EdgeVLMError, match="The tokenizer fails on the model's answer"):
        for token in [a] * 40 + [b]:
            stream.push(token)
        stream.finish()


def test_an_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), library_errors("x", "y"):
        raise KeyboardInterrupt


def test_a_long_text_is_encoded_alike_and_lets_other_threads_go_on() -> None:
    rules = Tokenizer.from_file(str(Path(__file__).parents[1] / "vectors" / "tokenizer.json"))
    text = "A long text about 12 cafés, 漢字 and 😀. " * 20_000
    assert encode(rules, text) == rules.encode(text, add_special_tokens=False).ids
    rounds, over = 0, threading.Event()

    def count() -> None:
        nonlocal rounds
        while not over.is_set():
            rounds += 1
            time.sleep(0.001)

    other = threading.Thread(target=count)
    other.start()
    before, start = rounds, time.perf_counter()
    encode(rules, text)
    seconds, done = time.perf_counter() - start, rounds - before
    over.set()
    other.join()
    assert done > 100 * seconds  # of some 900 a second; where nothing else may run, it is one in all
