"""`edgevlm demo`: the whole way on the shipped model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from edgevlm.commands.console import note
from edgevlm.commands.export import export_bundle
from edgevlm.commands.run import ask, timings_table

PICTURE = Path(__file__).parent.parent / "assets" / "pictures" / "scene-shapes.png"
QUESTIONS = ("What color is the star?", "How many squares are there?")


@click.command()
@click.option("--out", default="edgevlm-demo", show_default=True, metavar="DIR", help="The bundle's folder.")
@click.option("--quantize", default="int4", show_default=True, metavar="[fp32|fp16|int8|int4]")
def demo(out: str, quantize: str) -> None:
    """Export the shipped model, check it, ask about a picture."""
    from edgevlm.sampling import GenerateOptions

    note(f"$ edgevlm export default --target onnx --quantize {quantize} -o {shlex.quote(out)}")
    bundle = export_bundle("default", out, quantize=quantize, force=_is_demo(Path(out)))
    for question in QUESTIONS:
        words = [out, str(PICTURE), question, "--timings"]
        note(f"\n$ edgevlm run {' '.join(map(shlex.quote, words))}")
        answer = ask(bundle, [PICTURE], question, GenerateOptions())
        note(timings_table(answer.timings))


def _is_demo(folder: Path) -> bool:
    """Whether a bundle of the shipped model lies there: an earlier demo's, which another demo may replace."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["model"]["source"] == "default")
    except (OSError, ValueError, KeyError, TypeError):
        return False
