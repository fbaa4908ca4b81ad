"""Training of the default model against transformers, and what the shipped model claims."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMForConditionalGeneration,
)

from edgevlm.errors import EdgeVLMError
from edgevlm.train import data, default, evaluate_default, network
from edgevlm.train.build import (
    CONTEXT,
    TILE,
    VOCABULARY,
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
    load,
)
from edgevlm.train.questions import every_text
from edgevlm.train.scenes import draw_scene

SHIPPED = Path(default.__file__).parents[1] / "assets" / "default"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    return build_processor(tokenizer)


@pytest.fixture(scope="module")
def shipped() -> tuple[SmolVLMForConditionalGeneration, Idefics3Processor]:
    return load(SHIPPED)


def prompt(processor: Idefics3Processor, *turns: str) -> str:
    """User, assistant, user ... as the processor's own chat template writes it; the picture comes first."""
    messages = [
        {
            "role": "assistant" if i % 2 else "user",
            "content": ([] if i else [{"type": "image"}]) + [{"type": "text", "text": turn}],
        }
        for i, turn in enumerate(turns)
    ]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=len(turns) % 2 == 1)
    return text


@pytest.mark.parametrize("size", [(96, 96), (384, 288), (383, 201), (100, 333), (251, 97), (1200, 700), (64, 64)])
def test_pixels_are_those_of_the_processor(processor: Idefics3Processor, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1] // 3 + 1, size[0] // 3 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size)
    single = processor.image_processor([[picture]], return_tensors="np")["pixel_values"][0]
    mine = data.single_tile(picture).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(single, mine / 127.5 - 1, atol=1e-6)
    for longest in (2 * TILE, 3 * TILE, 4 * TILE):
        outcome = processor.image_processor(
            [[picture]], return_tensors="np", do_image_splitting=True, size={"longest_edge": longest},
            return_row_col_info=True,
        )  # fmt: skip
        pixels, rows, columns = data.tiles(picture, longest)
        assert ([[rows]], [[columns]]) == (outcome["rows"], outcome["cols"])
        mine = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(outcome["pixel_values"][0], mine, atol=1e-6)


@pytest.mark.parametrize("conversation", [False, True])
def test_tokens_are_those_of_the_processor(processor: Idefics3Processor, conversation: bool) -> None:
    scene = draw_scene("train", 11)
    asked = data.Batches(processor.tokenizer, 1)._ask(scene, np.random.default_rng(0))
    batch = data.pack(
        processor.tokenizer,
        data.prefix(),
        [scene],
        data.single_tile(scene.picture)[None],
        [asked],
        conversation,
    )
    head = int((batch.segments[0] == 0).sum())
    if conversation:
        turns = [t for q in asked for t in (q.text, q.answer)]
        expected = processor(text=prompt(processor, *turns), images=[[scene.picture]]).input_ids[0]
        assert batch.ids[0].tolist() == expected
        return
    for number, question in enumerate(asked, 1):
        mine = [*batch.ids[0, :head], *batch.ids[0, batch.segments[0] == number]]
        expected = processor(text=prompt(processor, question.text), images=[[scene.picture]]).input_ids[0]
        answer = processor.tokenizer(f" {question.answer}<end_of_utterance>").input_ids
        assert mine == expected + answer
        wanted = (batch.segments[0] == number) & (batch.targets[0] != data.IGNORE)
        assert batch.targets[0, wanted].tolist() == answer


def test_tiled_prefix_is_that_of_the_processor(processor: Idefics3Processor) -> None:
    picture = draw_scene("train", 3, (384, 288)).picture
    _, rows, columns = data.tiles(picture, 4 * TILE)
    text = prompt(processor, "Count the stars.")
    expected = processor(text=text, images=[[picture]], images_kwargs={"do_image_splitting": True}).input_ids[0]
    mine = data.prefix(rows, columns) + "Count the stars.<end_of_utterance>\nAssistant:"
    assert processor.tokenizer(mine, add_special_tokens=False).input_ids == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # training uses eager
