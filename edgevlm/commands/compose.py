"""`edgevlm compose`: a new vision-language model from an encoder and a language model."""

from __future__ import annotations

from typing import Any

import click

from edgevlm.commands.arguments import check_model, given
from edgevlm.commands.train import need_training
from edgevlm.errors import EdgeVLMError

KINDS = "[mlp|pixel-shuffle|linear|qformer|resampler]"


@click.command()
@click.option("--encoder", required=True, metavar="MODEL", help="A SigLIP model, or a VLM that has one.")
@click.option("--decoder", required=True, metavar="MODEL", help="A Llama-type language model, or a VLM that has one.")
@click.option("--projector", required=True, metavar=KINDS, help="How image features become embeddings.")
@click.option("-o", "--out", required=True, metavar="DIR", help="The folder of the new checkpoint.")
@click.option(
    "--scale-factor",
    type=int,
    metavar="N",
    help="pixel-shuffle: N x N patches to one token.  [default: nearest to 64 tokens]",
)
@click.option("--queries", type=int, default=64, show_default=True, help="qformer, resampler: tokens per tile.")
@click.option("--layers", type=int, default=3, show_default=True, help="qformer, resampler: depth.")
@click.option(
    "--tiles",
    type=int,
    default=4,
    show_default=True,
    help="Longest edge of a picture in tiles; 0: the whole picture only.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the projector's fresh weights.")
@click.option("--force", is_flag=True, help="Replace a checkpoint at DIR, once the new one is complete.")
def compose(**values: Any) -> None:
    """Join a pretrained encoder and a pretrained language model by a fresh projector.

    The result is a checkpoint for `edgevlm train --stage align`. Models with mlp, pixel-shuffle and linear can be
    exported, those with qformer and resampler only trained.
    """
    need_training()
    from pathlib import Path

    from edgevlm.io.console import note, write
    from edgevlm.train.compose import ComposeOptions
    from edgevlm.train.compose import compose as run

    for half in ("encoder", "decoder"):
        check_model(values[half])
    own = {"queries": ("qformer", "resampler"), "layers": ("qformer", "resampler"), "scale_factor": ("pixel-shuffle",)}
    for name, kinds in own.items():
        if values["projector"] not in kinds and (named := given(name)):
            raise EdgeVLMError(f"{named[0]} is for the projector {' or '.join(kinds)}: leave it out.")
    values["out"] = Path(values["out"])
    write(str(run(ComposeOptions(**values), note)))
