"""The model that ships: its files, its tokenizer, and what it says about held-out Scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from edgevlm.bundle.manifest import Bundle
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.inputs.prompt import Prompter
from edgevlm.runtimes import open_runtime
from edgevlm.scenes import ask, scenes
from edgevlm.scenes.question import LOC_BINS
from edgevlm.scenes.showcase import sample_scenes
from edgevlm.verify.answers import open_questions

SHIPPED = open_checkpoint("default").folder
# Scores that the int4 bundle is to reach on at least 2,000 questions of the test split.
GOALS = {
    "existence": 0.95, "colour": 0.95, "count_to_5": 0.90, "count_to_10": 0.75, "spatial": 0.90, "naming": 0.90,
    "text": 0.80, "grounding": 0.80,
}  # fmt: skip
SHORT = {"count_to_10"}  # goals that are not reached: docs/default-model.md says by how much


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What `edgevlm eval --suite scenes --json` wrote of the int4 bundle."""
    read: dict[str, Any] = json.loads((SHIPPED / "figures.json").read_text())
    return read


def test_the_folder_is_a_plain_checkpoint_within_its_size() -> None:
    names = {path.name for path in SHIPPED.iterdir()}
    stems = "config generation_config tokenizer tokenizer_config preprocessor_config processor_config figures"
    others = {"model.safetensors", "chat_template.jinja", "README.md"}
    assert names >= {f"{stem}.json" for stem in stems.split()} | others
    assert {Path(name).suffix for name in names} == {".json", ".safetensors", ".jinja", ".md"}
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 20_000_000
    assert "lm_head.weight" not in open_checkpoint("default").names()  # tied, and stored once
    config = json.loads((SHIPPED / "config.json").read_text())
    for part in ("vision_config", "text_config"):  # blocks of 32; llama.cpp swaps an MLP as wide as its model
        width, inner = config[part]["hidden_size"], config[part]["intermediate_size"]
        assert width % 32 == 0 and inner % 32 == 0 and inner != width
        assert (width // config[part]["num_attention_heads"]) % 16 == 0


def test_the_tokenizer_is_the_one_that_training_builds() -> None:
    from edgevlm.train.shipped.parts import build_tokenizer

    built, shipped = (
        json.loads(made.backend_tokenizer.to_str())
        for made in (build_tokenizer(), AutoTokenizer.from_pretrained(SHIPPED))
    )
    for key in ("vocab", "merges"):
        assert shipped["model"][key] == built["model"][key]
    assert shipped["pre_tokenizer"] == built["pre_tokenizer"]
    added = {token["content"]: token["special"] for token in shipped["added_tokens"]}
    assert added.items() >= {token["content"]: token["special"] for token in built["added_tokens"]}.items()


def test_words_of_questions_are_one_token_and_letters_of_signs_come_one_by_one(tokenizer: Tokenizer) -> None:
    """BPE makes the earliest merge first: one that makes a line's first word must not reach into other words."""
    for question in (question for scene in scenes("val", 0, 40) for question in ask(scene)):
        texts = [question.question]
        if question.skill not in ("text", "grounding", "caption"):
            texts.append(f" {question.answer}")
        for text in texts:
            encoded = tokenizer.encode(text)
            assert len(encoded.ids) == len(tokenizer.pre_tokenizer.pre_tokenize_str(text)), encoded.tokens
    for word in ("STOP", "PARK", "WHEREVER", "THE", "8041"):
        assert tokenizer.encode(word).tokens[-len(word) + 1 :] == [*word[1:]]


def test_the_tokenizer_holds_any_text(tokenizer: Tokenizer) -> None:
    for text in ("\n", "\n\n", "<image>", "<row_1_col_1>", "<global-img>", "<end_of_utterance>", "<loc_0>", "<loc_63>"):
        assert len(tokenizer.encode(text).ids) == 1
    strange = "Où est l'été? 你好 🦜 \t tabs  and   spaces\n\nx 12345"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_boxes_are_text_that_is_shown(tokenizer: Tokenizer, gguf_bundle: Callable[..., Bundle]) -> None:
    """<loc_N> are added tokens and not special: every decoder writes them, as a whole and as they come."""
    from gguf import GGUFReader, TokenType

    bundle = gguf_bundle("int4", "default")
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))
    reader = GGUFReader(bundle.folder / "gguf" / "model.gguf")
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    for number in range(LOC_BINS):
        token = tokenizer.token_to_id(f"<loc_{number}>")
        assert types[token] == TokenType.USER_DEFINED
        assert prompter.decode([token]) == tokenizer.decode([token], skip_special_tokens=True) == f"<loc_{number}>"
    box = " <loc_12><loc_3><loc_40><loc_63>"
    ids = tokenizer.encode(box).ids
    stream = prompter.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == prompter.decode(ids) == box


