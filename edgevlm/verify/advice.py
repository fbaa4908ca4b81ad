"""What a report asks for: the setting with which failed rows would likely pass, and notes beside the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgevlm.io.processor import processor_line
from edgevlm.runtimes.ort.products import EXACT
from edgevlm.verify.report import Row
from edgevlm.verify.runtime import PRODUCTS, STOCK_PRODUCTS

COMPONENTS = ("vision", "projector", "decoder", "embed")
# Kinds of weights that round, the coarsest first, and the next finer one of each.
FINER = {"palette4": "palette6", "int4": "int8", "palette6": "int8", "int8": "fp16", "fp16": "fp32"}
# Rounding takes no more from a cosine: below, something is wrong that another form of the weights would not mend.
ROUNDED = 0.9


def advice(rows: Sequence[Row], recipe: Mapping[str, Any], *, limited: bool = False) -> str:
    """One sentence with options of `edgevlm export`, or "" where none of them would help.

    recipe: the manifest's. limited: --budget or --max-loss chose it, and they take no forms beside them. An option is
    named only where the failed component has a form that rounds: its weights, or the activations that an engine
    multiplies them with.
    """
    failed = [row for row in rows if not row.passed]
    if any(row.target in ("inputs", "adapter") or row.check.startswith("weights") for row in failed):
        return ""  # what is compared is not the same: no form of the weights would help
    if any(row.check.endswith("cosine") and not row.measured >= ROUNDED for row in failed):
        return ""
    found = dict.fromkeys(option for row in failed if (option := _option(row, failed, recipe)))
    if not found:
        return ""
    options = " and ".join(found) + (" in place of --budget and --max-loss" if limited else "")
    return f"Try {options}: an export with {'that' if len(found) == 1 else 'these'} would likely pass."


def notes(rows: Sequence[Row], recipe: Mapping[str, Any], cpu: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what no bound judges: what the export chose, what other programs have to do on this machine.

    cpu: see `processor`.
    """
    outliers = recipe.get("outliers")
    int8 = tuple(f"{name}." for name in COMPONENTS if recipe[name]["kind"] == "int8")
    kept = [name for name in outliers if str(name).startswith(int8)] if isinstance(outliers, list | tuple) else []
    if kept:
        yield (
            f"{len(kept)} of the encoder's matrices keep fp16: what flows into them has outliers, and with all of "
            "them in int8 the features would depart too far."
        )
    if any(row.check == STOCK_PRODUCTS and not row.measured <= EXACT for row in rows):
        yield (
            f"onnxruntime's kernel for signed 8-bit weights saturates on this CPU, {processor_line(cpu)}. edgevlm "
            "converts the weights when it opens the bundle, and its products are exact; a program of your own should "
            'set the session option session.x64quantprecision to "1" for the graphs with fused operators.'
        )


def _option(row: Row, failed: Sequence[Row], recipe: Mapping[str, Any]) -> str:
    """The option that would mend one failed row."""
    if row.check == PRODUCTS:
        return "--quantize fp16"
    features = row.check.startswith("features")
    if not features and any(other.target == row.target and other.check.startswith("features") for other in failed):
        return ""  # tokens follow from features
    if row.target == "quantization":
        return _finer(recipe, COMPONENTS[:2] if features else COMPONENTS)
    if row.level == "answers":
        return _finer(recipe, COMPONENTS)
    if row.target not in ("onnx", "gguf") or row.check.startswith("embeddings"):
        return ""  # CoreML and the standard operators multiply floats whatever the form, and a look-up rounds nothing
    if features:
        return _floats(recipe, COMPONENTS[:2])
    decoder, prefill = recipe["decoder"], recipe.get("prefill")
    if row.target == "onnx" and (decoder.get("dynamic") or prefill):
        return "--preset balanced"
    return _floats(recipe, COMPONENTS[2:])


def _floats(recipe: Mapping[str, Any], components: Sequence[str]) -> str:
    """The first of the components whose activations an engine rounds, as floats."""
    return next((f"--{name} fp16" for name in components if recipe[name]["kind"] in ("int8", "int4")), "")


def _finer(recipe: Mapping[str, Any], components: Sequence[str]) -> str:
    """The coarsest of the components in the next finer form."""
    kinds = {name: recipe[name]["kind"] for name in components}
    coarsest = next((kind for kind in FINER if kind in kinds.values()), "fp32")
    found = [name for name, kind in kinds.items() if kind == coarsest]
    if coarsest == "fp32":
        return ""
    names = ["quantize"] if found == list(COMPONENTS) else found
    return " ".join(f"--{name} {FINER[coarsest]}" for name in names)
