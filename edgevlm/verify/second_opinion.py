"""A bundle's graphs on Core AI's runtime beside the eager reference: another compiler's word on the same model.

Beta. What is executed is written for the check, in float32 from the weights that the bundle ships; the bundle's own
files are the gate's business. Shows whether `edgevlm.models` says the same thing to an engine that nobody here wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.inputs.decode import open_image
from edgevlm.inputs.preprocess import prepare
from edgevlm.inputs.prompt import Prompter
from edgevlm.models.ops import Weights
from edgevlm.runtimes.base import I64, Runtime
from edgevlm.runtimes.eager import CachedWeights
from edgevlm.types import F32, Progress
from edgevlm.verify.gate import PICTURES, QUESTION, picture_folder
from edgevlm.verify.reference import Reference, cosine

BOUND = 0.9999  # lowest cosine
STEPS = 3  # last positions of the prompt that are given one by one, through the cache
HEAD = ("picture", "features, cosine", "logits, cosine", "")


@dataclass(frozen=True)
class Opinion:
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
class Question:
    picture: str
    ids: I64
    tiles: F32


def questions(bundle: Bundle, pictures: Sequence[Path] | None = None) -> list[Question]:
    """One question about each picture as one tile; None is the shipped pictures."""
    paths = [picture_folder() / name for name in PICTURES] if pictures is None else pictures
    prompter = Prompter(bundle.prompt_spec, bundle.path("tokenizer.json"))
    made = []
    for path in paths:
        parts = prepare(open_image(path), bundle.image_spec, max_tiles=1)
        made.append(Question(path.name, prompter.encode(QUESTION, [parts.views])[0], parts.pixels))
    return made


def second_opinion(
    bundle: Bundle, weights: Weights, runtime: Runtime, asked: Sequence[Question], progress: Progress | None = None
) -> list[Opinion]:
    """Compare `runtime` with the eager reference on `weights`; both read the same features into the prompt."""
    reference = Reference(bundle.manifest.spec, CachedWeights(weights))
    opinions = []
    for i, question in enumerate(asked):
        features = reference.features(question.tiles)
        prompt = reference.merge(question.ids, features, bundle.prompt_spec.image_token_id)
        begin, rest = prompt[:-STEPS], prompt[-STEPS:]
        runtime.truncate(0)
        logits = np.stack([runtime.prefill(begin), *(runtime.prefill(row[None]) for row in rest)])
        opinions.append(
            Opinion(
                question.picture,
                cosine(runtime.encode(question.tiles), features),
                cosine(logits, reference.logits(begin, rest)),
            )
        )
        if progress:
            progress("second opinion", i + 1, len(asked))
    return opinions
