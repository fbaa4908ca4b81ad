"""Distillation: a student learns from the data's answers and from a teacher's view of them.

The loss is a weighted sum of cross-entropy and KL at the answers' tokens (Hinton et al. 2015, arXiv 1503.02531), KL
at image tokens and likeness relations between them (arXiv 2410.16236), and the distance of image features
through a learned linear map where widths differ (FitNets, arXiv 1412.6550).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.train.collate import Items
from edgevlm.train.engine import TEACHER, Engine, Run
from edgevlm.train.fake_quantize import train_through
from edgevlm.train.models import Source, load_for_training, open_source, save
from edgevlm.train.options import DistillOptions
from edgevlm.train.outputs import OutputChoice, Outputs, run_model, top_kl
from edgevlm.train.run import describe, read_items
from edgevlm.train.teacher import TeacherCache, TeacherOutputs, cache_teacher, check_vocabularies
from edgevlm.types import Progress

MAP = "feature_map"  # the student's module that is thrown away after training


class Distiller(Engine):
    """An Engine whose loss also compares with a teacher's cached outputs."""

    def __init__(self, *, teacher: TeacherCache, source: Source, wanted: OutputChoice, **rest: Any) -> None:
        super().__init__(**rest)
        self.teacher, self.source, self.wanted = teacher, source, wanted
        self.options: DistillOptions
        self._sums: dict[str, float] = {}
        self._batches = 0

    def loss(
        self, model: Any, inputs: dict[str, Any], labels: Tensor, numbers: Tensor, weights: Tensor | None
    ) -> Tensor:
        inner = core(self.accelerator.unwrap_model(model))
        spec, o = self.source.spec, self.options
        out = run_model(model, inner, inputs, spec.image_token_id, self.wanted, spec.image_tokens)
        taught = self._taught(numbers)
        parts = compare(out, taught, labels, o.temperature, getattr(inner, MAP, None), weights)
        factors = {name: getattr(o, name) for name in parts}
        self._batches += 1
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        total = torch.stack([factors[name] * value for name, value in parts.items()]).sum()
        return total * len(labels)

    def _taught(self, numbers: Tensor) -> TeacherOutputs:
        rows = [self.teacher[int(number)] for number in numbers]
        device = self.accelerator.device
        return {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._batches:
            logs |= {f"loss_{name}": value / self._batches for name, value in self._sums.items()}
            self._sums, self._batches = {}, 0
        super().log(logs, *args, **kwargs)


def compare(
    out: Outputs,
    taught: TeacherOutputs,
    labels: Tensor,
    temperature: float,
    mapping: nn.Module | None,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each part of the loss as a mean: over answer tokens (weights, of mean 1), image tokens or tiles."""
    if len(taught["ids"]) != len(labels):
        raise EdgeVLMError(
            f"The teacher's outputs have {len(taught['ids'])} answer tokens where the student reads {len(labels)}: "
            "the data changed since; remove the teacher's cache."
        )
    share = torch.ones(len(labels), device=labels.device) if weights is None else weights
    parts = {
        "cross_entropy": (F.cross_entropy(out.answers, labels, reduction="none") * share).mean(),
        "answer_kl": (top_kl(out.answers, taught["ids"], taught["logs"], temperature) * share).mean(),
    }
    for name, ours, theirs in (
        ("visual_kl", out.visual, taught.get("visual_ids")),
        ("relation", out.relation, taught.get("relation")),
        ("features", out.features, taught.get("features")),
    ):
        if ours is None or theirs is None:
            continue
        if ours.shape[:-1] != theirs.shape[:-1]:
            raise EdgeVLMError(
                f"Teacher and student see a picture as different numbers of image tokens "
                f"({tuple(theirs.shape[:-1])} and {tuple(ours.shape[:-1])} in a batch): leave out "
                f"--{name.replace('_', '-')}."
            )
        if name == "visual_kl":
            parts[name] = top_kl(ours, theirs, taught["visual_logs"], temperature).sum() / max(1, len(ours))
        elif name == "relation":  # 1 - cosine of the two matrices: RDist of arXiv 2410.16236
            parts[name] = 1 - F.cosine_similarity(ours.flatten(1), theirs.float().flatten(1)).mean()
        else:
            mapped = mapping(ours) if mapping is not None else ours
            parts[name] = F.mse_loss(mapped, theirs.float())
    return parts


def distill(options: DistillOptions, progress: Progress, note: Callable[[str], None]) -> Path | None:
    """Train the student and write `options.out`; its path, in the main process. Raises EdgeVLMError."""
    inputs = [("--cache", options.cache), ("--teacher", None if options.teacher == "default" else options.teacher)]
    with Run.open(options, progress, note, inputs) as run:
        _distill(options, run)
        return options.out if run.main else None


def _distill(options: DistillOptions, run: Run) -> None:
    student, teacher = open_source(options.model, options.processor), open_source(options.teacher)
    check_vocabularies(teacher, student)
    recipe = make_recipe(options.quantize, options.preset, options.components) if options.quantize else None
    items = read_items(options, student, run)
    begun = run.begin(items)
    wanted = OutputChoice(options.visual_kl > 0, options.relation > 0, options.features > 0)
    encoder = teacher.encoder(options.max_length, options.max_tiles, options.tiled)
    studied = Items(items.records, encoder, options.skip_bad)
    cache = options.cache or run.part / TEACHER
    cached = cache_teacher(teacher, studied, cache, options, wanted, student.spec.decoder.vocab_size, run.progress)
    model = load_for_training(student, options)
    if recipe is not None:
        spec, weights = read_model(student.checkpoint)
        kinds = train_through(model, spec, weights, fit(recipe, weights))
        run.note(f"{len(kinds)} matrices are trained as {', '.join(sorted(set(kinds.values())))}.")
    more: dict[str, Any] = {}
    if wanted.features:
        add_feature_map(model, teacher, student)
        more["ddp_find_unused_parameters"] = False  # the map is used after the forward pass, where DDP does not look
    trainer = Distiller(
        teacher=cached,
        source=student,
        wanted=wanted,
        items=items,
        options=options,
        model=model,
        collator=student.collator(options.per_question),
        args=run.arguments(**more),
    )
    describe(run, model, items)
    run.train(trainer, begun)
    dtype = torch.float32 if options.quantize else None  # a rounding to bfloat16 could move a weight to another code

    def write(model: Any, folder: Path) -> None:
        if hasattr(core(model), MAP):
            delattr(core(model), MAP)
        save(model, student, folder, base=options.model, dtype=dtype)

    run.finish(trainer, write, trainer.skipped)


def core(model: Any) -> Any:
    """The transformers model, without peft's around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def add_feature_map(model: nn.Module, teacher: Source, student: Source) -> None:
    """A linear map from the student's image features to the teacher's width, where the two differ."""
    ours, theirs = (source.spec.decoder.hidden_size for source in (student, teacher))
    if ours != theirs:
        core(model).add_module(MAP, nn.Linear(ours, theirs, bias=False))
