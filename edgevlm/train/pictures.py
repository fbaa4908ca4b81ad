"""Write the sample pictures that the export gate and the demo use: `python -m edgevlm.train.pictures DIR`.

Three generated scenes (PNG), four photographs from scikit-image (JPEG); for their licences see DIR/README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.train.scenes import compose

# name: (seed, size, (colour, shape) of the objects); random stream number 9, which no split uses.
SCENES: dict[str, tuple[int, tuple[int, int], list[tuple[str, str]]]] = {
    "scene-shapes.png": (
        3,
        (256, 192),
        [
            ("red", "circle"),
            ("blue", "square"),
            ("blue", "square"),
            ("yellow", "star"),
            ("green", "triangle"),
        ],
    ),
    "scene-stars.png": (5, (200, 200), [("orange", "star")] * 3 + [("purple", "diamond")]),
    "scene-tall.png": (11, (160, 300), [("green", "cross"), ("white", "circle")]),
}
# file in skimage/data: longest edge of the JPEG, in pixels
PHOTOGRAPHS = {"astronaut.png": 384, "coffee.png": 448, "chelsea.png": 400, "rocket.jpg": 512}


def write_scenes(folder: Path) -> None:
    for name, (seed, size, pairs) in SCENES.items():
        scene = compose(np.random.default_rng([9, seed]), pairs, size, antialias=4)
        if len(scene.objects) != len(pairs):
            raise ValueError(f"{name}: found room for {len(scene.objects)} of {len(pairs)} objects; choose a seed")
        scene.picture.save(folder / name, optimize=True)


def write_photographs(folder: Path) -> None:
    import skimage

    source = Path(skimage.__file__).parent / "data"
    for name, longest in PHOTOGRAPHS.items():
        picture = Image.open(source / name).convert("RGB")
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        picture.save(folder / f"{Path(name).stem}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_scenes(target)
    write_photographs(target)
