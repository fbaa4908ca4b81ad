"""Charts with known figures."""

from __future__ import annotations

import re

import pytest

from edgevlm.report.charts import Estimate, Series, bar, layer_lines, part_series, score_axis, scores, stack
from edgevlm.report.markup import Html, h, text

LOOK = Series("a", 0, 0)


def shares(svg: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    """Attributes in per cent of the elements that have them all."""
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', words)) for words in re.findall(rf"<{tag} ([^>]*)>", svg)]
    kept = [each for each in found if all(each.get(name, "").endswith("%") for name in names)]
    return [tuple(float(each[name].rstrip("%")) for name in names) for each in kept]


def test_whatever_is_not_markup_is_escaped() -> None:
    assert h("p", "<b>", Html("<b>x</b>"), None, 3, class_="a\"'<", hidden=True, title=None) == (
        '<p class="a&quot;&#x27;&lt;" hidden>&lt;b&gt;<b>x</b>3</p>'
    )
    assert h("line", x1=1.0, y1=0.3333, stroke_width=2) == '<line x1="1" y1="0.33" stroke-width="2"/>'
    assert text("a\x00b\x1b\udc80c\n\t") == "a\ufffdb\ufffd\ufffdc\n\t"


def test_a_bar_is_as_long_as_its_share() -> None:
    svg = bar(2.0, 8.0, LOOK, "a: 2", reference=6.0, interval=(1.0, 4.0))
    assert shares(svg, "rect", "width") == [(100.0,), (25.0,)], "the track, the bar"
    assert shares(svg, "line", "x1", "x2") == [(75.0, 75.0), (12.5, 50.0)], "the reference, the interval"
    assert "<title>a: 2</title>" in svg
    assert shares(bar(0.0, 0.0, LOOK, "none"), "rect", "width")[1] == (0.0,)


def test_a_stack_is_as_long_as_its_parts() -> None:
    svg = stack((1.0, 2.0, 0.0, 1.0), 8.0, ("p", "e", "f", "d"))
    assert shares(svg, "rect", "x", "width") == [(0.0, 12.5), (12.5, 25.0), (37.5, 0.0), (37.5, 12.5)]
    assert len({part_series(i).colour for i in range(4)}) == 4
    stack((0.0,), 0.0, ("zero",))


def test_scores_show_their_intervals_on_one_scale() -> None:
    svg = scores([(LOOK, Estimate(0.5, 0.25, 1.0)), (Series("b", 1, 1), None)], "colour")
    grid, whisker = shares(svg, "line", "x1", "x2")[:5], shares(svg, "line", "x1", "x2")[5:]
    assert [x for x, _ in grid] == [0, 25, 50, 75, 100] and whisker == [(25.0, 100.0)]
    assert shares(svg, "svg", "x") == [(50.0,)]
    assert "a, colour: 50.0% (25.0% to 100.0%)" in svg
    assert shares(score_axis(), "text", "x") == [(0.0,), (50.0,), (100.0,)]


def test_layers_keep_parts_apart_and_gaps_open() -> None:
    names = ["vision.layers.0.norm1", "vision.post_norm", "decoder.layers.0.norm1", "decoder.norm"]
    html = layer_lines(names, [(LOOK, [1e-3, None, 1e-2, 1e-1])], "Lines")
    assert html.count("<circle") == 3 and html.count('class="border"') == 1
    assert 'role="img" aria-label="Lines"' in html
    marks = [float(y) for y in re.findall(r'<svg x="[\d.]+%" y="([\d.]+)" overflow', html)]
    assert marks[0] - marks[1] == pytest.approx(marks[1] - marks[2], abs=0.02), "equal factors are equal distances"
    layer_lines(names, [(LOOK, [0.0, 0.0, 0.0, 0.0])], "zero")
    layer_lines(names, [(LOOK, [None] * 4)], "none")
