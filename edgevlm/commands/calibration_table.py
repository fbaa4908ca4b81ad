"""The results of a calibration as a table."""

from __future__ import annotations

from typing import Any

from edgevlm.io.console import size, table


def calibration_table(report: dict[str, Any]) -> str:
    """The manifest's `calibration` as text: the choice of bits where there was one, then the loss."""
    lines = []
    if choice := report.get("choice"):
        kinds = list(choice["components"][0]["alternatives"])
        rows = [
            [row["component"], row["chosen"], *(_cost(row["alternatives"].get(kind)) for kind in kinds)]
            for row in choice["components"]
        ]
        lines.append(table(rows, ("component", "chosen", *kinds)))
        worst = sorted(choice["layers"].items(), key=lambda item: -item[1])[:5]
        lines.append("  Most sensitive layers in int4: " + ", ".join(f"{n} {kl:.2g} nats" for n, kl in worst) + ".")
        lines.append(f"  Chosen: {choice['why']}.\n")
    loss = report["loss"]
    plain, ours = loss["round_to_nearest"], loss["calibrated"]
    named = (("rounded to nearest", plain), (report["method"], ours))
    losses = [(name, f"{row['kl']:.3g} nats", f"{row['top1']:.1%}") for name, row in named]
    lines.append(table(losses, ("weights", "KL from the original", "same first choice")))
    which = "not calibrated on" if loss["unseen"] else "also calibrated on, for there are no others"
    lines.append(
        f"  Over {loss['answer_tokens']} tokens of answers about {loss['pictures']} pictures {which}; calibrated on "
        f"{report['pictures']} pictures, {report['tokens']} tokens, from {report['source']}."
    )
    return "\n".join(lines)


def _cost(alternative: dict[str, Any] | None) -> str:
    return f"{size(alternative['bytes'])}, {alternative['kl']:.2g} nats" if alternative else "not available"
