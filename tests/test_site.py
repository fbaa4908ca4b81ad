"""The documents as a site: it builds whole, loads nothing from elsewhere, and refuses what is wrong in a page."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, ROOT, anchors

from edgevlm.bundle.manifest import Bundle

pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (extra docs)")


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


class Loaded(HTMLParser):
    """What a browser fetches for a page by itself, and the ids that links may name."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag != "a" and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses += [address for key in ("src", "href", "srcset") if (address := given.get(key))]


def test_every_page_is_there_with_its_headings_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in DOCS:
        path = site / f"{page.stem}.html"
        found = Loaded()
        found.feed(path.read_text(encoding="utf-8"))
        assert anchors(page.read_text(encoding="utf-8")) <= found.ids, page.name
        for address in found.addresses:
            if not address.startswith("data:"):
                assert (path.parent / re.split("[?#]", address)[0]).resolve().is_file(), f"{page.name} loads {address}"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not any(re.search(r"url\(\s*['\"]?(https?:)?//", text) for text in styles)
    assert (site / "repository" / "CONTRIBUTING.html").exists() and (site / "repository" / "LICENSE").exists()
    assert not list(site.rglob("make_*.py"))


def test_what_is_wrong_in_a_page_stops_the_site(tmp_path: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{config}\nnav: [index.md, other.md]\n", encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    pages = {"index": "# Home\n\n[b](other.md#there) [c](../README.md#here)\n", "other": "# Other\n\n## There\n"}
    for name, page in pages.items():
        (tmp_path / "docs" / f"{name}.md").write_text(page, encoding="utf-8")
    (tmp_path / "README.md").write_text("# Here\n\n[back](docs/other.md#there)\n", encoding="utf-8")
    good = build(tmp_path, tmp_path / "good")
    assert good.returncode == 0, good.stderr
    faults = ["missing.md", "other.md#nowhere", "missing.png", "../missing.txt", "../README.md#nowhere"]
    links = "".join(f"[a]({fault})\n" for fault in faults)
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{links}\n", encoding="utf-8")
    (tmp_path / "docs" / "lonely.md").write_text("# Lonely\n", encoding="utf-8")
    bad = build(tmp_path, tmp_path / "bad")
    told = [*faults[:4], "repository/README.md#nowhere", "lonely.md"]
    assert bad.returncode == 1 and [each for each in told if each not in bad.stderr] == [], bad.stderr


@pytest.fixture(scope="module")
def choose() -> Any:
    spec = importlib.util.spec_from_file_location("make_choose", ROOT / "docs" / "make_choose.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_targets_is_what_was_counted_and_measured(choose: Any) -> None:
    text, found = choose.PAGE.read_text(encoding="utf-8"), json.loads(choose.RESULTS.read_text(encoding="utf-8"))
    assert choose.page(text, found) == text, "run docs/make_choose.py"
    first, second = found["machines"]
    assert "vnni" in first["rates"]["machine"] and "vnni" not in second["rates"]["machine"]
    slower = second | {"rates": second["rates"] | {"bandwidth": second["rates"]["bandwidth"] / 3}}
    assert choose.page(text, {"machines": [first, slower]}) != text
    unmeasured = choose.page(text, {"machines": [{"rates": first["rates"], "peers": {}}, slower]})
    assert unmeasured.count("| measured |") < text.count("| measured |")


def test_its_bytes_are_those_of_files(choose: Any, gguf_bundle: Callable[..., Bundle]) -> None:
    """The shipped model's weights as they are written. ONNX files hold tables of RoPE, too, GGUF files a vocabulary."""
    from edgevlm.checkpoint.checkpoint import open_checkpoint
    from edgevlm.checkpoint.families import read_model

    spec = read_model(open_checkpoint(str(ROOT / "edgevlm" / "assets" / "default")))[0]
    folder = gguf_bundle("int4", "default").folder
    (size,) = {rope.size for rope in spec.decoder.ropes.values()}
    onnx = sum(path.stat().st_size for path in folder.glob("onnx/*.onnx_data")) - 4 * spec.decoder.context_length * size
    gguf = sum(path.stat().st_size for path in folder.glob("gguf/*.gguf"))
    assert choose.weight_bytes(spec, "onnx") == pytest.approx(onnx, rel=0.02)
    assert choose.weight_bytes(spec, "gguf") == pytest.approx(gguf, rel=0.02)


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.heavy
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(address: str, width: int) -> None:
    """No page is wider than the screen or reaches elsewhere; the two questions are answered; search finds."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra heavy)")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for each in DOCS:
            page.goto(f"{address}/{each.stem}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, each.name
        page.goto(f"{address}/choose.html")
        device, model = (page.locator("#choose").get_by_label(text) for text in ("Device", "Model"))
        device.select_option(label="Raspberry Pi 5")
        model.select_option(label="Qwen/Qwen3-VL-2B-Instruct")
        said = page.locator("#choose").inner_text()
        assert "edgevlm export Qwen/Qwen3-VL-2B-Instruct --target onnx -o bundle" in said and "estimated" in said
        row = page.locator("article table").nth(2).get_by_role("row").filter(has_text="Raspberry Pi 5")
        assert row.get_by_role("cell").nth(3).inner_text() in said
        page.keyboard.press("/")
        page.keyboard.type("llguidance")
        page.locator(".md-search-result__link").first.wait_for()
        assert "constrained" in page.locator(".md-search-result__link").first.get_attribute("href")
        browser.close()
    assert all(url.startswith(address) for url in asked)
