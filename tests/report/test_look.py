"""The shared style: contrast in both schemes by WCAG's own formula, and nothing that a browser would fetch."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLE = files("edgevlm").joinpath("assets/look.css").read_text(encoding="utf-8")
GROUNDS = ("paper", "surface", "sunken")


def schemes() -> dict[str, dict[str, str]]:
    """Colours by name, of the light and the dark scheme."""
    light, dark, *_ = re.findall(r":root \{\s*(--paper.*?)\}", STYLE, re.DOTALL)
    found = {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))
        for name, text in (("light", light), ("dark", dark))
    }
    assert found["light"].keys() == found["dark"].keys(), "each colour has a form in either scheme"
    return found


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_is_wcag_s() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005), "WebAIM's lightest grey that passes"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_can_be_read(scheme: str) -> None:
    colours = schemes()[scheme]
    low = {}
    for ground in (*GROUNDS, "tint"):
        for text in ("ink", "soft", "accent", "good", "bad"):
            low[text, ground] = (contrast(colours[text], colours[ground]), 4.5)
        for part in ("edge", *(f"c{i}" for i in range(8))):
            low[part, ground] = (contrast(colours[part], colours[ground]), 3.0)
    low["on-accent", "accent"] = (contrast(colours["on-accent"], colours["accent"]), 4.5)
    low["ink", "mark"] = (contrast(colours["ink"], colours["mark"]), 4.5)
    assert {pair: found for pair, (found, least) in low.items() if found < least} == {}


def test_nothing_is_fetched() -> None:
    assert not re.search(r"url\(|@import|@font-face|https?:", STYLE)
    assert STYLE.count("{") == STYLE.count("}")
