"""Flags of `optimum-cli export onnx` that `edgevlm export` answers with what to do instead: optimum 1 to 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgevlm.errors import EdgeVLMError

_SHAPES = (
    *("batch_size", "sequence_length", "num_choices", "width", "height", "num_channels", "feature_size"),
    *("nb_max_frames", "audio_sequence_length", "point_batch_size", "nb_points_per_image", "visual_seq_length"),
)
REPLACED = {
    "--opset": "The opset is part of a graph's design: leave --opset out (onnx/*_portable.onnx have 23).",
    "--atol": "The gate's bounds are fixed per quantization: leave --atol out and read its table.",
    "--optimize": "Graphs are authored in fused form: leave --optimize out and choose a --preset instead.",
    "--pad_token_id": "Token ids are read from the checkpoint: leave --pad_token_id out.",
    "--library": "The model family is read from config.json: leave --library out.",
    "--library-name": "The model family is read from config.json: leave --library-name out.",
    "--model-kwargs": "A model is what its config.json says: leave --model-kwargs out.",
    "--variant": "There is one layout, described in docs/bundle-format.md: leave --variant out.",
    **{f"--{name}": f"No shape is baked into a graph: leave --{name} out." for name in _SHAPES},
}
REPLACED_SWITCHES = {
    "--trust-remote-code": "Code from a checkpoint is never run: leave --trust-remote-code out.",
    "--monolith": "A device runs each stage at its own time, from a graph of its own: leave --monolith out.",
    "--no-post-process": "Tied weights are shared from the start: leave --no-post-process out.",
    "--no-dynamic-axes": "No shape is baked into a graph: leave --no-dynamic-axes out.",
    "--no-constant-folding": "Graphs are authored, not traced: leave --no-constant-folding out.",
    "--slim": "Graphs are authored without waste: leave --slim out.",
    "--legacy": "Decoders are always one merged graph: leave --legacy out.",
}


def replaced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that answers each of these flags with its sentence."""

    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            raise EdgeVLMError({**REPLACED, **REPLACED_SWITCHES}[param.opts[0]])

    for flag in REPLACED:
        function = click.option(flag, hidden=True, expose_value=False, callback=refuse)(function)
    for flag in REPLACED_SWITCHES:
        function = click.option(flag, is_flag=True, hidden=True, expose_value=False, callback=refuse)(function)
    return function
