"""The default model's card: `python -m edgevlm.train.shipped.card MODEL FIGURES` writes README.md and figures.json.

FIGURES is the JSON file of `edgevlm eval --suite scenes --json` on the model's int4 bundle. With --teacher, MODEL is
the default model's teacher, which does not ship.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io.files import write_text
from edgevlm.io.json import read_object
from edgevlm.io.program import run_module

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [{family}, tiny, synthetic]
---

# EdgeVLM default model{whose}

A vision-language model of {millions:.1f} million parameters in the plain layout of
transformers' `{layout}`. {purpose}
It answers questions about drawn scenes of 64 kinds of things in ten colours and of signs, and knows nothing else.

## Architecture

| part | shape |
|---|---|
| vision | SigLIP, {tile} x {tile} pixels, patch {patch}, {vision_layers} layers of {vision_width}, MLP {vision_mlp} |
| projector | pixel shuffle by {scale}, one linear map: {image_tokens} image tokens per tile |
| decoder | Llama, {layers} layers of {width}, SwiGLU {mlp}, context {context}, embeddings tied |
| tokenizer | byte-level BPE, {vocabulary} entries: the words of Scenes' questions, letters, `<loc_0>` to `<loc_63>` |

## Training

On generated pictures only, with the verbs that train any model, and before them on labels per patch:
`{command}`. Training, validation and test split share no layout, no text on a sign, and
not every pair of colour and thing.
{training}

## Held-out score

{questions} questions about pictures of the test split, asked of the {quantization} bundle ({runtime}), greedy
decoding. A box counts from an overlap (IoU) of one half, a caption by the F1 of its stated facts, every other answer
by being exactly right.

| skill | score | questions | 95 % interval |
|---|---|---|---|
{rows}

Measure it again:

    edgevlm scenes test-set --split test --seed 0 --count 300
    edgevlm export {model} -o tiny
    edgevlm eval tiny --suite scenes --data test-set --json score.json

## Limits

- Photographs are outside everything it has seen: answers about them are meaningless.
- Questions in other words than those of Scenes may get any answer.
- It never saw more than ten objects of a kind, overlapping objects, or text of more than eight letters.

Licence: Apache-2.0.
"""
_COMMAND = "python -m edgevlm.train.shipped.recipe --out DIR"
SHIPPED = {
    "whose": "",
    "purpose": "It exists so that export, gate, demo and tests have a real, trained model.",
    "command": _COMMAND,
    "model": "default",
}
TEACHER = {
    "whose": "'s teacher",
    "purpose": "It is the default model with a deeper decoder, trained on.",
    "command": f"{_COMMAND} --larger",
    "model": "DIR/larger",
}


def write_card(folder: Path, figures: dict[str, Any], training: str, about: dict[str, str] = SHIPPED) -> None:
    """`training`: how this model was trained, in sentences."""
    from edgevlm.checkpoint.checkpoint import open_checkpoint
    from edgevlm.train.models import open_source

    source = open_source(str(folder))
    checkpoint = open_checkpoint(str(folder))
    config = checkpoint.config
    vision, text = config["vision_config"], config["text_config"]
    count = 0
    for name in checkpoint.names():
        size = 1
        for side in checkpoint.shape(name):
            size *= side
        count += size
    rows = [
        f"| {skill} | {found['score']:.1%} | {found['n']} | {found['low']:.1%} to {found['high']:.1%} |"
        for skill, found in figures["skills"].items()
    ]
    card = CARD.format(
        family=config["model_type"],
        layout=config["architectures"][0],
        millions=count / 1e6,
        tile=vision["image_size"],
        patch=vision["patch_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_width=vision["hidden_size"],
        vision_mlp=vision["intermediate_size"],
        scale=config["scale_factor"],
        image_tokens=source.spec.image_tokens,
        layers=text["num_hidden_layers"],
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        context=text["max_position_embeddings"],
        vocabulary=text["vocab_size"],
        training=training,
        questions=figures["questions"],
        quantization="int4",
        runtime=figures["runtime"],
        rows="\n".join(rows),
        **about,
    )
    write_text(folder / "README.md", card, force=True)
    kept = {name: value for name, value in figures.items() if name != "scores"}  # of every question: for comparisons
    write_text(folder / "figures.json", json.dumps(kept, indent=1) + "\n", force=True)


def read_figures(path: Path) -> dict[str, Any]:
    """What `edgevlm eval --json` wrote. Raises EdgeVLMError where the file is something else."""
    remedy = "make it with `edgevlm eval --suite scenes --json FILE`"
    figures = read_object(path, remedy)
    if not isinstance(figures.get("skills"), dict) or not {"questions", "runtime"} <= set(figures):
        raise EdgeVLMError(f"'{path}' holds no scores by skill: {remedy}.")
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--training", default="", help="sentences on how it was trained")
    parser.add_argument("--teacher", action="store_true", help="the card of the default model's teacher")
    args = parser.parse_args(arguments)
    about = TEACHER if args.teacher else SHIPPED
    return run_module(lambda: write_card(args.model, read_figures(args.figures), args.training, about))


if __name__ == "__main__":
    raise SystemExit(main())
