"""Findings to one HTML page: no script, no request to anywhere, every string from outside escaped."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from importlib.resources import files

from edgevlm import __version__
from edgevlm.bench.device_card import card_line, device_card
from edgevlm.io.console import size
from edgevlm.report.charts import Series
from edgevlm.report.costs import gates, times
from edgevlm.report.gallery import gallery
from edgevlm.report.gather import Findings
from edgevlm.report.losses import layers, overview, skills
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import SHAPES, missing, swatch

# What the page may load: its own style and the pictures inside it. A browser holds to this even if we erred.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(found: Findings) -> str:
    """The whole document."""
    style = files("edgevlm").joinpath("assets/report.css").read_text(encoding="utf-8")
    title = "EdgeVLM: " + ", ".join(member.name for member in found.members)
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", title),
        h("style", Html(style)),
    )
    today = datetime.date.today().isoformat()
    intro = f"Made by edgevlm {__version__} on {today}, on {card_line(device_card())}."
    body = h(
        "body",
        h("h1", "What these bundles cost"),
        h("p", intro, class_="caption"),
        _legend(found),
        *_sections(found),
        _notes(found.notes),
    )
    return f"<!doctype html>\n{h('html', head, body, lang='en')}\n"


def _sections(found: Findings) -> Iterable[Html]:
    for title, content in (
        ("Size, score, speed", overview(found)),
        ("Loss by skill", skills(found)),
        ("Divergence by layer", layers(found)),
        ("Time by stage", times(found)),
        ("Gate", gates(found)),
        ("Answers", _answers(found)),
    ):
        yield h("section", h("h2", title), content)


def _legend(found: Findings) -> Html:
    items = []
    for i, member in enumerate(found.members):
        manifest = member.bundle.manifest
        disk = size(sum(info.size for info in manifest.files.values()))
        how = [str(value) for key in ("preset", "method") if (value := manifest.recipe.get(key)) not in (None, "rtn")]
        words = f": {manifest.model.name}, {member.kind} ({', '.join(how)}), {disk} on disk"
        items.append(h("li", swatch(Series(member.name, i, 0)), h("bdi", member.name), words))
    used = {runtime for member in found.members for runtime in member.runtimes}
    shapes = [h("li", swatch(Series(name, 6, i)), name) for i, name in enumerate(SHAPES) if name in used]
    return join(h("ul", *items, class_="legend"), h("ul", *shapes, class_="legend"))


def _answers(found: Findings) -> Html:
    if not found.gallery:
        return missing("No engine of this machine could answer.")
    caption = (
        "The most likely words of each bundle on each engine, and who said them. The first card is the one that the "
        "others are compared with. Pictures are shown smaller than they are."
    )
    return join(h("p", caption, class_="caption"), gallery(found.gallery))


def _notes(notes: Sequence[str]) -> Html | None:
    if not notes:
        return None
    return h("section", h("h2", "Left out"), h("ul", *(h("li", note) for note in notes), class_="caption"))
