"""The page: what it draws from known figures, what it refuses, and that nothing from outside becomes markup."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm.bundle.manifest import MANIFEST, open_bundle
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.report import Findings, ReportOptions, gather, page
from edgevlm.report.charts import (
    Bar,
    Estimate,
    Point,
    Series,
    estimate_rows,
    layer_lines,
    scatter,
    stacked_bars,
)
from edgevlm.report.gallery import GalleryAnswer, GalleryEntry, gallery, marked, thumbnail
from edgevlm.report.gather import Member, read_eval
from edgevlm.report.markup import Html, h, text

EVIL = "<script>alert('1')</script>&\"'\x00\udcff</style><img src=//x>"


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser would find them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(source: str) -> Page:
    """Well nested, self-contained, without script."""
    found = Page(source)
    assert found.open == []
    assert not {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action", "xlink:href", "srcset", "poster"):
            assert (tag, name) == ("img", "src") and value.startswith("data:image/jpeg;base64,"), value[:60]
    assert not re.search(r"url\(|@import", source)
    source.encode("utf-8")
    return found


# --- markup ------------------------------------------------------------------------------------------------


def test_whatever_is_not_markup_is_escaped() -> None:
    assert h("p", "<b>", Html("<b>x</b>"), None, 3, class_="a\"'<", hidden=True, title=None) == (
        '<p class="a&quot;&#x27;&lt;" hidden>&lt;b&gt;<b>x</b>3</p>'
    )
    assert h("line", x1=1.0, y1=0.3333, stroke_width=2) == '<line x1="1" y1="0.33" stroke-width="2"/>'
    assert text("a\x00b\x1b\udc80c\n\t") == "a�b��c\n\t"


# --- charts with known figures -----------------------------------------------------------------------------


def numbers(svg: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    return [
        tuple(float(dict((n, v) for n, v in re.findall(r'([\w-]+)="([^"]*)"', found))[name]) for name in names)
        for found in re.findall(rf"<{tag} ([^>]*)>", svg)
    ]


def test_bars_are_as_long_as_their_parts() -> None:
    bars = [Bar("a", (1.0, 2.0, 0.0, 1.0), "4 s"), Bar("b", (0.5, 0.5, 0.5, 0.5), "2 s")]
    svg = stacked_bars(bars, ("p", "e", "f", "d"), "s")
    boxes = numbers(svg, "rect", "x", "width")
    unit = boxes[0][1]
    assert [round(width / unit, 1) for _, width in boxes] == [1, 2, 0, 1, 0.5, 0.5, 0.5, 0.5]
    assert [round(x / unit, 1) for x, _ in boxes] == [0, 1, 3, 3, 0, 0.5, 1, 1.5]
    assert "a, e: 2 s" in svg
    stacked_bars([], ("p",), "s")
    stacked_bars([Bar("zero", (0.0,), "")], ("p",), "s")


def test_points_lie_where_their_figures_say() -> None:
    look = Series("s", 0, 0)
    points = [Point(x, y, look, "", "t") for x, y in ((1.0, 0.2), (10.0, 0.4), (100.0, 0.8))]
    spots = sorted(numbers(scatter(points, "MB", "score", percent=True), "circle", "cx", "cy"))
    (x1, y1), (x2, y2), (x3, y3) = spots
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.02), "equal factors are equal distances"
    assert (y2 - y3) / (y1 - y2) == pytest.approx(2.0, abs=0.01)
    assert all(0 < x < 360 for x, _ in spots)
    ends = [Point(1.0, 0.5, look, "", "t", 0.25, 1.0), Point(9.0, 0.5, look, "", "t")]
    svg = scatter(ends, "MB", "score")
    low, high = numbers(re.findall(r'<line class="whisker[^>]*>', svg)[0], "line", "y1", "y2")[0]
    ((_, y), _) = numbers(svg, "circle", "cx", "cy")
    assert (low - y) / (y - high) == pytest.approx(0.5, abs=0.01), "the interval stands around its mark"
    for few in ([points[0]], [points[0], points[0]], [Point(5.0, 0.0, look, "zero", "t")]):
        assert numbers(scatter(few, "MB", "score"), "circle", "cx")


def test_estimates_show_their_intervals() -> None:
    found = {"colour": Estimate(0.5, 0.25, 1.0)}
    svg = estimate_rows(["colour", "count"], [(Series("a", 0, 0), found), (Series("b", 1, 1), {})])
    (low, high), (centre,) = (
        numbers(re.findall(r'<line class="whisker[^>]*>', svg)[0], "line", "x1", "x2")[0],
        (numbers(svg, "circle", "cx")[0]),
    )
    assert (centre - low) / (high - centre) == pytest.approx(0.5)
    assert "a, colour: 50.0% (25.0% to 100.0%)" in svg


def test_layers_keep_parts_apart_and_gaps_open() -> None:
    names = ["vision.layers.0.norm1", "vision.post_norm", "decoder.layers.0.norm1", "decoder.norm"]
    svg = layer_lines(names, [(Series("a", 0, 0), [1e-3, None, 1e-2, 1e-1])])
    assert svg.count("<circle") == 3 and svg.count('class="border"') == 1
    spots = numbers(svg, "circle", "cx", "cy")
    assert spots[0][1] - spots[1][1] == pytest.approx(spots[1][1] - spots[2][1], abs=0.02), "equal factors again"
    layer_lines(names, [(Series("a", 0, 0), [0.0, 0.0, 0.0, 0.0])])


# --- answers -----------------------------------------------------------------------------------------------


def test_differences_are_marked_word_by_word() -> None:
    assert marked("a red cat", "a red cat") == "a red cat"
    assert marked("a red cat sits", "a blue cat") == "a <del>red</del> <mark>blue</mark> cat<del> sits</del>"
    assert marked("", "new <b>") == "<mark>new &lt;b&gt;</mark>"
    assert marked("x", "") == "<del>x</del>"


def test_the_gallery_says_same_different_and_right() -> None:
    said = (
        GalleryAnswer("a", "Red."),
        GalleryAnswer("b", "Red."),
        GalleryAnswer("c", "blue"),
        GalleryAnswer("d", None),
    )
    html = gallery([GalleryEntry("data:image/jpeg;base64,AA", "p", "What colour?", "red", said)])
    assert html.count('class="answer') == 4, "the frame and three cards: one for the two that agree"
    assert "<li><bdi>a</bdi></li><li><bdi>b</bdi></li>" in html and html.count("differs: added words") == 1
    assert html.count(">right<") == 1 and html.count("not the right answer") == 1 and "no answer" in html


def test_thumbnails_are_small_for_any_shape(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGBA", (2000, 10), (255, 0, 0, 128)).save(path)
    assert len(thumbnail(path)) < 4000
    assert thumbnail(Image.new("L", (1, 1))).startswith("data:image/jpeg;base64,")


# --- the page ----------------------------------------------------------------------------------------------


def figure(value: float) -> dict[str, Any]:
    return {"median": value, "min": value / 2, "max": value * 2, "values": [value]}


def bench_json(bundle: str, runtime: str, name: str = "x", factor: float = 1.0) -> dict[str, Any]:
    stages = {
        stage: figure(factor * value)
        for stage, value in (("preprocess", 0.01), ("encode", 0.5), ("prefill", 0.25), ("decode", 0.05))
    }
    subject = {
        "name": name, "bundle": bundle, "runtime": runtime, "engine": "CPU", "cold": stages, "warm": stages,
        "answer_tokens": 11, "image_tokens": 64, "peak_memory": 10**8,
    }  # fmt: skip
    return {
        "format": "edgevlm-bench",
        "version": 1,
        "device": {"cpu": "A chip", "load": 0.1, "usable_cores": 4},
        "settings": {"tokens": 11, "repeat": 5},
        "subjects": [subject],
    }


def eval_json(bundle: str, runtime: str, score: float) -> dict[str, Any]:
    skill = {"score": score, "low": score - 0.1, "high": score + 0.1, "n": 40}
    return {
        "bundle": bundle,
        "suite": "scenes",
        "runtime": runtime,
        "questions": 80,
        "score": score,
        "skills": {"colour": skill, "count_to_5": skill},
    }


@pytest.fixture
def members(tiny_bundle: Path, tmp_path: Path) -> tuple[Member, ...]:
    """Two bundles with a gate; the second is marked int4, has a missed bound and a name that would be markup."""
    found = []
    for name, kind in (("plain", "fp32"), ("<b>&'x", "int4")):
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / name))
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["recipe"]["quantize"] = kind
        manifest["model"]["name"] = EVIL.replace("\udcff", "")
        row = {
            "target": "onnx",
            "check": EVIL[:20],
            "note": "",
            "measured": 0.5,
            "bound": 0.9,
            "passed": kind == "fp32",
        }
        layers = {"vision.layers.0.norm1": 0.001 if kind == "fp32" else 0.05, "decoder.norm": 0.002}
        manifest["gate"] = {"passed": kind == "fp32", "rows": [row], "layers": {"quantization": layers}}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        found.append(Member(name, open_bundle(folder), ("onnxruntime",)))
    return tuple(found)


def test_a_page_with_everything(members: tuple[Member, ...]) -> None:
    names = [str(member.bundle.folder) for member in members]
    asked = GalleryEntry(
        "data:image/jpeg;base64,AA", EVIL, EVIL, None, (GalleryAnswer(EVIL, "one " + EVIL), GalleryAnswer("b", EVIL))
    )
    benches = [bench_json(names[0], "onnxruntime", EVIL), bench_json(names[1], "onnxruntime", factor=0.5)]
    benches[0]["vs"] = [{"name": EVIL, "ratios": {"encode": 1.5, "prefill": None, "decode": 2.0}}]
    evals = [eval_json(names[0], "onnxruntime", 0.8), eval_json(names[1], "onnxruntime", 0.7)]
    source = page(Findings(members, tuple(benches), tuple(evals), (asked,), (EVIL,)))
    found = check_page(source)
    words = " ".join(found.words)
    assert "alert('1')" in words and "<b>&'x" in words, "hostile text is shown as text"
    for title in ("Size, score, speed", "Loss by skill", "Divergence by layer", "Time by stage", "Gate", "Answers"):
        assert title in words
    assert found.tags.count("svg") > 8
    assert "80.0%" in words and "-10.0" in words, "scores of the best bundle, differences of the others"
    assert "760 ms" in words and "380 ms" in words, "time to the first token: preprocess, encode, prefill"
    assert "1 of 1 bounds missed" in words and "passed, 1 checks" in words
    assert "1.50x" in words and "vision.layers.0.norm1" in words
    assert "busy before the first run" not in words
    benches[1]["device"]["load"] = 2.5
    assert page(Findings(members, tuple(benches), (), ())).count("busy before the first run (load 2.5)") == 2
    assert source.count("missed") >= 1 and 'http-equiv="Content-Security-Policy"' in source


def test_a_page_with_nothing_says_what_is_missing(tiny_bundle: Path) -> None:
    words = " ".join(check_page(page(Findings((Member("x", open_bundle(tiny_bundle), ()),), (), (), ()))).words)
    for sentence in (
        "No score: run",
        "Not recorded: export with the gate",
        "Not measured: give",
        "the gate was not run",
        "No engine of this machine",
    ):
        assert sentence in words


def test_a_hostile_gate_in_a_manifest_does_no_harm(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    manifest = json.loads((folder / MANIFEST).read_text())
    evil = EVIL.replace("\udcff", "")  # half of a surrogate pair, which opening refuses
    row = dict.fromkeys(("target", "check", "note"), evil) | {"measured": 1e18, "bound": None, "passed": False}
    manifest["gate"] = {"passed": False, "rows": [row], "layers": {"quantization": {evil: None, "b": -1e18}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    check_page(page(Findings((Member("x", open_bundle(folder), ()),), (), (), ())))


def test_the_command_measures_what_is_missing(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "<i>.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    out, score = tmp_path / "page.html", tmp_path / "eval.json"
    score.write_text(json.dumps(eval_json("elsewhere/tiny-fp32", "onnxruntime", 0.5)))
    words = ["report", str(tiny_bundle), "-o", str(out), "--eval", str(score), "--picture", str(picture)]
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--question", "Is it <red>?", "--repeat", "1", "--tiles", "1", "--threads", "1"])
    printed, said = capfd.readouterr()
    assert exit_info.value.code == 0, said
    assert printed == f"{out}\n"
    found = check_page(out.read_text(encoding="utf-8"))
    shown = " ".join(found.words)
    assert "Is it <red>?" in shown and "<i>.png" in shown and "tiny-fp32 on onnxruntime" in shown and "50.0%" in shown
    before = out.read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2 and "already exists" in capfd.readouterr().err
    assert out.read_bytes() == before


def test_files_name_bundles_by_path_or_by_name(members: tuple[Member, ...]) -> None:
    found = Findings(members, (), (), ())
    assert found.member_of(str(members[1].bundle.folder)) is members[1]
    assert found.member_of("/data/elsewhere/plain") is members[0]
    assert found.member_of("other") is None
    assert found.baseline() is members[0] and Findings(members[::-1], (), (), ()).baseline() is members[0]


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"bundle": 1}, {**eval_json("b", "r", 0.5), "score": "high"},
     {**eval_json("b", "r", 0.5), "score": float("nan")}, {**eval_json("b", "r", 0.5), "skills": {"colour": 3}},
     {**eval_json("b", "r", 0.5), "skills": {"colour": {"score": 1.0}}}],
)  # fmt: skip
def test_json_that_is_no_evaluation(data: Any) -> None:
    with pytest.raises(EdgeVLMError, match=r"'e\.json' is not an evaluation"):
        read_eval(data, "e.json")


def test_mistakes_come_before_any_work(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(EdgeVLMError, match="is not valid JSON"):
        gather([tiny_bundle], ReportOptions(benches=(broken,)))
    broken.write_text("[" * 100_000)
    with pytest.raises(EdgeVLMError, match="is not valid JSON"):
        gather([tiny_bundle], ReportOptions(evals=(broken,)))
    with pytest.raises(EdgeVLMError, match="There is no bundle"):
        gather([tmp_path / "none"], ReportOptions())
    for options, sentence in (
        ({"questions": -1}, "questions is -1"),
        ({"benches": (tmp_path / "none.json",)}, "There is no file"),
        ({"question": "  "}, "The question is empty"),
    ):
        with pytest.raises(EdgeVLMError, match=sentence):
            ReportOptions(**options)  # type: ignore[arg-type]
