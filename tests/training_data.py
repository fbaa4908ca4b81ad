"""Small pictures with conversations about them, in every form that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}


def write_data(folder: Path, count: int = 8, size: tuple[int, int] = (64, 64)) -> Path:
    """A Scenes folder of `count` coloured squares, with data.jsonl, data.json and pairs.jsonl beside its questions."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines: dict[str, list[dict[str, object]]] = {"data": [], "questions": [], "pairs": []}
    for i in range(count):
        colour = list(COLOURS)[i % 4]
        array = np.full((size[1], size[0], 3), 120, np.uint8)
        x, y = rng.integers(4, 36, 2)
        array[y : y + 24, x : x + 24] = COLOURS[colour]
        image = f"images/{i:06d}.png"
        Image.fromarray(array).save(folder / image)
        asked = "What colour is the square?"
        turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": colour}]
        lines["data"].append({"id": str(i), "image": image, "conversations": turns})
        answers = {asked: colour, "Is there a red square?": "yes" if colour == "red" else "no, there is none"}
        for number, (question, answer) in enumerate(answers.items()):
            line = {"id": f"{i}-{number}", "image": image, "skill": "colour", "question": question, "answer": answer}
            lines["questions"].append(line)
        lines["pairs"].append({"image": image, "question": asked, "chosen": colour, "rejected": "a purple cat"})
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "data.json").write_text(json.dumps(lines["data"], indent=2))
    facts = {"format": "edgevlm-scenes", "version": 1, "split": "train", "seed": 0, "count": count, "loc_bins": 64}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder
