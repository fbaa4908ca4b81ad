"""Writes the atlas that scenes are drawn from: `python -m edgevlm.scenes.make_atlas --fonts DIR [--out DIR]`.

DIR holds the files named in FONTS below and NotoColorEmoji.ttf, at any depth (Debian: fonts-noto-color-emoji,
fonts-dejavu-core, fonts-noto-core, fonts-open-sans, fonts-comic-neue, fonts-courier-prime, fonts-roboto-slab).
Glyphs are kept as pictures, because what FreeType draws differs between its versions and a scene must not.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgevlm.scenes.catalogue import ASSETS, CHARACTERS, NOUNS, Noun
from edgevlm.types import F64

CELL = 88  # longest side of a sprite
PER_ROW = 10
EM = 56  # pixels per em of the glyphs
FONTS = {
    "sans-bold": "DejaVuSans-Bold.ttf",
    "serif": "NotoSerif-Regular.ttf",
    "condensed": "OpenSans-CondBold.ttf",
    "round": "ComicNeue-Bold.otf",
    "typewriter": "Courier Prime Bold.otf",
    "slab": "RobotoSlab-Regular.otf",
}
# Plain stretches of the sample photographs, none of which shows a thing that a question could name.
TEXTURES = {
    "astronaut.jpg": [(222, 20, 262, 60), (225, 150, 265, 190), (38, 190, 98, 250)],
    "coffee.jpg": [(365, 20, 445, 100), (360, 180, 440, 260), (0, 205, 60, 265)],
    "chelsea.jpg": [(50, 55, 110, 115), (340, 100, 400, 160), (60, 165, 120, 225)],
    "rocket.jpg": [(80, 20, 180, 120), (170, 150, 230, 210)],
}
TEXTURE = 64


def outlines() -> dict[str, list[F64]]:
    """Each shape as polygons inside the unit circle, y down; a second polygon is a hole."""

    def ring(count: int, radius: F64 | float, shift: float = 0.0) -> F64:
        angle = (np.arange(count) + shift) / count * 2 * math.pi
        return np.stack([np.sin(angle) * radius, -np.cos(angle) * radius], 1)

    quarter = [(-0.3, -0.94), (0.3, -0.94), (0.3, -0.3)]
    cross = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        cross += quarter
    t = np.arange(120) / 120 * 2 * math.pi
    lobes = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return {
        "circle": [ring(160, 1.0)],
        "square": [ring(4, 1.3, 0.5)],
        "triangle": [ring(3, 1.1)],
        "star": [ring(10, np.where(np.arange(10) % 2, 0.44, 1.1))],
        "diamond": [np.array([(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)])],
        "cross": [np.array(cross)],
        "heart": [np.stack([16 * np.sin(t) ** 3, -lobes], 1) / 17],
        "ring": [ring(160, 1.0), ring(160, 0.58)],
    }


def shape_sprite(polygons: list[F64]) -> Image.Image:
    """Mid grey with the shape as alpha, trimmed, longest side CELL."""
    low, high = polygons[0].min(0), polygons[0].max(0)
    scale = 8 * CELL / (high - low).max()
    width, height = (round(v / 8) * 8 for v in (high - low) * scale)
    alpha = Image.new("L", (width, height))
    pen = ImageDraw.Draw(alpha)
    for number, polygon in enumerate(polygons):
        pen.polygon([(x, y) for x, y in (polygon - low) * scale], fill=0 if number else 255)
    alpha = alpha.reduce(8)
    return Image.merge("RGBA", [Image.new("L", alpha.size, 128)] * 3 + [alpha])


def emoji_sprite(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The glyph's largest size in the font (136 x 128 bitmaps), trimmed, longest side CELL."""
    canvas = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(canvas).text((20, 20), glyph, font=font, embedded_color=True)
    sprite = canvas.crop(canvas.getchannel("A").point(lambda v: 255 * (v > 40)).getbbox())
    scale = CELL / max(sprite.size)
    sprite = sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), Image.Resampling.LANCZOS)
    # Drop the two lowest bits, which nobody sees and which make half of the file.
    pixels = np.asarray(sprite).copy()
    pixels[..., :3] = (pixels[..., :3] & 0xFC) | 2
    pixels[pixels[..., 3] < 8] = 0
    return Image.fromarray(pixels)


