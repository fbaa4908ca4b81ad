"""The page in Chromium, on a phone, a laptop and a large screen, light, dark and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_cases import answers, bench_json, eval_json, report_member, subject

from edgevlm.report import Findings, page
from edgevlm.report.asking import GalleryAnswer, GalleryEntry, thumbnail

pytestmark = pytest.mark.heavy
ENGINES = ("onnxruntime", "llama.cpp")

# Rectangles of texts in drawings that lie on each other, or on a line of the same drawing.
COLLISIONS = """() => {
  const found = [];
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  for (const svg of document.querySelectorAll('svg')) {
    if (svg.parentElement.closest('svg')) continue;
    const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    const lines = [...svg.querySelectorAll('line, path.line')].map(t => ['a line', t.getBoundingClientRect()]);
    texts.forEach(([name, box], i) => [...texts.slice(i + 1), ...lines].forEach(([other, place]) => {
      if (meet(box, place)) found.push([name, other]);
    }));
  }
  return found;
}"""
OUTSIDE = """() => [...document.querySelectorAll('main *')].filter(each => {
  const box = each.getBoundingClientRect();
  return !each.closest('.scroll, thead') && (box.right > innerWidth + 1 || box.left < -1);
}).map(each => each.outerHTML.slice(0, 80))"""
UNHINTED = """() => [...document.querySelectorAll('.table')].filter(t => {
  const inner = t.querySelector('.scroll');
  return inner.scrollWidth > inner.clientWidth + 1 && t.querySelector('.hint').getBoundingClientRect().height < 8;
}).map(t => t.querySelector('.scroll').ariaLabel)"""


@pytest.fixture(scope="module")
def drawn(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bundles with names of all lengths on two engines, two suites, two devices, answers of all kinds."""
    folder = tmp_path_factory.mktemp("page")
    names = ("a", "smolvlm-256m-instruct-int4-calibrated", "b" * 60, "größer", "模型-int8", "x y")
    kinds = ("fp32", "int4", "int8", "int4", "int8", "fp16")
    members = tuple(report_member(tiny_bundle, folder / n, k, ENGINES) for n, k in zip(names, kinds, strict=True))
    places = [str(folder / name) for name in names]
    skills = ("existence", "colour", "count_to_5", "a_skill_with_a_long_name")
    evals = [
        eval_json(
            place, engine, suite=suite, **{s: answers(90, 80 - 9 * i - 3 * j, prefix=s) for j, s in enumerate(skills)}
        )
        for i, place in enumerate(places)
        for engine, suite in (("onnxruntime", "scenes"), ("llama.cpp", "pope"))
    ]
    benches = (
        bench_json(*(subject(p, factors=[1 + i / 3] * 6) for i, p in enumerate(places))),
        bench_json(*(subject(p, "llama.cpp", factors=[9 - i]) for i, p in enumerate(places))),
    )
    who = [f"{name} on {engine}" for name in names for engine in ENGINES]
    gallery = tuple(
        GalleryEntry(
            thumbnail(Image.new("RGB", (300, 200), "teal")),
            "p.png",
            "What is it? " * long,
            truth,
            tuple(GalleryAnswer(w, said(i)) for i, w in enumerate(who)),
        )
        for long, truth, said in (
            (1, "red", lambda i: "red"),
            (9, "red", lambda i: "red" if i % 2 else "blue"),
            (2, None, lambda i: "w" * 200 if i else None),
        )
    )
    out = folder / "page.html"
    out.write_text(
        page(Findings(members, benches, tuple(evals), gallery, ("Something was left out.",))), encoding="utf-8"
    )
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'heavy' is not installed")
    place = shutil.which("chromium")
    if place is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield opened
        opened.close()


def shown(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, and what the console said of it."""
    tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    tab.goto(path.as_uri())
    return tab, said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_overflows_or_overlaps(browser: Any, drawn: Path, width: int, scheme: str) -> None:
    tab, said = shown(browser, drawn, width, scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OUTSIDE) == []
    assert tab.evaluate(COLLISIONS) == []
    assert tab.evaluate(UNHINTED) == []
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part > 200)")
    assert light == (scheme == "light")
    assert said == []
    tab.context.close()


def test_a_large_screen_is_used(browser: Any, drawn: Path) -> None:
    tab, _ = shown(browser, drawn, 1920, "light")
    boxes = {key: tab.locator(f"#{key}").bounding_box() for key in ("summary", "skills", "times")}
    assert boxes["summary"]["width"] > 1600
    assert boxes["skills"]["y"] == boxes["times"]["y"] and boxes["skills"]["x"] < boxes["times"]["x"], "side by side"
    tab.context.close()


def test_the_keyboard_reaches_every_table_and_fold(browser: Any, drawn: Path) -> None:
    tab, _ = shown(browser, drawn, 390, "light")
    reached = set()
    for _ in range(80):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.className + document.activeElement.tagName"))
        tables = tab.evaluate(
            "document.activeElement.matches('.scroll') && getComputedStyle(document.activeElement).outlineStyle"
        )
        assert tables in (False, "solid"), "what has the focus shows it"
    assert {"scrollDIV", "SUMMARY", "A"} <= reached
    tab.context.close()


def test_paper_is_light_and_whole(browser: Any, drawn: Path) -> None:
    tab, _ = shown(browser, drawn, 720, "dark")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible()
    heights = tab.evaluate(
        "[...document.querySelectorAll('details table')].map(each => each.getBoundingClientRect().height)"
    )
    assert heights and min(heights) > 20, "folded tables are printed"
    assert tab.evaluate(COLLISIONS) == []
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF-") and len(pdf) > 20_000
    tab.context.close()
