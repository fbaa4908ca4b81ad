"""`edgevlm distill`: a small model learns from a larger one, and through the quantizer."""

from __future__ import annotations

from typing import Any

import click

from edgevlm.commands.arguments import check_model, given
from edgevlm.commands.train import advice, common, need_training, training_options
from edgevlm.errors import EdgeVLMError


@click.command()
@click.option("--teacher", required=True, metavar="MODEL", help="Whose answers are learnt.")
@click.option("--student", required=True, metavar="MODEL", help="What is trained.")
@training_options
@click.option("--quantize", metavar="[int4|int8|fp16]", help="Train through the export's quantizer (QAD).")
@click.option(
    "--preset",
    default="balanced",
    show_default=True,
    metavar="[size|balanced|latency]",
    help="With --quantize: as for export.",
)
@click.option("--vision", metavar="KIND", help="With --quantize: override the preset for the encoder.")
@click.option("--projector", metavar="KIND", help="... for the projector.")
@click.option("--decoder", metavar="KIND", help="... for the decoder.")
@click.option("--embed", metavar="KIND", help="... for the embedding table (and a tied head).")
@click.option("--temperature", type=float, default=2.0, show_default=True, help="Softens both models' predictions.")
@click.option("--cross-entropy", type=float, default=1.0, show_default=True, metavar="W", help="Weight: the answers.")
@click.option("--answer-kl", type=float, default=1.0, show_default=True, metavar="W", help="... the teacher's.")
@click.option("--visual-kl", type=float, default=0.0, show_default=True, metavar="W", help="... at image tokens.")
@click.option(
    "--relation",
    type=float,
    default=0.0,
    show_default=True,
    metavar="W",
    help="... how image tokens relate to each other.",
)
@click.option("--features", type=float, default=0.0, show_default=True, metavar="W", help="... image features.")
@click.option("--top-k", type=int, default=32, show_default=True, help="Teacher's tokens kept per position.")
@click.option("--cache", metavar="DIR", help="Keep the teacher's outputs here for the next run.")
@click.option("--lora", type=int, metavar="R", help="Train an adapter of this rank instead of the weights.")
def distill(teacher: str, student: str, **values: Any) -> None:
    """Train STUDENT on data and on what TEACHER makes of them.

    Both are checkpoint folders, Hub ids or 'default', with one tokenizer. The teacher runs once; its outputs are
    kept on disk. With --quantize the student learns with its weights rounded as `edgevlm export` will round them
    under the same flags; the teacher may then be the student itself.
    """
    need_training()
    from pathlib import Path

    from edgevlm.io.console import note, progress_bar, write
    from edgevlm.train.distill import distill as run
    from edgevlm.train.options import DistillOptions

    if not values["quantize"] and (named := given("preset", "vision", "projector", "decoder", "embed")):
        raise EdgeVLMError(f"{named[0]} is for training through the quantizer: add --quantize int4, or leave it out.")
    for model in (teacher, student):
        check_model(model)
    kinds = {name: values.pop(name) for name in ("vision", "projector", "decoder", "embed")}
    values["components"] = {name: kind for name, kind in kinds.items() if kind}
    values["cache"] = Path(values["cache"]) if values["cache"] else None
    options = DistillOptions(model=student, teacher=teacher, **common(**values))
    with progress_bar() as progress:
        out = run(options, progress, note)
    if out is not None:
        note(f"\n{advice(options)}")
        write(str(out))
