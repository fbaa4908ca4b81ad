"""Does a teacher help a student, and does training through the quantizer undo what int4 costs?

    python bench/distillation.py --out FOLDER [--teacher MODEL]      resumable: what is there is not done again

Data are Scenes. One teacher: MODEL, by default the shipped one. One student: the teacher without every other layer of
its decoder. For each of three seeds, the student's decoder learns from the same data in the same order for the same
steps, with the teacher and without. Then the teacher itself is quantized: plainly, and after steps through the
quantizer with nothing but its own float predictions to learn from. Measured on pictures of the test split: accuracy of
whole answers, cross-entropy, and KL of the teacher's float predictions from these, in nats per answer token. Intervals
are 95 % t-intervals of the difference over the three seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.checkpoint.families import read_model
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.io.files import change_json
from edgevlm.io.folders import replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.scenes import write_scenes
from edgevlm.train.collate import Item, Items
from edgevlm.train.distill import distill
from edgevlm.train.examples import Example
from edgevlm.train.fake_quantize import train_through
from edgevlm.train.models import open_source, save
from edgevlm.train.options import PARTS, DistillOptions, TrainOptions
from edgevlm.train.records import Records
from edgevlm.train.run import train

SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's t, two degrees of freedom, two-sided


@dataclass(frozen=True)
class Plan:
    out: Path
    teacher: str
    pictures: int
    test_pictures: int
    student_steps: int
    qad_steps: int
    batch: int
    preset: str


def make_data(plan: Plan, split: str, count: int) -> Path:
    folder = plan.out / split
    if not folder.exists():
        write_scenes(folder, split, 7, count, rounds=2 if split == "train" else 1)  # type: ignore[arg-type]
    return folder


def make_student(plan: Plan) -> Path:
    """The teacher without every other layer of its decoder (as DistilBERT starts, arXiv 1910.01108)."""
    out = plan.out / "student"
    if not out.exists():
        source = open_source(plan.teacher)
        network = source.load()
        text = network.model.text_model
        text.layers = torch.nn.ModuleList(text.layers[n] for n in range(0, len(text.layers), 2))
        for number, layer in enumerate(text.layers):
            layer.self_attn.layer_idx = number
        with replacing(out, CHECKPOINT) as output:
            save(network, source, output.new, base="", dtype=torch.float32)
            change_json(output.new / "config.json", {"text_config": {"num_hidden_layers": len(text.layers)}})
            output.publish()
    return out


def run(kind: Callable[..., Path | None], options: TrainOptions) -> Path:
    if not options.out.exists():
        note(f"\n{options.out.name}")
        kind(options, progress, note)
    return options.out


@torch.no_grad()
def predictions(
    plan: Plan, model: Path | str, test: Path, quantize: bool
) -> Iterator[tuple[list[tuple[str, Example]], Tensor, Tensor]]:
    """Batches of (pictures and what is asked of them, labels (A,), float32 logits (A, V))."""
    source = open_source(str(model))
    network = source.load().eval()
    if quantize:
        spec, weights = read_model(source.checkpoint)
        train_through(network, spec, weights, fit(make_recipe("int4", plan.preset), weights))  # type: ignore[arg-type]
    items, collate = Items(Records(test), source.encoder(max_tiles=1)), source.collator()
    for start in range(0, len(items), 32):
        chosen: list[Item] = [items[n] for n in range(start, min(start + 32, len(items)))]
        batch = collate(chosen)
        labels = batch.pop("labels")
        del batch["numbers"]
        asked = [
            (items.records[item.number].images[0].relative_to(test).as_posix(), item.examples[0]) for item in chosen
        ]
        yield asked, labels, network(**batch).logits.float()


@cache
def teacher_logs(plan: Plan, test: Path) -> list[Tensor]:
    """Log probabilities (A, V) of each batch."""
    return [logits.log_softmax(-1) for _, _, logits in predictions(plan, plan.teacher, test, False)]


def score(plan: Plan, model: Path | str, test: Path, quantize: bool) -> dict[str, float]:
    """Share of questions whose answer is right whole, overall and by skill; cross-entropy and KL per token.

    Greedy decoding gives exactly the answer if and only if each of its tokens is the likeliest after the true ones.
    """
    name = model if isinstance(model, str) else model.name
    path = plan.out / "scores" / f"{name}{'-int4' if quantize else ''}.json"
    if path.exists():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    skills: dict[str, list[str]] = {}
    for line in (test / "questions.jsonl").read_text().splitlines():
        skills.setdefault(json.loads(line)["image"], []).append(json.loads(line)["skill"])
    right: dict[str, list[bool]] = {skill: [] for asked in skills.values() for skill in asked}
    loss, kl, tokens = 0.0, 0.0, 0
    batches = zip(predictions(plan, model, test, quantize), teacher_logs(plan, test), strict=True)
    for (pictures, labels, logits), theirs in batches:
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        kl += float(F.kl_div(logits.log_softmax(-1), theirs, reduction="sum", log_target=True))
        hits = (logits.argmax(-1) == labels).tolist()
        tokens += len(hits)
        for picture, example in pictures:
            segments = example.segments[example.targets >= 0]
            mine, hits = hits[: len(segments)], hits[len(segments) :]
            for number, skill in enumerate(skills[picture], 1):
                right[skill].append(all(hit for hit, segment in zip(mine, segments, strict=True) if segment == number))
    everything = [hit for hits_ in right.values() for hit in hits_]
    result = {
        "accuracy": mean(everything), "cross_entropy": loss / tokens, "kl": kl / tokens, "questions": len(everything),
    }  # fmt: skip
    result |= {skill: mean(hits_) for skill, hits_ in right.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def measure(plan: Plan) -> dict[str, Any]:
    plan.out.mkdir(parents=True, exist_ok=True)
    data, test = make_data(plan, "train", plan.pictures), make_data(plan, "test", plan.test_pictures)
    shared: dict[str, Any] = {
        "data": data, "batch": plan.batch, "max_tiles": 1, "save_every": 25, "cpu": True, "workers": 0, "bf16": True,
    }  # fmt: skip
    teacher = plan.teacher
    scores: dict[str, list[dict[str, float]]] = {}

    def record(arm: str, model: Path | str, quantize: bool = False) -> None:
        scores.setdefault(arm, []).append(score(plan, model, test, quantize))

    whole = Path(teacher) if Path(teacher).exists() else teacher
    lessons: dict[str, Any] = {"teacher": teacher, "cache": plan.out / "lessons"}
    student = make_student(plan)
    for seed in SEEDS:
        steps = {"steps": plan.student_steps, "learning_rate": 3e-4, "train": ("decoder",), "seed": seed}
        record("student before it learns", student)
        alone = TrainOptions(str(student), out=plan.out / f"alone-{seed}", **shared, **steps)
        record("student without a teacher", run(train, alone))
        taught = DistillOptions(str(student), out=plan.out / f"taught-{seed}", **shared, **steps, **lessons)
        record("student with the teacher", run(distill, taught))

        steps = {"steps": plan.qad_steps, "learning_rate": 3e-5, "train": PARTS, "seed": seed}
        aware = DistillOptions(
            teacher,
            out=plan.out / f"qad-{seed}",
            **shared,
            **steps,
            **lessons,
            cross_entropy=0.0,
            quantize="int4",
            preset=plan.preset,
        )
        record("float", whole)
        record("int4", whole, quantize=True)
        record("int4+QAD", run(distill, aware), quantize=True)

    def compared(one: str, other: str) -> dict[str, dict[str, Any]]:
        return {metric: difference(scores, one, other, metric) for metric in METRICS}

    result = {
        "plan": {name: str(value) for name, value in vars(plan).items() if name != "out"},
        "teacher": score(plan, whole, test, False),
        "arms": scores,
        "distillation": compared("student with the teacher", "student without a teacher"),
        "qad": compared("int4+QAD", "int4"),
        "int4_loss": compared("int4", "float"),
    }
    lost = {m: -result["int4_loss"][m]["mean"] for m in METRICS}
    result["recovered"] = {m: result["qad"][m]["mean"] / lost[m] if lost[m] else None for m in METRICS}
    (plan.out / "results.json").write_text(json.dumps(result, indent=1))
    return result


METRICS = ("accuracy", "cross_entropy", "kl")


def difference(scores: dict[str, list[dict[str, float]]], one: str, other: str, metric: str) -> dict[str, Any]:
    """Mean over seeds of `one` minus `other`, and its interval."""
    pairs = [a[metric] - b[metric] for a, b in zip(scores[one], scores[other], strict=True)]
    centre = mean(pairs)
    spread = math.sqrt(sum((x - centre) ** 2 for x in pairs) / (len(pairs) - 1))
    half = T_95 * spread / math.sqrt(len(pairs))
    return {"mean": centre, "low": centre - half, "high": centre + half, "seeds": pairs}


def mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0


def table(result: dict[str, Any]) -> str:
    """The measured figures as a Markdown table."""
    lines = ["| | accuracy | cross-entropy | KL from the teacher | accuracy by seed |", "|---|---|---|---|---|"]
    teacher = result["teacher"]
    lines.append(f"| teacher | {teacher['accuracy']:.1%} | {teacher['cross_entropy']:.3f} | 0 | |")
    for arm, runs in result["arms"].items():
        seeds = ", ".join(f"{run['accuracy']:.1%}" for run in runs)
        accuracy, loss, kl = (mean([run[m] for run in runs]) for m in METRICS)
        lines.append(f"| {arm} | {accuracy:.1%} | {loss:.3f} | {kl:.4f} | {seeds} |")
    for name, title in (
        ("distillation", "teacher's gain"),
        ("int4_loss", "int4 against float"),
        ("qad", "QAD against int4"),
    ):
        accuracy, loss, kl = (result[name][m] for m in METRICS)
        lines.append(
            f"| {title} | {100 * accuracy['mean']:+.1f} points ({100 * accuracy['low']:+.1f} to "
            f"{100 * accuracy['high']:+.1f}) | {_interval(loss, 3)} | {_interval(kl, 4)} | |"
        )
    if share := result["recovered"]["kl"]:
        lines += ["", f"QAD recovers {share:.0%} of what int4 loses in KL."]
    return "\n".join(lines)


def _interval(found: dict[str, Any], digits: int) -> str:
    return f"{found['mean']:+.{digits}f} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress(what: str, done: int, total: int) -> None:
    if total and done % max(1, total // 4) == 0:
        note(f"{what}: {done} of {total}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", default="default", help="a model that knows Scenes")
    parser.add_argument("--pictures", type=int, default=1200)
    parser.add_argument("--test-pictures", type=int, default=200)
    parser.add_argument("--student-steps", type=int, default=200)
    parser.add_argument("--qad-steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--preset", default="size", help="size: every matrix int4")
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    print(table(measure(Plan(**arguments))))


if __name__ == "__main__":
    main()
