"""Reading processor files: the layouts transformers writes, and what is wrong with damaged ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.checkpoint.families import read_image_spec, read_prompt_spec
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import normalize_all, prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.spec import RoleText
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Shuffle
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm
from edgevlm.models.towers.vit import Vit

TOKENIZER = Path(__file__).parents[1] / "vectors" / "tokenizer.json"
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VIDEO = "{% elif line['type'] == 'video' %}{{ '<video>' }}"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NORM = Norm("layer", 1e-6)
VISION = Vit(32, 8, 16, 1, Block((Attention(2, 2, 8, bias=True, out_bias=True),), Mlp(32, "gelu", gated=False), NORM))
DECODER = Decoder(
    vocab_size=500, hidden_size=16, context_length=512, blocks=(Block((Attention(2, 1, 8),), Mlp(32), NORM),),
    layers=(0,), norm=NORM,
)  # fmt: skip
IDS = Tokenizer.from_file(str(TOKENIZER)).get_vocab(with_added_tokens=True)
MODEL = ModelSpec(
    "tiny", "smolvlm", VISION, (Shuffle(2, 16), Linear("linear", 16, bias=False)), DECODER, IDS["<image>"]
)


def oracle(template: str = TEMPLATE, bos: str | None = "<|im_start|>", **image: Any) -> Idefics3Processor:
    options: dict[str, Any] = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}} | image
    cls = options.pop("cls", SmolVLMImageProcessorPil)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), bos_token=bos, eos_token="<end_of_utterance>", pad_token="<|im_end|>"
    )
    return Idefics3Processor(cls(**options), tokenizer, image_seq_len=4, chat_template=template)


def save(folder: Path, processor: Idefics3Processor, layout: str = "new") -> Path:
    """As transformers 5 saves it ("new"), or as the SmolVLM repositories hold it ("old")."""
    processor.save_pretrained(folder)
    if layout == "old":
        data = json.loads((folder / "processor_config.json").read_text())
        write(folder / "preprocessor_config.json", data.pop("image_processor"))
        write(folder / "processor_config.json", data)
        template = folder / "chat_template.jinja"
        write(folder / "chat_template.json", {"chat_template": template.read_text()})
        template.unlink()
    write(folder / "generation_config.json", {"eos_token_id": IDS["<end_of_utterance>"]})
    return folder


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), "utf-8")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    write(path, data)


IMAGE_OPTIONS = [
    {},
    {"cls": Idefics3ImageProcessorPil, "do_image_splitting": False},
    {"resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    {"resample": 2, "do_resize": False, "do_normalize": False},
    {"do_rescale": False, "size": {"longest_edge": 50}},
    {"image_mean": 0.4, "image_std": 0.3, "rescale_factor": 1 / 127.5},
]


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("options", IMAGE_OPTIONS, ids=str)
def test_specs_reproduce_transformers(options: dict[str, Any], layout: str, tmp_path: Path) -> None:
    processor = oracle(**options)
    folder = save(tmp_path, processor, layout)
    image_spec, prompt_spec = read_image_spec(folder, MODEL), read_prompt_spec(folder, MODEL)
    rgb = np.random.default_rng(0).integers(0, 256, (70, 45, 3), dtype=np.uint8)
    text = "How many 12 circles?"
    content = [{"type": "image", "image": Image.fromarray(rgb)}, {"type": "text", "text": text}]
    out = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="np",
    )
    picture = prepare(rgb, image_spec)
    np.testing.assert_array_equal(normalize_all(picture.views, image_spec), out["pixel_values"][0])
    ids, _ = Prompter(prompt_spec, folder / "tokenizer.json").encode(text, [picture.tokens])
    np.testing.assert_array_equal(ids, out["input_ids"][0])
    assert prompt_spec.stop_ids == (IDS["<end_of_utterance>"],)
    assert (prompt_spec.bos_id, prompt_spec.pad_id) == (IDS["<|im_start|>"], IDS["<|im_end|>"])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: t.replace("<|im_start|>", ""),
        lambda t: t.replace("<|im_start|>", "<|endoftext|>"),
        lambda t: t.replace("['role'] | capitalize", "['role'].capitalize()"),
        lambda t: t.replace("{% endif %}{% endfor %}<", VIDEO + "{% endif %}{% endfor %}<"),
        lambda t: t.replace("<|im_start|>", "{{ bos_token }}"),
        lambda t: t.replace("Assistant:", "Assistant: "),
        lambda t: CHATML,
    ],
)  # fmt: skip
def test_chat_templates_reproduce_transformers(change: Callable[[str], str], tmp_path: Path) -> None:
    processor = oracle(change(TEMPLATE))
    folder = save(tmp_path, processor)
    prompter = Prompter(read_prompt_spec(folder, MODEL), folder / "tokenizer.json")
    for messages in (
        [{"role": "user", "content": [{"type": "text", "text": " a\n"}]}],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
        ],
    ):
        for generation in (True, False):
            out = processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, add_generation_prompt=generation
            )
            ids, _ = prompter.encode(messages, add_generation_prompt=generation)
            assert ids.tolist() == out["input_ids"][0]
    image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "QQ"}]}]
    text = processor.apply_chat_template(image, add_generation_prompt=True)
    chat = prompter.spec.chat
    assert text.startswith(f"{chat.prefix}{chat.roles['user'].open_image}<image>QQ{chat.roles['user'].close}")


def test_chat_template_may_stand_in_the_tokenizer_config(tmp_path: Path) -> None:
    folder = save(tmp_path, oracle())
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    for value in (TEMPLATE, named):
        edit(folder / "tokenizer_config.json", lambda d, v=value: d.update(chat_template=v))
        chat = read_prompt_spec(folder, MODEL).chat
        assert chat.roles["user"] == RoleText("User: ", "User:", "<end_of_utterance>\n")
        assert (chat.prefix, chat.generation) == ("<|im_start|>", "Assistant:")


def test_without_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, oracle(TEMPLATE + "{# read by no other test #}"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "-packages" not in p])
    with pytest.raises(
        EdgeVLMError, match=r"chat_template\.jinja' is a chat template, which jinja2 reads: run pip install"
    ):
        read_prompt_spec(folder, MODEL)


@pytest.mark.parametrize(
    ("generation", "config", "stop"),
    [
        ({"eos_token_id": 5}, {}, {5}),
        ({"eos_token_id": [7, 6]}, {"eos_token_id": 1}, {6, 7}),
        (None, {"eos_token_id": 3}, {3}),
        ({}, {"text_config": {"eos_token_id": [4]}}, {4}),
        (None, {}, set()),
    ],
)
def test_stop_tokens(generation: Any, config: Any, stop: set[int], tmp_path: Path) -> None:
    folder = save(tmp_path, oracle())
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write(folder / "generation_config.json", generation)
    write(folder / "config.json", config)
    assert set(read_prompt_spec(folder, MODEL).stop_ids) == stop | {IDS["<end_of_utterance>"]}


@pytest.mark.parametrize("close", ["<|im_end|>\n", "</s>", "\n<|eot_id|>", "<end_of_turn>\n", " </s> and more", ".\n"])
def test_what_closes_a_turn_ends_an_answer(close: str, tmp_path: Path) -> None:
    """Whatever its name, and beside the eos of generation_config.json."""
    folder = save(tmp_path, oracle(CHATML.replace("<|im_end|>\n", close.replace("\n", "\\n"))))
    _tokens(folder / "tokenizer.json", lambda r: r.add_special_tokens(["</s>", "<|eot_id|>", "<end_of_turn>"]))
    write(folder / "generation_config.json", {"eos_token_id": 3})
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    closing = next((ids[word] for word in ids if word in close.split() and word in ids and len(word) > 2), None)
    assert set(read_prompt_spec(folder, MODEL).stop_ids) == {3} | ({closing} if closing else set())
    assert (closing is None) == (close == ".\n")


BAD_IMAGE = [
    (
        {"image_processor_type": "CLIPImageProcessor"},
        r"image_processor_type = 'CLIPImageProcessor', expected Idefics3",
    ),
    ({"image_processor_type": None}, "image_processor_type = None"),
    (
        {"max_image_size": {"longest_edge": 64}},
        "max_image_size = .*64.*, expected the 32 pixels of the vision",
    ),
    ({"max_image_size": 32}, "max_image_size = 32"),
    ({"size": {"height": 9, "width": 9}}, "size = .*expected .*longest_edge"),
    ({"size": {"longest_edge": 0}}, "size = "),
    ({"resample": 0}, r"resample = 0, expected 1 \(lanczos\), 2 \(bilinear\) or 3 \(bicubic\)"),
    ({"resample": [1]}, "resample = "),
    ({"do_image_splitting": "yes"}, "do_image_splitting = 'yes', expected true or false"),
    ({"rescale_factor": "a"}, "rescale_factor = 'a', expected a positive number"),
    ({"image_mean": [0.5, 0.5]}, "image_mean = .*expected three numbers"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std = .*expected three numbers other than 0"),
    ({"image_std": None}, "image_std = None, expected three numbers"),
]


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize(("change", "sentence"), BAD_IMAGE, ids=lambda v: str(v)[:50])
def test_refuses_image_settings(change: Any, sentence: str, layout: str, tmp_path: Path) -> None:
    folder = save(tmp_path, oracle(), layout)
    if layout == "old":
        edit(folder / "preprocessor_config.json", lambda d: d.update(change))
        where = r"/preprocessor_config\.json' has "
    else:
        edit(folder / "processor_config.json", lambda d: d["image_processor"].update(change))
        where = r"/processor_config\.json' has image_processor\."
    with pytest.raises(EdgeVLMError, match=where + sentence):
        read_image_spec(folder, MODEL)


def test_refuses_files(tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match=r"preprocessor_config\.json' is missing"):
        read_image_spec(tmp_path, MODEL)
    path = tmp_path / "preprocessor_config.json"
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(EdgeVLMError, match=r"preprocessor_config\.json' is not valid JSON"):
            read_image_spec(tmp_path, MODEL)
    path.write_text("[1]")
    with pytest.raises(EdgeVLMError, match="holds a JSON list, expected an object"):
        read_image_spec(tmp_path, MODEL)
    write(tmp_path / "processor_config.json", {"image_processor": 3})
    with pytest.raises(EdgeVLMError, match=r"processor_config\.json' has image_processor = 3, expected an object"):
        read_image_spec(tmp_path, MODEL)


def _tokens(path: Path, change: Callable[[Tokenizer], None]) -> None:
    rules = Tokenizer.from_file(str(path))
    change(rules)
    rules.save(str(path))


def _drop(text: str) -> Callable[[Path], None]:
    """Under another name, since the library numbers added tokens without gaps."""

    def change(folder: Path) -> None:
        edit(
            folder / "tokenizer.json",
            lambda d: [t.update(content="<dropped>") for t in d["added_tokens"] if t["content"] == text],
        )

    return change


def _template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text, "utf-8") and None


def _ends_with(token: int) -> dict[str, Any]:
    rules = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", token)])
    return json.loads(rules.__getstate__())


BAD_PROMPT: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: edit(f / "processor_config.json", lambda d: d.update(processor_class="LlavaProcessor")),
     "processor_class = 'LlavaProcessor', expected Idefics3Processor or SmolVLMProcessor"),
    (lambda f: edit(f / "processor_config.json", lambda d: d.update(image_seq_len=64)),
     "image_seq_len = 64, expected the 4 image tokens of a view"),
    (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json' is missing"),
    (_drop("<end_of_utterance>"), "lacks the special token '<end_of_utterance>' among added_tokens"),
    (_drop("<fake_token_around_image>"), "lacks the special token '<fake_token_around_image>'"),
    (lambda f: edit(f / "tokenizer.json", lambda d: [t.update(rstrip=True) for t in d["added_tokens"]]),
     "joins its special tokens with the text around them"),
    (lambda f: write(f / "generation_config.json", {"eos_token_id": 500}), "eos_token_id = 500, expected"),
    (lambda f: write(f / "generation_config.json", {"eos_token_id": "</s>"}), "eos_token_id = '</s>'"),
    (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template: expected chat_template.jinja"),
    (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), r"chat_template\.jinja' cannot be read"),
    (_template("{% for"), r"chat_template\.jinja' is not a chat template"),
    (_template("{{ raise_exception('no') }}"), "cannot format a conversation"),
    (_template("constant"), "does not put fixed text around each message"),
    (_template(CHATML.replace("{{line['text']}}", "{{line['text'] | upper}}")), "does not put fixed text"),
    (_template(CHATML.replace("{{ '<|im_end|>\n' }}", "{{ loop.index }}")), "does not put fixed text around"),
    (lambda f: edit(f / "tokenizer.json", lambda d: d.update(post_processor=_ends_with(IDS["<|im_end|>"]))),
     r"adds the special tokens \[\d+\] to every text, expected the bos_token alone"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), BAD_PROMPT, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_refuses_prompt_settings(damage: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    folder = save(tmp_path, oracle())
    damage(folder)
    with pytest.raises(EdgeVLMError, match=sentence) as caught:
        read_prompt_spec(folder, MODEL)
    assert str(folder) in str(caught.value)


def test_refuses_another_models_tokenizer(tmp_path: Path) -> None:
    from dataclasses import replace

    folder = save(tmp_path, oracle())
    with pytest.raises(
        EdgeVLMError,
        match=r"has .* as token 9, expected the special token that stands for images \(image_token_id in config",
    ):
        read_prompt_spec(folder, replace(MODEL, image_token_id=9))


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("<|im_start|>", "")])
def test_tokens_that_the_tokenizer_adds(template: str, tmp_path: Path) -> None:
    """A bos token written by the template replaces the tokenizer's own, as in transformers."""

    def add_bos(rules: Tokenizer) -> None:
        rules.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", IDS["<|im_start|>"])]
        )

    folder = save(tmp_path, oracle(template))
    _tokens(folder / "tokenizer.json", add_bos)
    processor = oracle(template)
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
    prompter = Prompter(read_prompt_spec(folder, MODEL), folder / "tokenizer.json")
    assert prompter.spec.add_bos == (template != TEMPLATE)
    ids, layout = prompter.encode(messages, add_generation_prompt=False)
    assert ids.tolist() == expected and layout.length == len(expected)
