"""Run the tests of families and write what they measured: docs/models.json, and docs/models.md from it.

python docs/make_models.py                    all of them, heavy ones too: many minutes
python docs/make_models.py llava internvl     those of tests/families/test_llava.py and test_internvl.py
python docs/make_models.py --page             writes the page alone, from docs/models.json and the list of families
python docs/make_models.py --check            exits with 1 if the page would change
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.checkpoint.families import FAMILIES

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"
COMMAND = "python docs/make_models.py --page"
COLUMNS = {"onnx": "ONNX", "coreml": "CoreML", "gguf": "GGUF", "hybrid": "hybrid"}
FORMS = {"fp32": "float", "fp16": "float", "int8": "int8", "int4": "int4"}
TOOLS = ("transformers", "torch", "onnxruntime", "llama_cpp_python", "coremltools")
OPENING = """# Models

What the tests of each family measured, written by `make models`: no cell is typed. A test holds this page to
[models.json](models.json), and a family that no test has measured says so.

Each family is tested on small checkpoints with random weights, built by transformers' own classes (or by the published
code where transformers has none), in every layout of tensor names; the sizes are below. Layouts that are read bit for
bit alike are one model, which engines run once. A cell says, over all layouts, pictures and prompts that were tried:

- **float** (fp32; fp16 in CoreML): the lowest cosine of an image token's features with transformers' own, and how many
  greedy tokens are transformers' own before the first tie that floats cannot tell.
- **int8**, **int4**: the matrices whose codes and scales are bit for bit the quantizer's, the same in every container;
  then features and greedy tokens of the engine against the float32 reference on the same quantized weights. Random
  weights have many near-ties, so that tokens may differ where those of real models do not.

*hybrid* is a GGUF file that holds the decoder alone: ONNX Runtime encodes the pictures. Before any of it, the pixels of
every picture are bit for bit those of the family's own processor, over the sizes that are counted, and all token ids
are equal. Where a processor resizes whole pictures as floats (nanoVLM, Phi-4-multimodal), the pixels are bytes near
these, and models are compared on the bytes: [preprocessing](preprocessing.md#3-rules). What is read from a
checkpoint: [checkpoints](checkpoints.md).
"""
REASONS = (
    "Of the first layout that was tested. Published models may differ in what is named here: `edgevlm info MODEL` "
    "tells of each."
)


def measure(names: list[str]) -> list[dict[str, Any]]:
    """The notes of the tests of these families, or of all; exits where a test fails."""
    places = [f"tests/families/test_{name}.py" for name in names] or ["tests/families"]
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not campaign", *places]
        command += ["--ignore", "tests/families/test_true_width.py", "--measurements", str(facts)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit("A test failed, and nothing was written.")
        found: list[dict[str, Any]] = json.loads(facts.read_text(encoding="utf-8"))
    return found


def title_of(family: str) -> str:
    return next(f.title for f in FAMILIES if family in f.model_types)


def results(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """By family's title: what was tested, and a cell by column and form."""
    found: dict[str, Any] = {}
    for title in sorted({title_of(fact["family"]) for fact in facts}):
        own = [fact for fact in facts if title_of(fact["family"]) == title]
        models = [fact for fact in own if fact["check"] == "model"]
        cells: dict[str, Any] = {}
        for fact in own:
            if fact["check"] in ("tokens", "bits"):
                cell = cells.setdefault(fact["target"], {}).setdefault(FORMS[fact["quantize"]], {})
                _add(cell, fact)
        found[title] = {
            "tested": {
                "variants": sorted({fact["variant"] for fact in own}),
                "parameters": max((model["parameters"] for model in models), default=0),
                "parts": models[0]["parts"] if models else {},
                "sizes of pictures": max((fact["sizes"] for fact in own if fact["check"] == "pixels"), default=0),
                "prompts": len({(f["variant"], f["pictures"]) for f in own if f["check"] == "prompt"}),
                "versions": {name: importlib.metadata.version(name) for name in TOOLS},
            },
            "cells": cells,
            "refusals": {name: reason for model in models for name, reason in model["refusals"].items()},
            "no_pictures": {name: reason for model in models for name, reason in model["no_pictures"].items()},
        }
    return found


def _add(cell: dict[str, Any], fact: dict[str, Any]) -> None:
    """Sums of tokens, the lowest cosine; of matrices, the most that one checkpoint has."""
    for key in ("equal", "count"):
        cell[key] = cell.get(key, 0) + fact[key]
    near = [value for value in (cell.get("cosine"), fact["cosine"]) if value is not None]
    cell["cosine"] = min(near, default=None)
    if "matrices" in fact:
        cell["matrices"] = max(cell.get("matrices", 0), fact["matrices"])


def page(found: dict[str, Any]) -> str:
    """docs/models.md from docs/models.json and the list of families."""
    head = ["family", *(f"{name} {form}" for name in COLUMNS.values() for form in ("float", "int8", "int4"))]
    lines = [OPENING, _row(head), _row(["---"] * len(head))]
    sizes = [_row(["family", "tower", "projector", "decoder", "parameters", "layouts", "pictures' sizes", "prompts"])]
    sizes.append(_row(["---"] * 8))
    reasons = []
    for family in FAMILIES:
        own = found.get(family.title)
        cells = own["cells"] if own else {}
        row = [_cell(cells.get(name, {}).get(form)) for name in COLUMNS for form in ("float", "int8", "int4")]
        lines.append(_row([family.title, *(row if own else ["not measured"] * len(row))]))
        if own:
            sizes.append(_row([family.title, *_tested(own["tested"])]))
            reasons += [f"- {family.title}: {reason}" for reason in _reasons(own)]
    parts = ["\n".join(lines), "## What was tested", "\n".join(sizes)]
    parts += ["## What a target did not hold", REASONS, "\n".join(reasons)] if reasons else []
    return "\n\n".join(parts) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    matrices = [f"bits {cell['matrices']}/{cell['matrices']}"] if "matrices" in cell else []
    # Rounded down, so that 1 means 1.
    near = [] if cell["cosine"] is None else [f"{math.floor(cell['cosine'] * 1e7) / 1e7:.7f}"]
    tokens = [f"{cell['equal']}/{cell['count']}"] if cell["count"] else []
    return "<br>".join([*matrices, *near, *tokens])


def _tested(tested: dict[str, Any]) -> list[str]:
    parts = [tested["parts"].get(name, "") for name in ("tower", "projector", "decoder")]
    counts = [f"{tested['parameters']:,}", ", ".join(tested["variants"])]
    return [*parts, *counts, str(tested["sizes of pictures"]), str(tested["prompts"])]


def _reasons(own: dict[str, Any]) -> Iterator[str]:
    for name, reason in {**own["refusals"], **own["no_pictures"]}.items():
        yield f"`{name}`: {reason}"


def main() -> None:
    flags = {word for word in sys.argv[1:] if word.startswith("-")}
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "--check" in flags:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page(kept):
            sys.exit(f"docs/models.md does not match docs/models.json and the list of families: run {COMMAND}")
        return
    if "--page" not in flags:
        measured = results(measure(names))
        kept = dict(sorted(((kept if names else {}) | measured).items()))
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