def test_a_picture_and_a_question_give_the_ids_and_the_answer_of_transformers(
    builder: ModuleType, gguf_bundle: Callable[..., Bundle]
) -> None:
    """Greedy answers of the fp32 bundle; the oracle knows nothing but the shipped folder."""
    bundle = gguf_bundle("fp32", "default")
    runtime = open_runtime(bundle, threads=1)
    pipeline = Pipeline(bundle, runtime)
    model, processor = builder.load_model(SHIPPED), builder.load_processor(SHIPPED)
    processor.chat_template = (SHIPPED / "chat_template.jinja").read_text()
    for scene in sample_scenes().values():
        for question in ("What is in the picture?", "Give the box of the car."):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=text, images=[scene.picture], return_tensors="pt")
            with torch.no_grad():
                theirs = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0].tolist()
            prompt = pipeline.prepare([scene.picture], question)
            assert prompt.ids.tolist() == theirs[: len(prompt.ids)] and prompt.image_tokens == 64
            answer = pipeline.answer([scene.picture], question, GenerateOptions(max_tokens=24))
            assert list(answer.ids) == theirs[len(prompt.ids) :]
            assert answer.text == processor.tokenizer.decode(answer.ids, skip_special_tokens=True).lstrip()
    runtime.close()


@pytest.mark.heavy
def test_int4_answers_held_out_scenes_as_was_measured(
    gguf_bundle: Callable[..., Bundle], figures: dict[str, Any]
) -> None:
    bundle = gguf_bundle("int4", "default")
    runtime = open_runtime(bundle, threads=1)
    with open_questions("scenes", 100) as questions:
        score = questions.ask(bundle, runtime).score
    runtime.close()
    assert score >= figures["score"] - 0.09  # three standard errors of 100 answers of which nine in ten are right


def test_the_goals_are_reached_on_thousands_but_those_that_are_said_not_to_be(figures: dict[str, Any]) -> None:
    assert figures["suite"] == "scenes" and figures["questions"] >= 2000
    assert {skill for skill, goal in GOALS.items() if figures["skills"][skill]["score"] < goal} == SHORT


def test_the_card_states_the_measured_figures(figures: dict[str, Any]) -> None:
    card = (SHIPPED / "README.md").read_text().splitlines()
    for skill, found in figures["skills"].items():
        row = next((line for line in card if line.startswith(f"| {skill} |")), "")
        assert f"{found['score']:.1%}" in row and str(found["n"]) in row, (skill, row)


@pytest.mark.heavy
def test_the_recipe_goes_from_nothing_to_a_model_like_the_shipped_one(tmp_path: Path) -> None:
    """Every stage for two steps: what is read here is that they fit together, not what they teach."""
    from edgevlm.train.shipped.recipe import NUMBERS, PATCH, TEACHER_LAYERS, VISION_LAYERS, Recipe, make

    few = {name: 2 for name in NUMBERS if name.endswith("steps") or name in ("batch", "labelled", "drills")}
    made = make(Recipe(tmp_path / "run", pictures=8, **few))
    ours, theirs = (open_checkpoint(folder) for folder in (made, SHIPPED))
    assert {n: ours.shape(n) for n in ours.names()} == {n: theirs.shape(n) for n in theirs.names()}
    settings = "preprocessor_config.json"
    assert json.loads((made / settings).read_text()) == json.loads((SHIPPED / settings).read_text())
    larger = make(Recipe(tmp_path / "run", pictures=8, larger=True, **few))
    vision, text = (open_checkpoint(larger).config[part] for part in ("vision_config", "text_config"))
    assert (vision["num_hidden_layers"], text["num_hidden_layers"]) == (VISION_LAYERS, TEACHER_LAYERS)
    assert vision["patch_size"] == PATCH
