"""A bundle's graphs on Core AI's runtime beside the eager reference: another compiler on the same model.

Beta. The programs are written for this check, in float32 from the weights that the bundle ships; its own files are
judged by the gate. Shows whether `edgevlm.models` means the same to an independent engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.layout import Layout
from edgevlm.inputs.preprocess import prepare
from edgevlm.models.ops import Weights
from edgevlm.runtimes.base import Runtime
from edgevlm.runtimes.eager import CachedWeights
from edgevlm.types import I64, U8, Progress
from edgevlm.verify.gate import PICTURES, QUESTION, picture_folder
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.runtime import lowest_cosine

BOUND = 0.9999  # lowest cosine
STEPS = 3  # last positions of the prompt that are given one by one, through the cache
HEAD = ("picture", "features, cosine", "logits, cosine", "")


@dataclass(frozen=True)
class SecondOpinionRow:
    """Lowest cosines over the image tokens of one picture, and over the logits of `STEPS` + 1 positions."""

    picture: str
    features: float
    logits: float

    @property
    def agreed(self) -> bool:
        return min(self.features, self.logits) >= BOUND

    def row(self) -> tuple[str, ...]:
        return (self.picture, f"{self.features:.8f}", f"{self.logits:.8f}", "" if self.agreed else "MISSED")


@dataclass(frozen=True)
class PicturePrompt:
    picture: str
    ids: I64
    layout: Layout
    views: list[U8]


def questions(bundle: Bundle, pictures: Sequence[Path] | None = None) -> list[PicturePrompt]:
    """One question about each picture as one tile; None is the shipped pictures."""
    paths = [picture_folder() / name for name in PICTURES] if pictures is None else pictures
    prompter = bundle.prompter()
    made = []
    for path in paths:
        parts = prepare(open_image(path), bundle.image_spec, max_tiles=1)
        made.append(PicturePrompt(path.name, *prompter.encode(QUESTION, [parts.tokens]), parts.views))
    return made


def second_opinion(
    bundle: Bundle,
    weights: Weights,
    runtime: Runtime,
    prompts: Sequence[PicturePrompt],
    progress: Progress | None = None,
) -> list[SecondOpinionRow]:
    """Compare `runtime` with the eager reference on `weights`; both read the same features into the prompt."""
    reference = Reference(bundle.manifest.spec, CachedWeights(weights), bundle.image_spec)
    decoder = runtime.decoder
    rows = []
    for i, prompt in enumerate(prompts):
        embeds = reference.prompt(prompt.ids, prompt.layout, prompt.views)
        begin, rest = embeds[:-STEPS], embeds[-STEPS:]
        decoder.rewind(0)
        logits = np.stack([decoder.forward(begin, prompt.layout), *(decoder.forward(row[None]) for row in rest)])
        rows.append(
            SecondOpinionRow(
                prompt.picture,
                lowest_cosine(runtime.encoder.encode(prompt.views), reference.features(prompt.views)),
                cosine(logits, reference.logits(begin, rest, prompt.layout)),
            )
        )
        if progress:
            progress("second opinion", i + 1, len(prompts))
    return rows
