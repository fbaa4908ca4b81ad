"""The preference stage: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) by TRL's DPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from edgevlm.train.collate import Batch, Collator, Items
from edgevlm.train.conversations import BadRecord
from edgevlm.train.engine import Run
from edgevlm.train.models import Source, lora_config


@dataclass(frozen=True)
class _Pairs:
    """Rows {"number"} to TRL's batch: chosen answers, then rejected ones, each with a mask of the answer."""

    items: Items
    collator: Collator

    def __call__(self, rows: list[dict[str, int]]) -> Batch:
        batch = self.collator([self.items[row["number"]] for row in rows])
        if "input_ids" not in batch:
            return batch
        predicts = batch.pop("logits_to_keep")
        del batch["labels"], batch["numbers"]
        batch["completion_mask"] = torch.zeros_like(batch["input_ids"])
        batch["completion_mask"][:, 1:] = predicts[:, :-1]
        return batch


class _Trainer(DPOTrainer):  # type: ignore[misc]
    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.skipped: list[str] = []

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # the collator makes tokens and pixels by the model's own specifications

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        bad = inputs.pop("bad", [])
        if "input_ids" not in inputs:
            raise BadRecord(f"{bad[0]}; fix the record, or leave such records out with --skip-bad.")
        self.skipped += bad
        return super().compute_loss(model, inputs, *args, **kwargs)


def preference_trainer(run: Run, source: Source, model: Any, items: Items) -> Any:
    """TRL's trainer for `model`; its reference is the model as it was, or with LoRA the model without its adapter."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    options = run.options
    reference, config = None, None
    if options.lora is None:
        reference = source.load()
    else:
        config = lora_config(model, options.parts, options.lora)
    return _Trainer(
        model=model,
        ref_model=reference,
        args=run.arguments(DPOConfig, beta=options.beta, max_length=None),
        data_collator=_Pairs(items, source.collator()),
        train_dataset=Dataset.from_dict({"number": range(len(items))}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(source.processor),
        peft_config=config,
    )
