"""The train verb: what a model is shown is what ships, runs can be stopped, and results are folders export takes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import heavy_but
from PIL import Image
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_data import write_data

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.checkpoint.opening import open_model
from edgevlm.errors import EdgeVLMError
from edgevlm.train.collate import Items
from edgevlm.train.engine import Engine
from edgevlm.train.examples import IGNORE
from edgevlm.train.models import open_source, part_of
from edgevlm.train.options import TrainOptions
from edgevlm.train.records import Records
from edgevlm.train.run import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("training") / "data", 16)


@pytest.fixture
def options(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        str(tiny_checkpoint),
        data / "data.jsonl",
        tmp_path / "out",
        steps=4,
        batch=4,
        learning_rate=1e-3,
        max_tiles=1,
        save_every=2,
        cpu=True,
    )


def quiet(options: TrainOptions) -> Path:
    torch.set_num_threads(1)
    out = train(options, lambda what, done, total: None, lambda text: None)
    assert out is not None
    return out


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(str(folder))
    return {name: checkpoint.read(name) for name in checkpoint.names()}


@pytest.mark.parametrize(("max_tiles", "tiled"), [(1, 0.0), (None, 0.0), (None, 1.0)])
def test_a_model_is_shown_what_its_processor_makes(
    builder: ModuleType, tiny_checkpoint: Path, tmp_path: Path, max_tiles: int | None, tiled: float
) -> None:
    folder = write_data(tmp_path / "data", 2, size=(120, 70))
    turns = [("user", "What is this?"), ("assistant", "A square."), ("user", "Sure?"), ("assistant", "Yes, I am.")]
    said = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    line = {"image": "images/000001.png", "conversations": said}
    (folder / "talk.jsonl").write_text(json.dumps(line))
    source = open_source(str(tiny_checkpoint))
    if tiled:  # of a model whose own rule is one tile
        source = replace(source, image=replace(source.image, rule=replace(source.image.rule, split=False)))
    example = source.encoder(max_tiles=max_tiles, tiled=tiled).encode(Records(folder / "talk.jsonl")[0])

    processor = builder.load_processor(tiny_checkpoint)
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image"})
    text = processor.apply_chat_template(messages)
    picture = Image.open(folder / "images/000001.png")
    split = {"do_image_splitting": max_tiles is None}
    theirs = processor(text=text, images=[[picture]], images_kwargs=split, return_tensors="np")
    stop = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    ids = theirs["input_ids"][0]
    end = int(np.flatnonzero(ids == stop)[-1]) + 1
    assert example.ids.tolist() == ids[:end].tolist()
    answers = [" A square.<end_of_utterance>", " Yes, I am.<end_of_utterance>"]
    wanted = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    assert example.targets[example.targets != IGNORE].tolist() == [*wanted[0], *wanted[1]]
    batch = source.collator()([type("I", (), {"number": 0, "examples": (example,), "bad": ()})()])
    np.testing.assert_allclose(batch["pixel_values"].numpy(), theirs["pixel_values"], atol=1e-6)


def test_a_picture_of_one_tile_is_shown_twice_as_llama_cpp_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The text is SmolVLM's for a grid of one, which its processor never makes and llama.cpp always does."""
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    source = open_source(str(tiny_checkpoint))
    side, tokens = source.image.rule.side, source.spec.image_tokens
    folder = write_data(tmp_path / "data", 1, size=(side, side))
    rule = replace(source.image.rule, split=False, longest_edge=side)
    source = replace(source, image=replace(source.image, rule=rule))
    record = Records(folder / "data.jsonl")[0]
    once, twice = (source.encoder(tiled=share).encode(record) for share in (0.0, 1.0))
    assert len(once.tiles) == 1 and np.array_equal(twice.tiles, np.concatenate([once.tiles, once.tiles]))
    marks = ("<fake_token_around_image>", "<image>", "<global-img>")
    alone, beside = (get_image_prompt_string(n, n, tokens, *marks) for n in (0, 1))
    tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    texts = [tokenizer.decode(example.ids, skip_special_tokens=False) for example in (once, twice)]
    assert texts[0].replace(alone, beside) == texts[1] != texts[0]


