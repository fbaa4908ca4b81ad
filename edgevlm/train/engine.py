"""One training run on transformers' Trainer, and so on accelerate: one process, or many under `accelerate launch`.

`OUT.part` holds a run that is not finished: its plan, its checkpoints, its log. The same command resumes it, with the
results of a run that was never stopped. OUT appears in one step, when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from edgevlm.errors import EdgeVLMError
from edgevlm.io.apart import Named
from edgevlm.io.claims import work_folder
from edgevlm.io.files import write_text
from edgevlm.io.folders import Replacement, replacing
from edgevlm.io.json import read_json, read_object
from edgevlm.io.listing import TRAINED
from edgevlm.io.text import printable
from edgevlm.train.collate import Collator, Items
from edgevlm.train.conversations import BadRecord
from edgevlm.train.models import part_of, quiet_transformers
from edgevlm.train.muon import MuonAdamW
from edgevlm.train.options import TrainOptions
from edgevlm.train.report import write_report
from edgevlm.types import Progress

PLAN = "training/plan.json"
COMPLETE = "complete"  # marks a checkpoint that was written to its end
TEACHER = "teacher"  # a teacher's outputs, where no --cache keeps them


class Engine(Trainer):  # type: ignore[misc]
    """Mean cross-entropy of the answers' tokens, over all batches and processes of a step."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, items: Items, collator: Collator, options: TrainOptions, **rest: Any) -> None:
        super().__init__(train_dataset=items, data_collator=collator, **rest)
        self.options = options
        self.skipped: list[str] = []
        self._loss_shifts_labels = False
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts a step's labels

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        bad = inputs.pop("bad", [])
        if "labels" not in inputs:
            raise BadRecord(f"{bad[0]}; fix the record, or leave such records out with --skip-bad.")
        self.skipped += bad
        labels, numbers, weights = inputs.pop("labels"), inputs.pop("numbers"), inputs.pop("weights", None)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, and `count` is of all of them.
        share = self.accelerator.num_processes if num_items_in_batch is not None else 1
        return self.loss(model, inputs, labels, numbers, weights) * (share / count)

    def loss(
        self, model: Any, inputs: dict[str, Any], labels: Tensor, numbers: Tensor, weights: Tensor | None
    ) -> Tensor:
        """The sum over the batch's labels."""
        each = F.cross_entropy(model(**inputs).logits.float(), labels, reduction="none")
        return each.sum() if weights is None else (each * weights).sum()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.options.optimizer == "muon":
            if self.is_fsdp_enabled:
                raise EdgeVLMError("Muon needs whole matrices, which FSDP splits: use --optimizer adamw.")
            free = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self.optimizer = MuonAdamW(free, self.options.rate, self.options.weight_decay)
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.options.encoder_rate != 1.0:
            vision = {id(p) for name, p in self.model.named_parameters() if part_of(name) == "vision"}
            groups = []
            for group in optimizer.param_groups:
                for mine, share in ((True, self.options.encoder_rate), (False, 1.0)):
                    chosen = [p for p in group["params"] if (id(p) in vision) == mine]
                    groups += [{**group, "params": chosen, "lr": group["lr"] * share}] if chosen else []
            optimizer.param_groups[:] = groups
        return optimizer


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Shows steps and losses, and marks a checkpoint once all processes have written it."""

    def __init__(self, progress: Progress, note: Callable[[str], None]) -> None:
        self._progress, self._note, self._share = progress, note, -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._progress("training", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        share = 20 * state.global_step // state.max_steps  # a line for every twentieth of the run
        if state.is_world_process_zero and logs and "loss" in logs and share != self._share:
            self._share = share
            self._note(f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class Run:
    """The folders of one run, and its phases: begin, train, finish. Only the main process shows notes and progress."""

    def __init__(
        self,
        options: TrainOptions,
        process: PartialState,
        output: Replacement | None,  # in the main process
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self.options, self.process, self.output = options, process, output
        self.main = process.is_main_process
        self.note = note if self.main else lambda text: None
        self.progress: Progress = progress if self.main else lambda what, done, total: None
        self.part = options.out.with_name(f"{options.out.name}.part")
        self.checkpoints = self.part / "checkpoints"
        if self.main:
            self._check_part()
        quiet_transformers()
        transformers.set_seed(options.seed)

    @classmethod
    @contextmanager
    def open(
        cls, options: TrainOptions, progress: Progress, note: Callable[[str], None], inputs: Sequence[Named] = ()
    ) -> Iterator[Run]:
        """A run that has claimed its output. inputs: what it reads beside model and data."""
        process = PartialState(cpu=options.cpu or not torch.cuda.is_available())
        if not process.is_main_process:
            yield cls(options, process, None, progress, note)
            return
        read = [("--data", options.data), ("--images", options.images), ("MODEL", options.model), *inputs]
        read = [(name, place) for name, place in read if place != "default"]
        with replacing(options.out, TRAINED, options.force, read) as output:
            yield cls(options, process, output, progress, note)

    def _check_part(self) -> None:
        """Refuse a folder OUT.part that is not an unfinished run."""
        plan = self.part / PLAN
        beside = work_folder(plan)  # a run that was killed while it wrote its plan has nothing else
        if not any(path.is_file() and path.parent != beside for path in (self.part, *self.part.rglob("*"))):
            return
        begun = read_json(plan, "remove that folder") if plan.is_file() else None
        if not isinstance(begun, dict) or not begun.keys() >= {"stage", "records", "processes"}:
            raise EdgeVLMError(
                f"'{self.part}', where a run lies until it is finished, holds something else: move it away, or choose "
                "another output folder."
            )

    def begin(self, items: Items) -> Path | None:
        """Make or check `OUT.part`; return the checkpoint to resume from, if any."""
        plan = self.options.plan() | {"records": len(items), "processes": self.process.num_processes}
        file = self.part / PLAN
        if self.main:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_text(file, json.dumps(plan, indent=1) + "\n")
        self.process.wait_for_everyone()
        begun = read_object(file, "remove that folder to start again")
        if differing := [name for name in plan if begun.get(name) != plan[name]]:
            name = differing[0]
            raise EdgeVLMError(
                f"'{self.part}' holds a run begun with {name} = {begun.get(name)}, now {plan[name]}: give the same "
                "options to resume it, or remove that folder to start again."
            )
        found = sorted(self.checkpoints.glob(f"checkpoint-*/{COMPLETE}"), key=lambda path: _step(path.parent))
        if found:
            self.note(f"Resuming from step {_step(found[-1].parent)}.")
        return found[-1].parent if found else None

    def arguments(self, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
        o = self.options
        length = {"max_steps": o.steps} if o.steps else {"num_train_epochs": o.epochs}
        return kind(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=o.batch,
            gradient_accumulation_steps=o.accumulate,
            learning_rate=o.rate,
            lr_scheduler_type="cosine",
            warmup_steps=o.warmup,
            weight_decay=o.weight_decay,
            bf16=o.bf16,
            activation_checkpointing=o.gradient_checkpointing,
            save_steps=o.save_every,
            save_total_limit=2,
            logging_steps=1 if o.steps and o.steps < 100 else 10,
            logging_first_step=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=o.workers,
            dataloader_pin_memory=torch.cuda.is_available() and not o.cpu,
            remove_unused_columns=False,
            use_cpu=o.cpu or not torch.cuda.is_available(),
            seed=o.seed,
            **length,
            **more,
        )

    def train(self, trainer: Trainer, begun: Path | None) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)  # it prints to standard output
        trainer.add_callback(ProgressCallback(self.progress, self.note))
        if self.main:
            board = self.part / "training" / "tensorboard"
            writer = SummaryWriter(str(board), purge_step=_step(begun) if begun else None)  # type: ignore[no-untyped-call]
            trainer.add_callback(TensorBoardCallback(writer))
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)

    def finish(self, trainer: Trainer, write: Callable[[Any, Path], None], skipped: list[str]) -> None:
        """Write the model, the log and the plot, and give the folder its name."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if trainer.is_fsdp_enabled:
            model = _gathered(trainer, model)
        if self.output is not None:
            write(model, self.output.new)
            shutil.copytree(self.part / "training", self.output.new / "training")
            write_report(self.output.new / "training", trainer.state.log_history)
            if skipped:
                listed = "".join(f"\n  {printable(sentence)}" for sentence in dict.fromkeys(skipped[:10]))
                self.note(f"Skipped {len(skipped)} pictures that could not be decoded:{listed}")
            self.output.publish()
            for aside in (self.checkpoints, self.part / TEACHER, self.part / "training"):
                shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):  # what else is there is not this run's
                self.part.rmdir()
        self.process.wait_for_everyone()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _gathered(trainer: Trainer, model: Any) -> Any:
    """The model with whole weights, where FSDP had spread them over the processes."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        model.load_state_dict(state, assign=True)
    return model
