"""The model card of a bundle: README.md of its repository on the Hub, written from the manifest.

Its last line holds a hash of the lines above, by which a card that somebody has edited is known: it is kept.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.bundle.manifest import Manifest, ModelInfo
from edgevlm.io.console import size
from edgevlm.io.hub import is_hub_id
from edgevlm.io.text import printable

CARD = "README.md"
_SEAL = re.compile(r"<!-- Written by edgevlm push, ([0-9a-f]{16}): [^\n]*-->\n?")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#&~$])")


@dataclass(frozen=True)
class Licence:
    """A model's licence as the Hub's cards have it: an identifier, and for "other" a name and an address."""

    license: str
    name: str | None = None
    link: str | None = None


def model_card(manifest: Manifest, repo: str, licence: Licence | None, branch: str | None = None) -> str:
    """The card of a bundle that is pushed to `repo`. licence: of the source; None where it is not known."""
    model, name = manifest.model, repo.partition("/")[2]
    lines = [f"edgevlm pull {repo}", f'edgevlm run {name} photo.jpg "What is in the picture?"']
    if branch:
        lines[0] += f" --revision {shlex.quote(branch)}"
    else:
        lines.append(f'edgevlm run {repo} photo.jpg "What is in the picture?"  # the same from the Hub\'s cache')
    parts = [
        _front(manifest, licence),
        f"# {_plain(model.name)} for EdgeVLM: {_plain(_kind(manifest))}, {', '.join(manifest.targets)}",
        f"An EdgeVLM bundle of {_source(model)}: the weights, the preprocessing and the prompt of a vision-language "
        "model, as edge runtimes take them.",
        "## Run it\n\nWith EdgeVLM installed:\n\n```sh\n" + "\n".join(lines) + "\n```",
        f"## What is in it\n\n{_targets(manifest)}",
        f"## The gate\n\n{_gate(manifest.gate)}",
        f"## Licence\n\n{_terms(model, licence)}",
        f"Source: {_source(model)}, {f'revision {_code(model.revision)}, ' if model.revision else ''}weights sha256 "
        f"{_code(model.weights_sha256)}.\nWritten by: "
        + ", ".join(_plain(f"{name} {version}") for name, version in manifest.tools.items())
        + ".",
    ]
    return seal("\n\n".join(parts) + "\n")


def seal(text: str) -> str:
    """The text with a last line by which `is_ours` knows it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{text}\n<!-- Written by edgevlm push, {digest}: a card that is edited is kept by the next push. -->\n"


def is_ours(card: str) -> bool:
    """Whether a card is as `seal` made it."""
    found = list(_SEAL.finditer(card))
    return bool(found) and seal(card[: found[-1].start() - 1]) == card


def _front(manifest: Manifest, licence: Licence | None) -> str:
    from huggingface_hub import ModelCardData

    source = manifest.model.source
    known = {"base_model": source} if is_hub_id(source) else {}
    if known and manifest.recipe.get("quantize") not in ("fp32", "fp16"):
        known["base_model_relation"] = "quantized"
    terms = {"license": licence.license, "license_name": licence.name, "license_link": licence.link} if licence else {}
    data = ModelCardData(
        **{name: value for name, value in terms.items() if value},
        library_name="edgevlm",
        pipeline_tag="image-text-to-text",
        tags=["edgevlm", *manifest.targets],
        **known,
    )
    return f"---\n{data.to_yaml()}\n---"


def _kind(manifest: Manifest) -> str:
    return str(manifest.recipe.get("quantize", "mixed"))


def _source(model: ModelInfo) -> str:
    """The original, with an adapter that was merged into it."""
    place = f"[{_plain(model.source)}](https://huggingface.co/{model.source})"
    ours = "the model that ships with EdgeVLM" if model.source == "default" else _code(model.source)
    named = place if is_hub_id(model.source) else ours
    return named + (f" with the adapter {_code(model.adapter)} merged" if model.adapter else "")


def _targets(manifest: Manifest) -> str:
    rows = []
    for target in manifest.targets:
        own = [info.size for name, info in manifest.files.items() if name.startswith(f"{target}/")]
        rows.append((target, str(len(own)), size(sum(own))))
    shared = [
        i.size for name, i in manifest.files.items() if not name.startswith(tuple(f"{t}/" for t in manifest.targets))
    ]
    rows.append(("what all need", str(len(shared)), size(sum(shared))))
    return _table(("target", "files", "size"), rows)


def _gate(gate: dict[str, Any] | None) -> str:
    """The rows of the gate, which check_gate has judged."""
    if gate is None:
        return (
            "**The gate did not run**: nobody has compared this bundle with the original. `edgevlm verify` with "
            "`--model` does it."
        )
    missed = sum(not row["passed"] for row in gate["rows"])
    verdict = "**Passed**" if gate["passed"] else f"**Failed: {missed} bounds missed; answers may be wrong**"
    rows = []
    for row in gate["rows"]:
        bound = "" if row["bound"] is None else f"{row['bound']:.6g}"
        measured = "no number" if row["measured"] is None else f"{row['measured']:.6g}"
        result = "**missed**" if not row["passed"] else "ok" if bound else ""
        rows.append((_plain(row["target"]), _plain(row["check"]), measured, bound, result, _plain(row["note"])))
    head = ("target", "check", "measured", "bound", "", "")
    return f"{verdict}: every component was compared with the original at the export.\n\n{_table(head, rows)}"


def _terms(model: ModelInfo, licence: Licence | None) -> str:
    if licence is None:
        return (
            f"The licence of the original, {_source(model)}, was not known when this card was written. It holds for "
            "this bundle too: look it up there before you use either."
        )
    name = _plain(licence.name or licence.license)
    named = f"[{name}]({licence.link})" if licence.link else name
    adapted = " The adapter may have a licence of its own." if model.adapter else ""
    return f"That of the original, {_source(model)}: {named}. The weights here are made from it.{adapted}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _plain(text: str) -> str:
    """Text of a manifest as text of Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', '')}`"
