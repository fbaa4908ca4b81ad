"""Which onnxruntime computes a decoder right: older ones refuse an operator's option, or compute something else."""

from __future__ import annotations

import re
from typing import Any

from edgevlm.errors import Unsupported
from edgevlm.models.spec import Attention, Decoder

Version = tuple[int, int]


def check_version(ort: Any, d: Decoder, portable: bool) -> None:
    """Raise EdgeVLMError where the installed onnxruntime is too old for a decoder; portable: its standard graphs."""
    needed, reason = max(_needs(d, portable), default=((0, 0), ""))
    found = tuple(int(number) for number in re.findall(r"\d+", str(ort.__version__))[:2])
    if found < needed:
        version = ".".join(map(str, needed))
        raise Unsupported(
            f"onnxruntime {ort.__version__} is too old for this model, {reason}, which it computes right from "
            f"{version} on: `pip install 'onnxruntime>={version}'`."
        )


def _needs(d: Decoder, portable: bool) -> list[tuple[Version, str]]:
    """Versions, found by comparing each one's operators with numpy, and what needs them."""
    attentions = [mixer for block in d.blocks for mixer in block.mixers if isinstance(mixer, Attention)]
    found: list[tuple[Version, str]] = []
    if portable and any(a.softcap is not None for a in attentions):
        found.append(((1, 27), "whose standard operator caps scores before they are masked"))
    if not portable and d.mask != "causal":
        found.append(((1, 30), "whose pictures or prompts see later positions"))
    elif not portable and d.cache == "int8":
        found.append(((1, 27), "whose keys and values have 8 bits"))
    elif not portable and any(a.reads == "earlier" for a in attentions):
        found.append(((1, 27), "some of whose layers read others' keys and values"))
    elif not portable and not d.windows <= {None}:
        found.append(((1, 24), "whose attention looks back a window"))
    return found
