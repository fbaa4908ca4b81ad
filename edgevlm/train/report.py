"""The log of a finished run: one JSON line per entry, and the plot of its loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_report(folder: Path, history: list[dict[str, Any]]) -> None:
    """log.jsonl and loss.png in `folder`, from the Trainer's log history."""
    entries = [entry for entry in history if "loss" in entry]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    if entries:
        draw_loss(folder / "loss.png", entries)


def draw_loss(path: Path, entries: list[dict[str, Any]]) -> None:
    """The loss by step, as logged and smoothed; its parts, where there are several; the learning rate below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = [entry["step"] for entry in entries]
    loss = [float(entry["loss"]) for entry in entries]
    top.plot(steps, loss, color="#9db4d0", linewidth=1, label="loss, as logged")
    top.plot(steps, smooth(loss), color="#1f4e9c", linewidth=2, label="loss, smoothed")
    parts = sorted({key for entry in entries for key in entry if key.startswith("loss_")})
    for part in parts:
        pairs = [(entry["step"], float(entry[part])) for entry in entries if part in entry]
        top.plot(*zip(*pairs, strict=True), linewidth=1.2, label=part.removeprefix("loss_").replace("_", " "))
    if min(loss) > 0 and max(loss) / min(loss) > 20:
        top.set_yscale("log")
    top.set_ylabel("loss")
    top.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    rates = [float(entry.get("learning_rate", 0.0)) for entry in entries]
    bottom.plot(steps, rates, color="#777777", linewidth=1.2)
    bottom.set_ylabel("rate")
    bottom.ticklabel_format(axis="y", scilimits=(0, 0))
    bottom.set_xlabel("optimizer step")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def smooth(values: list[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out
