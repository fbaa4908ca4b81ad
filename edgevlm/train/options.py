"""The options of a training run, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.options import check_types

STAGES = ("align", "instruct", "preference")
PARTS = ("vision", "projector", "decoder")
OPTIMIZERS = ("adamw", "muon")
# What each stage trains by default, and at what rate: the recipe of arXiv 2310.03744, table 9, and for
# preferences TRL's default. LoRA's few weights need ten times the rate of a whole model's.
_STAGE_PARTS = {"align": ("projector",), "instruct": ("projector", "decoder"), "preference": ("projector", "decoder")}
_STAGE_RATES = {"align": 1e-3, "instruct": 2e-5, "preference": 1e-6}


@dataclass(frozen=True)
class TrainOptions:
    """One run. Steps are optimizer steps; a batch is what one process reads at a time."""

    model: str  # folder, Hub id or "default"
    data: Path
    out: Path
    stage: str = "instruct"
    processor: str | None = None  # where the tokenizer and the processor's files are, if not beside the weights
    images: Path | None = None  # the folder that image paths start from
    skip_bad: bool = False
    train: tuple[str, ...] = ()  # parts whose weights change; empty: the stage's own
    lora: int | None = None  # rank of the adapter
    four_bit: bool = False  # QLoRA: the frozen base in 4 bits
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    batch: int = 8
    accumulate: int = 1  # batches per optimizer step
    learning_rate: float | None = None  # None: the stage's own
    encoder_rate: float = 1.0  # the encoder's share of the learning rate
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    per_question: bool = False  # every question counts the same, not every token of an answer
    beta: float = 0.1  # preference: how closely to stay with the reference model
    bf16: bool = False
    gradient_checkpointing: bool = False  # less memory, a third more time
    max_length: int | None = None  # tokens; None: the model's context
    max_tiles: int | None = None
    tiled: float = 0.0  # share of the pictures that are cut into tiles, though the model's own rule is one tile
    save_every: int = 200  # steps
    workers: int = 0  # processes that read pictures
    cpu: bool = False
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.stage not in STAGES:
            raise EdgeVLMError(f"Stage '{self.stage}' does not exist: choose one of {', '.join(STAGES)}.")
        for part in self.train:
            if part not in PARTS:
                raise EdgeVLMError(f"Part '{part}' does not exist: choose from {', '.join(PARTS)}.")
        counts = ("batch", "accumulate", "save_every", "lora", "steps", "max_length", "max_tiles")
        rates = ("learning_rate", "epochs", "encoder_rate", "beta")
        for name in counts + rates:
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf and (name in rates or value >= 1)):
                what = "more than 0" if name in rates else "1 or more"
                raise EdgeVLMError(f"--{name.replace('_', '-')} is {value}: it should be {what}.")
        if not 0 <= self.warmup < 1 or self.workers < 0 or not 0 <= self.weight_decay < math.inf:
            raise EdgeVLMError("--warmup is a share below 1, --workers and --weight-decay are 0 or more: fix them.")
        if self.optimizer not in OPTIMIZERS:
            raise EdgeVLMError(f"Optimizer '{self.optimizer}' does not exist: choose one of {', '.join(OPTIMIZERS)}.")
        if self.stage == "preference" and (self.optimizer != "adamw" or self.per_question):
            raise EdgeVLMError("The preference stage is TRL's: leave --optimizer and --per-question out of it.")
        if not 0 <= self.tiled <= 1:
            raise EdgeVLMError(f"--tiled is {self.tiled}: it is a share, from 0 to 1.")
        if self.four_bit and self.lora is None:
            raise EdgeVLMError("--4bit freezes the model in 4 bits: give an adapter to train with --lora R.")

    @property
    def parts(self) -> tuple[str, ...]:
        return self.train or _STAGE_PARTS[self.stage]

    @property
    def rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return _STAGE_RATES[self.stage] * (10 if self.lora else 1)

    def plan(self) -> dict[str, Any]:
        """All options that affect the result, as JSON values: a run resumes only under the same plan."""
        aside = {"out", "force", "workers", "save_every"}
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in aside}


@dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """`model` is the student. Weights multiply the parts of the loss; 0 leaves a part out."""

    teacher: str = ""
    cache: Path | None = None  # the teacher's outputs; None: in the run's own folder
    answer_kl: float = 1.0
    cross_entropy: float = 1.0
    visual_kl: float = 0.0
    relation: float = 0.0
    features: float = 0.0
    temperature: float = 2.0
    top_k: int = 32  # logits kept per position
    quantize: str | None = None  # train through the export's quantizer
    preset: str = "balanced"
    components: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("answer_kl", "cross_entropy", "visual_kl", "relation", "features"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EdgeVLMError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it should be 0 or more.")
        if self.cross_entropy + self.answer_kl + self.visual_kl + self.relation + self.features == 0:
            raise EdgeVLMError("Every part of the loss has weight 0: give at least one a weight.")
        if not 0 < self.temperature < math.inf or self.top_k < 1:
            raise EdgeVLMError("--temperature should be more than 0 and --top-k 1 or more: fix them.")
        if self.stage == "preference":
            raise EdgeVLMError("Distillation has no preference stage: distil first, then `edgevlm train` it.")
        if self.quantize and self.lora:
            raise EdgeVLMError("--quantize trains the weights that ship, --lora beside them: give one of the two.")

    @property
    def parts(self) -> tuple[str, ...]:
        return self.train or PARTS

    def plan(self) -> dict[str, Any]:
        plan = super().plan()
        del plan["cache"]
        return plan


def plain(value: Any) -> Any:
    """`value` as JSON holds it."""
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value
