"""Documents that say what the program does: links lead somewhere, commands parse, the reference is its own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, OTHERS, PAGES, ROOT, anchors, links, name

from edgevlm.checkpoint.families import FAMILIES


def test_the_command_reference_is_the_programs_own() -> None:
    command = [sys.executable, "docs/make_cli_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_the_page_of_checkpoints_names_every_family() -> None:
    """By what its config.json calls it, or by the key that identifies it; types of edgevlm's own are no family."""
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    for family in FAMILIES:
        names = [family.mark] if family.mark else [name for name in family.model_types if "edgevlm" not in name]
        assert all(f"`{name}`" in page for name in names), names


def numbers(found: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every number in nested objects, as the object and the key that hold it."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, int | float):
            yield found, key


def test_the_page_of_models_is_what_was_measured() -> None:
    """It has a row for each family, it is what docs/models.json gives, and another measurement gives another page."""
    path = ROOT / "docs" / "make_models.py"
    spec = importlib.util.spec_from_file_location("make_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, page = json.loads(module.RESULTS.read_text()), module.PAGE.read_text()
    assert page == module.page(found), f"run {module.COMMAND}"
    titles = {family.title for family in FAMILIES}
    assert found.keys() <= titles and all(f"\n| {title} | " in page for title in titles)
    for cells in (family["cells"] for family in found.values()):
        for place, key in numbers(cells):
            measured, place[key] = place[key], place[key] - 0.125
            assert module.page(found) != page, (key, measured)
            place[key] = measured
    assert module.page({}) == module.page({"other": {}}) and "0.99" not in module.page({})


def test_the_page_of_performance_is_what_was_counted_and_measured() -> None:
    """Another rate of this machine gives another page; without measurements, blocks say so and the others stay."""
    path = ROOT / "docs" / "make_performance.py"
    spec = importlib.util.spec_from_file_location("make_performance", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, text = json.loads(module.RESULTS.read_text()), module.PAGE.read_text()
    assert module.page(text, found) == text, f"run {module.COMMAND}"
    first, *others = found["machines"]
    rates = first["rates"] | {"integer": first["rates"]["integer"] / 3}
    assert module.page(text, found | {"machines": [first | {"rates": rates}, *others]}) != text
    empty = module.blocks({})
    assert empty["Peers"] == empty["Shapes"] == empty["Floor"] == "Not measured yet." and empty["Work"] in text


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files, pictures and headings; addresses elsewhere are not looked up."""
    for link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        assert place.exists() and place.is_relative_to(ROOT), f"{name(page)} links to {target}"
        if anchor:
            assert place.suffix == ".md" and anchor in anchors(place.read_text(encoding="utf-8")), (
                f"{name(page)}: {link}"
            )


def test_the_first_page_leads_to_every_other() -> None:
    leads = set(links((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS} - leads == {"index.md"}


def test_a_page_without_the_heading_is_noticed() -> None:
    text = "# A page\n\n## What is *not* computed, `twice`?\n\n## Again\n\n## Again\n\n```sh\n# a comment\n```\n"
    assert anchors(text) == {"a-page", "what-is-not-computed-twice", "again", "again-1"}
    assert links("[a](b.md#c) `[d](e)` ![f](g.png) <!-- [h](i) -->") == ["b.md#c", "g.png"]


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named == ["demo", "test"]
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_picture_is_drawn_inside_its_frame() -> None:
    """Well-formed, self-contained, and every text starts inside the frame."""
    root = ElementTree.parse(ROOT / "docs" / "pipeline.svg").getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert len(texts) > 20
    for text in texts:
        assert 0 < float(text.attrib["x"]) < width and 0 < float(text.attrib["y"]) < height
    assert "href" not in (ROOT / "docs" / "pipeline.svg").read_text()


def test_documents_name_no_machine_path() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:work|root|home)/", page.read_text(encoding="utf-8")), page.name
