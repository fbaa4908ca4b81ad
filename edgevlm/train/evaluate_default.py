"""Held-out accuracy of a stored model: `python -m edgevlm.train.evaluate_default DIR [--write-card]`.

Weights are read as stored and pictures go through the stored processor. An answer is right when it is exact.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Idefics3Processor, SmolVLMForConditionalGeneration

from edgevlm.train.build import load
from edgevlm.train.data import U8, pack, prefix
from edgevlm.train.network import score
from edgevlm.train.questions import Question, ask
from edgevlm.train.scenes import Scene, draw_scene, scene_rng

# Rows of the table: name, and which (skill, answer) belong to it.
ROWS = ("colour", "shape", "count 0-5", "count 6", "exists", "caption")


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def processed(processor: Idefics3Processor, scenes: list[Scene]) -> U8:
    """(N, 1, 96, 96, 3): the processor's pixel values, turned back into the bytes that they stand for."""
    values = processor.image_processor([[s.picture] for s in scenes], return_tensors="np")["pixel_values"]
    pixels: U8 = np.rint((values * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 1, 3, 4, 2)
    return pixels


def answered(
    model: SmolVLMForConditionalGeneration,
    processor: Idefics3Processor,
    split: str,
    scenes: int,
    size: int = 50,
) -> list[tuple[str, str, bool]]:
    """(skill, answer, right) of every question about the first `scenes` scenes of a split."""
    rows: list[tuple[str, str, bool]] = []
    for first in range(0, scenes, size):
        drawn = [draw_scene(split, s) for s in range(first, min(first + size, scenes))]
        rng = scene_rng(split, 2**41 + first)
        asked: list[list[Question]] = [
            ask(s, rng, counts=3, caption_share=1.0, avoid_unseen=split != "unseen") for s in drawn
        ]
        rows += score(model, pack(processor.tokenizer, prefix(), drawn, processed(processor, drawn), asked))
    return rows


def summary(rows: list[tuple[str, str, bool]]) -> dict[str, dict[str, float]]:
    """Row name -> right, total, accuracy, low, high."""

    def name(skill: str, answer: str) -> str:
        return skill if skill != "count" else ("count 6" if answer == "6" else "count 0-5")

    groups = {k: [ok for s, a, ok in rows if name(s, a) == k] for k in ROWS}
    groups |= {f"count = {n}": [ok for s, a, ok in rows if s == "count" and a == str(n)] for n in range(6)}
    table = {}
    for key, hits in groups.items():
        if hits:
            low, high = wilson(sum(hits), len(hits))
            table[key] = {
                "right": sum(hits),
                "total": len(hits),
                "accuracy": sum(hits) / len(hits),
                "low": low,
                "high": high,
            }
    return table


def evaluate(folder: Path, scenes: int = 2000) -> dict[str, Any]:
    """Accuracies of the model stored in `folder` on the splits test and unseen."""
    model, processor = load(folder)
    with torch.inference_mode():
        return {
            split: summary(answered(model, processor, split, n))
            for split, n in (("test", scenes), ("unseen", scenes // 2))
        }


def accuracy_table(figures: dict[str, Any]) -> Table:
    table = Table(title="held-out accuracy, exact answers, stored weights")
    for column in ("split", "skill", "right", "of", "accuracy", "95 % interval"):
        table.add_column(column, justify="left" if column in ("split", "skill") else "right")
    for split in ("test", "unseen"):
        for key, row in figures[split].items():
            span = f"{row['low']:.1%} - {row['high']:.1%}"
            table.add_row(split, key, str(row["right"]), str(row["total"]), f"{row['accuracy']:.1%}", span)
    return table


def main(arguments: list[str] | None = None) -> int:
    from edgevlm.train.card import write_card

    parser = argparse.ArgumentParser(prog="python -m edgevlm.train.evaluate_default", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--write-card", action="store_true", help="put the measured table into the model card")
    options = parser.parse_args(arguments)
    figures = evaluate(options.folder, options.scenes)
    if options.write_card:
        card = options.folder / "figures.json"
        if card.exists():
            figures["training"] = json.loads(card.read_text())["training"]
        write_card(options.folder, figures)
    Console().print(accuracy_table(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
