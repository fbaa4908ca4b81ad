"""The default model's card (README.md) and its figures (figures.json), written from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevlm.train.scenes import COLOUR_NAMES, MAX_OBJECTS, SHAPES, UNSEEN_PAIRS

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [smolvlm, tiny, synthetic]
---

# EdgeVLM default model

A vision-language model of 5.4 million parameters in the plain SmolVLM layout
(`SmolVLMForConditionalGeneration`).
It exists so that export, gate, demo and tests have a real, trained model that ships with the package.
It answers questions about simple drawn scenes and knows nothing else.

## Architecture

| part | shape |
|---|---|
| vision | SigLIP tower, 96 x 96 pixels, patch 8, 6 layers of 192 (3 heads of 64), MLP 512 |
| projector | pixel shuffle by 2, one linear map 768 -> 256: 36 image tokens per tile |
| decoder | Llama, 4 layers of 256, 4 query and 2 key-value heads of 64, SwiGLU 640, RoPE theta 10000 |
| | context 2048, embeddings tied |
| tokenizer | byte-level BPE, 1280 entries, single digits, SmolVLM's special tokens and chat template |
| weights | fp16 |

## What it knows

Colours: {colours}. Shapes: {shapes}. One to {most} objects that do not
overlap, on plain, graded or grainy backgrounds.
Questions: colour of a shape, shape of a colour, how many (objects, one shape, one colour, one coloured
shape), is there, describe the picture; British and American spelling.

## Training

Generated scenes only, drawn on the fly by `edgevlm/train/scenes.py`; training, validation and test never
share a seed.
Stage 1: {coarse_steps} steps teach the encoder shape and colour per patch and per image token.
Stage 2: {sharp_steps} steps add outlines and counts. Stage 3: {decoder_steps} steps teach the decoder to
answer questions (about 8 per picture); the loss is on the answers only. Stage 4: {joint_steps} steps of the same
with the encoder. The moving average of the weights is kept.
Each step sees {batch} pictures. It took {minutes:.0f} minutes on {threads} CPU cores (bf16 autocast).
{note}The same again:

    python -m edgevlm.train.default --out DIR

## Held-out accuracy

Measured on the stored fp16 weights (computed in fp32), single-tile pictures through the stored processor,
greedy decoding, the whole answer exactly right. Brackets: Wilson 95 % interval.

{test}

Scenes that hold one of the (colour, shape) pairs that training never showed ({pairs}):

{unseen}

Measure it again: `python -m edgevlm.train.evaluate_default DIR`.

## Limits

- Photographs are outside everything it has seen: answers about them are meaningless.
- It never saw more than {most} objects, overlapping objects, outlines, other shapes or other colours.
- Tiled mode (`do_image_splitting`) was a twentieth of the training steps and is not measured here.
- Questions in other words than the training forms may get any answer.

Licence: Apache-2.0.
"""


def _rows(table: dict[str, dict[str, float]]) -> str:
    lines = ["| skill | accuracy | right / asked | 95 % interval |", "|---|---|---|---|"]
    for key, row in table.items():
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        lines.append(f"| {key} | {row['accuracy']:.1%} | {row['right']:.0f} / {row['total']:.0f} | {interval} |")
    return "\n".join(lines)


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """`figures`: the tables "test" and "unseen" of `evaluate`; "training" (seconds, steps, batch)."""
    training = figures.get("training", {})
    text = CARD.format(
        colours=", ".join(COLOUR_NAMES),
        shapes=", ".join(SHAPES),
        most=MAX_OBJECTS,
        **{f"{n}_steps": training.get(f"{n}_steps", 0) for n in ("coarse", "sharp", "decoder", "joint")},
        batch=training.get("batch", 0),
        threads=training.get("threads", 0),
        minutes=training.get("seconds", 0) / 60,
        note=training.get("note", "") + "\n" if training.get("note") else "",
        test=_rows(figures["test"]),
        unseen=_rows(figures["unseen"]),
        pairs=", ".join(" ".join(p) for p in UNSEEN_PAIRS),
    )
    (folder / "README.md").write_text(text)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