def split_colour(sprite: Image.Image) -> tuple[Image.Image, Image.Image]:
    """(sprite, mask): where the mask is set, the sprite's main colour has become grey around 128, its shading."""
    pixels = np.asarray(sprite).astype(np.float64)
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    hsv = np.array([colorsys.rgb_to_hsv(*p) for p in (rgb / 255).reshape(-1, 3)]).reshape(rgb.shape)
    hue, saturation = hsv[..., 0], hsv[..., 1]
    weight = saturation * (alpha > 128) * (hsv[..., 2] > 0.25)
    histogram = np.bincount((hue * 36).astype(int).ravel() % 36, weight.ravel(), 36)
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    main = (smooth.argmax() + 0.5) / 36
    apart = np.abs((hue - main + 0.5) % 1 - 0.5)
    strong = np.quantile(saturation[(apart < 0.1) & (alpha > 200)], 0.7)  # a pale shirt is one colour too
    mask = np.clip((0.13 - apart) / 0.03, 0, 1) * np.clip((saturation / strong - 0.25) / 0.2, 0, 1)
    light = rgb @ [0.299, 0.587, 0.114]
    middle = np.median(light[(mask > 0.9) & (alpha > 200)])
    grey = np.clip(128 + (light - middle) * 0.8, 40, 216)
    mixed = rgb * (1 - mask[..., None]) + grey[..., None] * mask[..., None]
    # Grey and mask are stored apart, so that the mix with a colour happens once, when it is known.
    stored = np.where(mask[..., None] > 0.02, np.where(mask[..., None] > 0.98, grey[..., None], mixed), rgb)
    out = np.concatenate([stored, alpha[..., None]], 2).round().astype(np.uint8)
    return Image.fromarray(out), Image.fromarray((mask * 255 * (alpha > 0)).round().astype(np.uint8))


def sprites(font: ImageFont.FreeTypeFont) -> tuple[Image.Image, Image.Image, dict[str, list[int]]]:
    """The atlas (RGBA), the mask atlas (L) and each noun's [left, top, width, height] in both."""
    rows = -(-len(NOUNS) // PER_ROW)
    atlas = Image.new("RGBA", (PER_ROW * CELL, rows * CELL))
    masks = Image.new("L", atlas.size)
    places = {}
    shapes = outlines()
    for number, noun in enumerate(NOUNS):
        sprite, mask = _sprite(noun, font, shapes)
        left, top = number % PER_ROW * CELL, number // PER_ROW * CELL
        atlas.paste(sprite, (left, top))
        masks.paste(mask, (left, top))
        places[noun.name] = [left, top, *sprite.size]
    return atlas, masks, places


def _sprite(noun: Noun, font: ImageFont.FreeTypeFont, shapes: dict[str, list[F64]]) -> tuple[Image.Image, Image.Image]:
    if not noun.glyph:
        sprite = shape_sprite(shapes[noun.name])
        return sprite, sprite.getchannel("A").point(lambda v: 255 * (v > 0))
    sprite = emoji_sprite(noun.glyph, font)
    return split_colour(sprite) if noun.coloured else (sprite, Image.new("L", sprite.size))


def glyphs(files: dict[str, Path]) -> tuple[Image.Image, dict[str, dict[str, list[int]]]]:
    """One row per font, and {font: {character: [left, top, width, height, x, y, advance]}} in pixels at EM.

    x, y: where the glyph's picture goes relative to the pen and the baseline.
    """
    table: dict[str, dict[str, list[int]]] = {}
    strips = []
    top = 0
    for name, path in files.items():
        font = ImageFont.truetype(path, EM, layout_engine=ImageFont.Layout.BASIC)
        strip = Image.new("L", (4000, 2 * EM))
        left = 0
        table[name] = {}
        for character in CHARACTERS:
            x0, y0, x1, y1 = (round(v) for v in font.getbbox(character, anchor="ls"))
            x0, y0, x1, y1 = x0 - 1, y0 - 1, x1 + 1, y1 + 1
            ImageDraw.Draw(strip).text((left - x0, -y0), character, font=font, fill=255, anchor="ls")
            advance = round(font.getlength(character))
            table[name][character] = [left, top, x1 - x0, y1 - y0, x0, y0, advance]
            left += x1 - x0
        bounds = strip.getbbox()
        assert bounds is not None
        strip = strip.crop((0, 0, left, bounds[3])).point([min(255, (v + 8) // 17 * 17) for v in range(256)])
        strips.append((top, strip))
        top += strip.height
    sheet = Image.new("L", (max(strip.width for _, strip in strips), top))
    for y, strip in strips:
        sheet.paste(strip, (0, y))
    return sheet, table


def textures(pictures: Path) -> Image.Image:
    """Crops of the sample photographs, side by side."""
    crops = [(Image.open(pictures / name).convert("RGB"), box) for name, boxes in TEXTURES.items() for box in boxes]
    sheet = Image.new("RGB", (TEXTURE * len(crops), TEXTURE))
    for number, (picture, box) in enumerate(crops):
        sheet.paste(picture.resize((TEXTURE, TEXTURE), Image.Resampling.LANCZOS, box), (number * TEXTURE, 0))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fonts", type=Path, required=True, help="folder with the font files")
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = parser.parse_args()

    def find(name: str) -> Path:
        return next(Path(options.fonts).rglob(name))

    emoji = ImageFont.truetype(find("NotoColorEmoji.ttf"), 109)
    atlas, masks, places = sprites(emoji)
    sheet, table = glyphs({name: find(file) for name, file in FONTS.items()})
    atlas.save(options.out / "sprites.png", optimize=True)
    masks.save(options.out / "masks.png", optimize=True)
    sheet.save(options.out / "glyphs.png", optimize=True, bits=4)
    textures(ASSETS.parent / "pictures").save(options.out / "textures.png", optimize=True)
    data = {"sprites": places, "em": EM, "glyphs": table, "texture": TEXTURE}
    text = json.dumps(data, separators=(",", ":")) + "\n"
    (options.out / "atlas.json").write_text(text, encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