def test_dialogues_about_one_picture_are_computed_as_if_each_stood_alone(data: Path, tiny_checkpoint: Path) -> None:
    source = open_source(str(tiny_checkpoint))
    items, collate = Items(Records(data), source.encoder(max_tiles=1)), source.collator()
    model = source.load().eval()
    together = collate([items[0], items[1], items[2]])
    alone = []
    for number in range(3):
        conversation = items.records[number]
        for dialogue in conversation.dialogues:
            single = source.encoder(max_tiles=1).encode(replace(conversation, dialogues=(dialogue,)))
            alone.append(single)
    assert len(alone) == 6 and max(int(items[n].examples[0].segments.max()) for n in range(3)) == 2

    def logits(batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = model(**{k: v for k, v in batch.items() if k not in ("labels", "numbers")}).logits
        return out

    rows = [collate([type("I", (), {"number": 0, "examples": (one,), "bad": ()})()]) for one in alone]
    torch.testing.assert_close(logits(together), torch.cat([logits(row) for row in rows]), atol=2e-4, rtol=1e-4)
    assert torch.equal(together["labels"], torch.cat([row["labels"] for row in rows]))


def test_a_stage_changes_its_parts_and_the_result_is_a_plain_checkpoint(options: TrainOptions) -> None:
    before = weights_of(Path(options.model))
    for stage, parts in (("align", {"projector"}), ("instruct", {"projector", "decoder"})):
        out = quiet(replace(options, stage=stage, out=options.out.with_name(stage)))
        after = weights_of(out)
        changed = {part_of(name) for name in before if not np.array_equal(before[name], after[name])}
        assert changed == parts
        assert read_model(open_checkpoint(str(out)))[0].decoder == read_model(open_checkpoint(options.model))[0].decoder
        kept = {p.name for p in Path(options.model).iterdir()} - {"model.safetensors", "config.json"}
        assert all((out / name).read_bytes() == (Path(options.model) / name).read_bytes() for name in kept)
        names = {p.name for p in (out / "training").iterdir()}
        assert names == {"log.jsonl", "loss.png", "plan.json", "tensorboard"}
        assert Image.open(out / "training" / "loss.png").size[0] > 500
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 1 and log[0]["loss"] > 0


@pytest.mark.heavy
def test_training_learns(options: TrainOptions) -> None:
    out = quiet(replace(options, steps=40, batch=8, learning_rate=5e-3, train=("vision", "projector", "decoder")))
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.25 * log[0]["loss"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "change",
    heavy_but([{}], [{}, {"lora": 4}, {"bf16": True, "accumulate": 2}, {"optimizer": "muon", "encoder_rate": 0.5}]),
)
def test_a_stopped_run_goes_on_with_the_same_weights(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    options = replace(options, steps=7, **change)
    straight = quiet(replace(options, out=options.out.with_name("straight")))
    calls, real = [0], Engine.training_step

    def killed(self: Engine, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6 * options.accumulate:
            raise _Killed
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "training_step", killed)
    with pytest.raises(_Killed):
        quiet(options)
    assert not options.out.exists()
    # A checkpoint that was not written to its end is not gone on from.
    broken = options.out.with_name("out.part") / "checkpoints" / "checkpoint-6"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    with pytest.raises(EdgeVLMError, match=r"begun with learning_rate = 0.001, now 0.5"):
        quiet(replace(options, learning_rate=0.5))
    resumed = quiet(options)
    name = "adapter_model.safetensors" if options.lora else "model.safetensors"
    assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    assert not options.out.with_name("out.part").exists()


@pytest.mark.heavy
def test_a_killed_process_goes_on_with_the_same_weights(options: TrainOptions) -> None:
    def command(out: Path) -> list[str]:
        o = options
        return [
            sys.executable,
            "-m",
            "edgevlm",
            "train",
            o.model,
            "--data",
            str(o.data),
            "-o",
            str(out),
            "--cpu",
            "--steps",
            "60",
            "--batch",
            "4",
            "--learning-rate",
            "1e-3",
            "--max-tiles",
            "1",
            "--save-every",
            "5",
            "--workers",
            "1",
        ]

    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    straight = options.out.with_name("straight")
    subprocess.run(command(straight), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(command(options.out), env=environment, stderr=subprocess.DEVNULL)
    checkpoints = options.out.with_name("out.part") / "checkpoints"
    while not list(checkpoints.glob("checkpoint-*/complete")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not options.out.exists()
    done = subprocess.run(command(options.out), check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(options.out) and "Resuming from step" in done.stderr
    assert (options.out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.heavy
def test_two_processes_train_as_one_with_twice_the_batch(options: TrainOptions) -> None:
    """gloo on CPU. `accelerate launch --cpu --num_processes 2` would start one process only and leave two to mpirun."""
    alone = quiet(replace(options, out=options.out.with_name("alone"), batch=8))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "-m", "edgevlm", "train", options.model, "--data", str(options.data), "-o", str(options.out), "--cpu",
        "--steps", "4", "--batch", "4", "--learning-rate", "1e-3", "--max-tiles", "1", "--save-every", "2",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(options.out)
    plan = json.loads((options.out / "training" / "plan.json").read_text())
    assert plan["processes"] == 2
    logs = [
        [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
        for folder in (alone, options.out)
    ]
    for one, two in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    ours, theirs = weights_of(alone), weights_of(options.out)
    for name in ours:  # Adam turns a rounding of a gradient near zero into a whole step, in few places
        assert np.mean(np.abs(ours[name] - theirs[name]) < 1e-5) > 0.98, name


@pytest.mark.heavy
def test_batches_of_a_step_count_by_their_tokens(options: TrainOptions) -> None:
    """Accumulated, the step is that of one large batch, though answers differ in length."""
    options = replace(options, data=options.data.with_name("questions.jsonl"), steps=1, warmup=0.0)
    whole = weights_of(quiet(replace(options, batch=8, out=options.out.with_name("whole"))))
    parts = weights_of(quiet(replace(options, batch=2, accumulate=4)))
    before = weights_of(Path(options.model))
    assert any(not np.array_equal(whole[name], before[name]) for name in whole)
    same = [np.mean(np.abs(whole[n] - parts[n]) < 1e-5) for n in whole if not np.array_equal(whole[n], before[n])]
    assert min(same) > 0.97  # Adam's first step is the sign of the gradient: near zero it may differ


def test_questions_weigh_the_same_whatever_the_length_of_their_answers(data: Path, tiny_checkpoint: Path) -> None:
    """A row's loss is its tokens times the mean over dialogues of what transformers says of each alone."""
    source = open_source(str(tiny_checkpoint))
    items = Items(Records(data), source.encoder(max_tiles=1))
    model = source.load().eval()
    batch = source.collator(per_question=True)([items[0], items[1]])
    labels, weights = batch.pop("labels"), batch.pop("weights")
    del batch["numbers"]
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(model(**batch).logits, labels, reduction="none")
    expected = 0.0
    for number in range(2):
        conversation, means, tokens = items.records[number], [], 0
        for dialogue in conversation.dialogues:
            one = source.encoder(max_tiles=1).encode(replace(conversation, dialogues=(dialogue,)))
            single = source.collator()([type("I", (), {"number": 0, "examples": (one,), "bad": ()})()])
            wanted = single.pop("labels")
            del single["numbers"]
            with torch.no_grad():
                means.append(float(torch.nn.functional.cross_entropy(model(**single).logits, wanted)))
            tokens += len(wanted)
        expected += tokens * sum(means) / len(means)
    assert float((each * weights).sum()) == pytest.approx(expected, rel=1e-4)
    assert float((each * weights).sum()) != pytest.approx(float(each.sum()), rel=1e-4)
    assert float(weights.mean()) == pytest.approx(1.0)


def test_the_encoder_learns_at_its_share_of_the_rate(options: TrainOptions) -> None:
    parts = ("vision", "decoder")
    out = quiet(replace(options, steps=1, warmup=0.0, encoder_rate=0.01, train=parts))
    before, after = weights_of(Path(options.model)), weights_of(out)

    def moved(part: str) -> float:
        return max(float(np.abs(after[n] - before[n]).max()) for n in before if part_of(n) == part)

    assert moved("decoder") == pytest.approx(1e-3, rel=0.02)
    assert moved("vision") == pytest.approx(1e-5, rel=0.05)


def test_an_adapter_is_what_export_merges(options: TrainOptions) -> None:
    from peft import PeftModel

    out = quiet(replace(options, lora=4, steps=6))
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "edgevlm.json",
        "training",
    }
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == options.model
    base = open_source(options.model).load()
    merged = PeftModel.from_pretrained(base, out).merge_and_unload().state_dict()
    ours = open_model(options.model, adapter=out)
    before = weights_of(Path(options.model))
    changed = [name for name in ours.names() if not np.array_equal(before[name], ours.read(name))]
    assert changed and {part_of(name) for name in changed} == {"projector", "decoder"}
    for name in ours.names():
        np.testing.assert_allclose(ours.read(name), merged[name].numpy(), atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("lora", [None, 4])
def test_the_preferred_answer_becomes_likelier(options: TrainOptions, lora: int | None) -> None:
    options = replace(
        options,
        stage="preference",
        data=options.data.with_name("pairs.jsonl"),
        lora=lora,
        steps=12,
        beta=0.5,
        learning_rate=1e-3 if lora is None else 1e-2,
    )
    out = quiet(options)
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)  # the model is its own reference
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert (out / ("model.safetensors" if lora is None else "adapter_model.safetensors")).exists()


@pytest.mark.heavy
def test_a_damaged_picture_stops_a_run_or_is_left_out(options: TrainOptions, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", 8)
    path = folder / "images" / "000002.png"
    path.write_bytes(path.read_bytes()[:120])
    options = replace(options, data=folder / "data.jsonl", steps=2)
    with pytest.raises(EdgeVLMError, match=r"data.jsonl:3: The image '.*000002.png' is damaged .*--skip-bad"):
        quiet(options)
    notes: list[str] = []
    train(replace(options, out=tmp_path / "skipped", skip_bad=True), lambda *_: None, notes.append)
    assert any("Skipped 1 pictures" in note and "data.jsonl:3" in note for note in notes)


def test_a_dialogue_is_cut_after_the_last_answer_that_fits(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Yes."}] * 3
    (tmp_path / "long.jsonl").write_text(json.dumps({"conversations": turns}))
    record = Records(tmp_path / "long.jsonl")[0]
    source = open_source(str(tiny_checkpoint))
    whole = source.encoder().encode(record)
    cut = source.encoder(max_length=len(whole.ids) - 1).encode(record)
    assert (whole.targets != IGNORE).sum() == 3 * (cut.targets != IGNORE).sum() / 2
    assert whole.ids[: len(cut.ids)].tolist() == cut.ids.tolist()
    with pytest.raises(EdgeVLMError, match=r"long.jsonl:1: the first answer ends at \d+ tokens, more than 5"):
        source.encoder(max_length=5).encode(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "magic"}, "Stage 'magic' does not exist"),
        ({"train": ("eyes",)}, "Part 'eyes' does not exist"),
        ({"batch": 0}, "--batch is 0: it should be 1 or more"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"warmup": 1.0}, "--warmup is a share below 1"),
        ({"four_bit": True}, "--lora R"),
        ({"optimizer": "sgd"}, "Optimizer 'sgd' does not exist: choose one of adamw, muon"),
        ({"stage": "preference", "per_question": True}, "leave --optimizer and --per-question out"),
        ({"tiled": 1.5}, "--tiled is 1.5: it is a share"),
    ],
)
def test_options_are_checked_at_once(options: TrainOptions, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeVLMError, match=message):
        replace(options, **change)


def test_the_verbs_say_where_the_model_is_and_what_is_wrong(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgevlm.cli import main

    shared = ["--data", str(options.data), "--cpu", "--steps", "2", "--batch", "4", "--max-tiles", "1"]
    chain: list[tuple[str, list[str]]] = [
        ("made", ["compose", "--encoder", options.model, "--decoder", options.model, "--projector", "linear"]),
        ("aligned", ["train", str(tmp_path / "made"), "--stage", "align", *shared]),
        ("taught", ["distill", "--teacher", options.model, "--student", str(tmp_path / "aligned"), *shared]),
    ]
    for name, words in chain:
        with pytest.raises(SystemExit) as done:
            main([*words, "-o", str(tmp_path / name)])
        told = capsys.readouterr()
        assert done.value.code == 0, told.err
        assert told.out == f"{tmp_path / name}\n"
    for words, message in (
        (["train", options.model, "--data", "none.jsonl"], "The data 'none.jsonl' do not exist"),
        (["train", "nowhere", *shared], "there is no folder 'nowhere'"),
        (["distill", "--teacher", "nowhere", "--student", options.model, *shared], "there is no folder 'nowhere'"),
        (["distill", "--teacher", options.model, "--student", options.model, *shared, "--quantize", "int3"], "'int3'"),
    ):
        with pytest.raises(SystemExit) as done:
            main([*words, "-o", str(tmp_path / "out")])
        told = capsys.readouterr()
        assert (done.value.code, told.out) == (2, "") and message in told.err and "Traceback" not in told.err
        assert not (tmp_path / "out").exists()


def test_a_folder_in_the_way_is_left_alone(options: TrainOptions) -> None:
    options.out.mkdir()
    (options.out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(EdgeVLMError, match=r"already exists|holds something that is not a trained model"):
            quiet(replace(options, force=force))
    assert (options.out / "thesis.txt").read_text() == "mine"


def test_what_a_user_keeps_beside_an_unfinished_run_is_kept(options: TrainOptions) -> None:
    part = options.out.with_name("out.part")
    part.mkdir()
    (part / "thesis.txt").write_text("mine")
    with pytest.raises(
        EdgeVLMError, match=r"'.*out\.part', where a run lies until it is finished, holds something else"
    ):
        quiet(options)
    (part / "thesis.txt").unlink()

    def progress(what: str, done: int, total: int) -> None:
        if what == "training":
            (part / "thesis.txt").write_text("mine")

    short = replace(options, steps=1, out=options.out)
    train(short, progress, lambda text: None)
    assert [path.name for path in part.iterdir()] == ["thesis.txt"] and not (options.out / "thesis.txt").exists()
    (part / "thesis.txt").rename(options.out / "thesis.txt")
    before = (options.out / "model.safetensors").read_bytes()
    with pytest.raises(EdgeVLMError, match=r"holds files that are not of the trained model \('thesis\.txt'\)"):
        quiet(replace(short, seed=1, force=True))
    assert (options.out / "model.safetensors").read_bytes() == before


def test_an_output_that_is_an_input_is_refused(options: TrainOptions) -> None:
    for name, changed in (
        ("--data", replace(options, out=options.data)),
        ("MODEL", replace(options, out=Path(options.model))),
        ("--data", replace(options, out=options.data.parent)),
    ):
        with pytest.raises(EdgeVLMError, match=f"which {name} reads: choose another output"):
            quiet(replace(changed, force=True))
