"""`edgevlm train`: the align, instruct and preference stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.checkpoint.families import read_model
from edgevlm.errors import EdgeVLMError
from edgevlm.io.text import printable
from edgevlm.train.collate import Items
from edgevlm.train.engine import Engine, Run
from edgevlm.train.models import Source, load_for_training, open_source, save
from edgevlm.train.options import TrainOptions
from edgevlm.train.records import Records
from edgevlm.types import Progress


def train(options: TrainOptions, progress: Progress, note: Callable[[str], None]) -> Path | None:
    """Train and write `options.out`: a model folder, or with `lora` an adapter's; its path, in the main process.

    Raises EdgeVLMError.
    """
    with Run.open(options, progress, note) as run:
        source = open_source(options.model, options.processor)
        if source.checkpoint.adapter is not None:
            run.note(f"'{options.model}' is a LoRA adapter: trained is {source.checkpoint.name} with it.")
        items = read_items(options, source, run)
        begun = run.begin(items)
        model = load_for_training(source, options)
        if options.stage == "preference":
            from edgevlm.train.preference import preference_trainer

            trainer = preference_trainer(run, source, model, items)
        else:
            collator = source.collator(options.per_question)
            trainer = Engine(items=items, collator=collator, options=options, model=model, args=run.arguments())
        describe(run, model, items)
        run.train(trainer, begun)
        run.finish(trainer, lambda model, folder: save(model, source, folder, base=options.model), trainer.skipped)
        return options.out if run.main else None


def read_items(options: TrainOptions, source: Source, run: Run) -> Items:
    """The data of a run, checked; records that are skipped are listed."""
    pairs = options.stage == "preference"
    records = Records(
        options.data, images=options.images, skip_bad=options.skip_bad, pairs=pairs, progress=run.progress
    )
    if records.bad:
        listed = "".join(f"\n  {printable(sentence)}" for sentence in records.shown)
        run.note(f"Skipped {records.bad} bad records:{listed}")
    encoder = source.encoder(options.max_length, options.max_tiles, options.tiled)
    return Items(records, encoder, options.skip_bad, pairs)


def describe(run: Run, model: Any, items: Items) -> None:
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    run.note(f"{len(items)} examples; {free / 1e6:.2f} of {whole / 1e6:.2f} million weights are trained.")


def refusal(model: Path) -> str | None:
    """Why no export takes the model in a folder, or None where one does."""
    try:
        read_model(open_checkpoint(str(model)))
    except EdgeVLMError as error:
        return str(error)
    return None
