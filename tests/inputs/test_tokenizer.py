"""Byte-level BPE and SentencePiece's kinds: text to ids piece by piece, and streams, against tokenizers itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tokenizer as tiny

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import StreamDecoder, inner_tokenizer, load_tokenizer


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


def test_refuses_decoders_that_take_text_back(tmp_path: Path) -> None:
    for decoder, name in ((decoders.WordPiece(), "WordPiece"), (decoders.CTC(), "CTC"), (None, "none")):
        made = Tokenizer(models.BPE({"a": 0}, []))
        made.add_special_tokens([AddedToken("<s>", special=True)])
        if decoder is not None:
            made.decoder = decoder
        made.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(EdgeVLMError, match=f"has the decoder {name}, expected byte-level BPE or SentencePiece's"):
            load_tokenizer(tmp_path / "tokenizer.json")


def test_a_panic_of_the_library_is_one_sentence(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model | {"continuing_subword_prefix": "too long"}}))
    with pytest.raises(EdgeVLMError, match=r"is not a tokenizer\.json"):
        load_tokenizer(path)
