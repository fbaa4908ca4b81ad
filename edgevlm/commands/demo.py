"""`edgevlm demo`: export, check and ask the shipped model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from edgevlm.commands.engine import EngineChoice, show
from edgevlm.commands.export import export_bundle
from edgevlm.commands.run import timings_table
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note
from edgevlm.io.text import shell_word

PICTURE = Path(__file__).parent.parent / "assets" / "scenes" / "demo.png"
QUESTIONS = (
    "How many balloons are there?",
    "What colour is the car?",
    "What does the sign say?",
    "Is there a cat in the picture?",
    "Where is the dog compared to the house: left, right, above or below?",
    "Which is bigger, the house or the dog?",
)


@click.command()
@click.option("--out", default="edgevlm-demo", show_default=True, metavar="DIR", help="The bundle's folder.")
@click.option("--quantize", default="int4", show_default=True, metavar="[fp32|fp16|int8|int4]")
def demo(out: str, quantize: str) -> None:
    """Export the shipped model, check it, ask about a picture."""
    again = _is_demo(Path(out))
    if not again and os.path.isdir(out) and os.listdir(out):
        raise EdgeVLMError(f"'{out}' exists and is no demo of before: choose another place with --out.")
    note(f"$ edgevlm export default --target onnx --quantize {quantize} -o {shell_word(out)}")
    bundle = export_bundle("default", out, quantize=quantize, force=again)
    note(f"\nNow {len(QUESTIONS)} questions about the picture {PICTURE}")
    timings = []
    with EngineChoice().open(bundle) as pipeline:
        for question in QUESTIONS:
            note(f"\n{question}")
            timings.append(show(pipeline.ask([PICTURE], question)).timings)
    typical = sorted(timings, key=lambda t: t.preprocess + t.encode + t.prefill + t.decode)[len(timings) // 2]
    note(f"\nTime of one question, the median of these:\n{timings_table(typical)}")
    words = [out, str(PICTURE), "Is there a dog in the picture?"]
    note(f"\nAsk your own: edgevlm run {' '.join(map(shell_word, words))}")


def _is_demo(folder: Path) -> bool:
    """Whether the folder is a bundle of the shipped model: an earlier demo's, which a new demo may replace."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["model"]["source"] == "default")
    except (OSError, ValueError, KeyError, TypeError):
        return False