def test_packed_questions_are_computed_as_if_each_stood_alone(processor: Idefics3Processor, attention: str) -> None:
    torch.manual_seed(0)
    model = build_model(build_config(processor.tokenizer)).eval()
    scenes = [draw_scene("test", s) for s in (1, 2)]
    asked = [data.Batches(processor.tokenizer, 1)._ask(s, np.random.default_rng(i)) for i, s in enumerate(scenes)]
    pixels = np.stack([data.single_tile(s.picture) for s in scenes])
    batch = data.pack(processor.tokenizer, data.prefix(), scenes, pixels, asked)
    with torch.no_grad():
        alone = []
        for scene, questions in zip(scenes, asked, strict=True):
            for question in questions:
                text = prompt(processor, question.text) + f" {question.answer}<end_of_utterance>"
                inputs = processor(text=text, images=[[scene.picture]], return_tensors="pt")
                length = len(processor.tokenizer(f" {question.answer}<end_of_utterance>").input_ids)
                alone.append(model(**inputs).logits[0, -length - 1 : -1])
        for part in (model.model.vision_model, model.model.text_model):
            part.config._attn_implementation = attention
        packed = network.answer_logits(model, batch)[0]
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-4, rtol=1e-4)


def test_tiled_batches_pack_and_train(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = data.Batches(tokenizer, 8).batch(7)
    count, tiles = batch.pixels.shape[:2]
    assert (count, tiles > 1) == (1, True)
    model = build_model(build_config(tokenizer))
    heads = network.LabelHeads(192, 256)
    network.question_loss(model, heads, batch, 0.3).backward()  # type: ignore[no-untyped-call]
    assert model.model.vision_model.embeddings.patch_embedding.weight.grad is not None


def test_batches_are_a_function_of_their_number(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (data.Batches(tokenizer, 4).batch(5) for _ in range(2))
    other = data.Batches(tokenizer, 4).batch(6)
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.pixels, other.pixels)


def test_labels_name_what_lies_at_each_patch_and_token(tokenizer: PreTrainedTokenizerFast) -> None:
    scene = draw_scene("test", 21, (300, 200))
    labels = data.scene_labels(scene)
    patches, centres = labels.patches, labels.tokens
    for item in scene.objects:
        column, row = int(item.centre[0] / 300 * 6), int(item.centre[1] / 200 * 6)
        shape, colour = centres.reshape(2, 6, 6)[:, row, column]
        assert (data.SHAPES[shape - 1], data.COLOUR_NAMES[colour - 1]) == (item.shape, item.colour)
    for patch in np.flatnonzero(patches[0]):
        middle = (patch % 12 + 0.5) * 25, (patch // 12 + 0.5) * 200 / 12
        left, top, right, bottom = labels.edges[patch] * 32 / TILE
        box = (middle[0] + left * 300, middle[1] + top * 200, middle[0] + right * 300, middle[1] + bottom * 200)
        assert any(np.allclose(box, o.box, atol=0.01) for o in scene.objects)
    assert labels.masks[patches[0] > 0].mean() > 0.6 > 0.2 > labels.masks[patches[0] == 0].mean()
    counts = [sum(o.shape == s for o in scene.objects) for s in data.SHAPES]
    counts += [sum(o.colour == c for o in scene.objects) for c in data.COLOUR_NAMES]
    np.testing.assert_allclose(labels.amounts.sum(0), counts, atol=1e-5)
    assert int((centres[0] > 0).sum()) == len(scene.objects)
    assert 0 < (patches[0] > 0).mean() < 0.7 and np.array_equal(patches[0] > 0, patches[1] > 0)


def test_resumed_training_continues_as_if_never_stopped(tmp_path: Path) -> None:
    options = default.TrainOptions(
        tmp_path, coarse_steps=1, sharp_steps=1, decoder_steps=2, joint_steps=2, batch=2, threads=1
    )
    straight, tokenizer = default.begin(options)
    stream = default._Stream(options, tokenizer)
    for step in range(3):
        straight.advance(stream[step])
    straight.save()
    resumed, _ = default.begin(options)
    assert resumed.step == 3
    for step in range(3, 6):
        assert straight.advance(stream[step]) == pytest.approx(resumed.advance(stream[step]), rel=1e-4)
    for one, other in zip(straight.average, resumed.average, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(EdgeVLMError, match="give the same numbers, or another --out"):
        default.begin(replace(options, batch=3))
    with pytest.raises(EdgeVLMError, match="raise it"):
        replace(options, batch=0)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert evaluate_default.wilson(right, total) == pytest.approx((low, high), abs=6e-5)


def test_tokenizer_holds_any_text_and_keeps_line_breaks_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCABULARY
    for text in ("\n", "\n\n", "<image>", "<row_6_col_6>", "<global-img>", "<end_of_utterance>"):
        assert len(tokenizer(text).input_ids) == 1
    assert len(tokenizer("12345").input_ids) == 5
    strange = "Où est l'été? 你好 🦜 \t tabs  and   spaces\n\nx"
    assert tokenizer.decode(tokenizer(strange).input_ids) == strange
    assert max(len(tokenizer(t).input_ids) for t in every_text()) <= 16


def test_shipped_folder_is_a_plain_checkpoint_within_its_size() -> None:
    stems = "config generation_config tokenizer tokenizer_config preprocessor_config processor_config figures"
    names = {f"{n}.json" for n in (*stems.split(), "special_tokens_map")} | {
        "model.safetensors",
        "chat_template.jinja",
        "README.md",
    }
    assert {p.name for p in SHIPPED.iterdir()} == names
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) <= 20_000_000
    config = json.loads((SHIPPED / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        sizes = config[part]
        width = sizes["hidden_size"]
        assert width % 32 == 0 and sizes["intermediate_size"] % 32 == 0 and sizes["intermediate_size"] != width
        assert (width // sizes["num_attention_heads"]) % 16 == 0
    assert config["text_config"]["max_position_embeddings"] == CONTEXT


def test_shipped_tokenizer_is_the_one_that_training_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    assert AutoTokenizer.from_pretrained(SHIPPED).get_vocab() == tokenizer.get_vocab()


def test_shipped_model_answers_held_out_scenes(
    shipped: tuple[SmolVLMForConditionalGeneration, Idefics3Processor],
) -> None:
    with torch.inference_mode():
        table = evaluate_default.summary(evaluate_default.answered(*shipped, "test", 100))
    for skill in ("colour", "shape", "count 0-5"):
        assert table[skill]["accuracy"] >= 0.88, (skill, table[skill])  # 0.90 is measured on thousands


def test_teacher_forced_score_is_greedy_generation(
    shipped: tuple[SmolVLMForConditionalGeneration, Idefics3Processor],
) -> None:
    model, processor = shipped
    for seed in range(6):
        scene = draw_scene("test", 5000 + seed)
        asked = data.Batches(processor.tokenizer, 1)._ask(scene, np.random.default_rng(seed))
        batch = data.pack(
            processor.tokenizer,
            data.prefix(),
            [scene],
            evaluate_default.processed(processor, [scene]),
            [asked],
        )
        for question, (_, _, right) in zip(asked, network.score(model, batch), strict=True):
            inputs = processor(text=prompt(processor, question.text), images=[[scene.picture]], return_tensors="pt")
            said = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs.input_ids.shape[1] :]
            text = processor.tokenizer.decode(said)
            assert (text == f" {question.answer}<end_of_utterance>") == right, (question, text)


def test_card_states_the_measured_figures() -> None:
    figures = json.loads((SHIPPED / "figures.json").read_text())
    card = (SHIPPED / "README.md").read_text()
    for skill in ("colour", "shape", "count 0-5"):
        row = figures["test"][skill]
        assert row["total"] >= 1000
        assert f"| {skill} | {row['accuracy']:.1%} | {row['right']} / {row['total']} |" in card


@pytest.mark.parametrize("skill", ["colour", "shape", "count 0-5"])
def test_default_model_knows_nine_in_ten(skill: str) -> None:
    figures = json.loads((SHIPPED / "figures.json").read_text())
    assert figures["test"][skill]["accuracy"] >= 0.90


@pytest.mark.heavy
def test_one_command_trains_saves_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [f.name.replace("_", "-") for f in dataclasses.fields(default.TrainOptions) if f.name.endswith("_steps")]
    sizes = [word for stage in stages for word in (f"--{stage}", "1")] + ["--batch", "2", "--test-scenes", "4"]
    assert default.main(["--out", str(tmp_path), "--workers", "0", *sizes]) == 0
    assert "held-out accuracy" in capsys.readouterr().err
    assert load(tmp_path / "model")[0].config.image_token_id == 4
    assert default.main(["--out", str(tmp_path), "--workers", "0", *sizes, "--batch", "3"]) == 2
