"""Findings to one HTML page: no script, no request to anywhere, every string from outside escaped."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib.resources import files

from edgevlm import __version__
from edgevlm.bench.device_card import card_line, device_card
from edgevlm.report.costs import gates, times
from edgevlm.report.gallery import gallery
from edgevlm.report.gather import Findings
from edgevlm.report.losses import layers, skills
from edgevlm.report.markup import Html, h, join
from edgevlm.report.parts import look, missing
from edgevlm.report.summary import summary

# What the page may load: its own style and the pictures inside it. A browser holds to this even if we erred.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(found: Findings) -> str:
    """The whole document."""
    assets = files("edgevlm").joinpath("assets")
    style = "\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in ("look.css", "report.css"))
    title = "EdgeVLM: " + ", ".join(member.name for member in found.members)
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", title),
        h("style", Html(style)),
    )
    sections = [each for each in _sections(found) if each[2] is not None]
    links = (h("li", h("a", name, href=f"#{key}")) for key, name, _ in sections)
    today = datetime.date.today().isoformat()
    body = h(
        "body",
        h("header", h("h1", "What these bundles cost"), h("p", f"{today}, edgevlm {__version__}", class_="caption")),
        h("nav", h("ul", *links), aria_label="Sections"),
        h("main", *(h("section", h("h2", name), content, id=key) for key, name, content in sections)),
        h("footer", h("p", f"Drawn by edgevlm {__version__} on {card_line(device_card())}.", class_="caption")),
    )
    return f"<!doctype html>\n{h('html', head, body, lang='en')}\n"


def _sections(found: Findings) -> list[tuple[str, str, Html | None]]:
    """Address, title and content of each."""
    return [
        ("summary", "Summary", summary(found)),
        ("skills", "Scores by skill", skills(found)),
        ("times", "Time by stage", times(found)),
        ("answers", "Answers", _answers(found)),
        ("layers", "Divergence by layer", layers(found)),
        ("gate", "Gate", gates(found)),
        ("notes", "Left out", _notes(found.notes)),
    ]


def _answers(found: Findings) -> Html:
    if not found.gallery:
        return missing("No engine of this machine could answer.")
    caption = (
        "The most likely words of each bundle on each engine, right answers first. Where they are not those of the "
        "first line, added words are marked and missing ones struck out. So few pictures are no score. They are shown "
        "smaller than they are."
    )
    looks = {f"{m.name} on {runtime}": look(found, m, runtime) for m in found.members for runtime in m.runtimes}
    return join(h("p", caption, class_="caption"), gallery(found.gallery, looks))


def _notes(notes: Sequence[str]) -> Html | None:
    return h("ul", *(h("li", note) for note in notes), class_="caption") if notes else None
