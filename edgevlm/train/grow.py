"""Make a model deeper without changing what it computes: `python -m edgevlm.train.grow MODEL --out OUT --layers 8`.

A new layer is a copy of the one before it whose two outputs into the residual stream are zero, so that it begins as the
identity (Net2Net, Chen et al. 2016, arXiv 1511.05641; as LLaMA Pro, arXiv 2401.02415, does it). What the smaller model
learnt is kept, and training goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from edgevlm.errors import EdgeVLMError
from edgevlm.folders import check_replaceable, partial_folder, publish
from edgevlm.train.models import open_source, save

_VISION, _DECODER = "model.vision_model.encoder.layers.", "model.text_model.layers."
_OUTPUTS = ("self_attn.out_proj", "self_attn.o_proj", "mlp.fc2", "mlp.down_proj")


def grow(model: str, out: Path, vision_layers: int | None = None, layers: int | None = None) -> Path:
    """Write `model`, a SmolVLM, with that many layers in encoder and decoder; None: as many as it has."""
    check_replaceable(out, False, "config.json", "checkpoint")
    source = open_source(model)
    if source.spec.family != "smolvlm":
        raise EdgeVLMError(f"'{model}' is of the family {source.spec.family}, and only SmolVLM models can be grown.")
    small = source.load()
    config = copy.deepcopy(small.config)
    vision, text = config.vision_config, config.text_config
    state = small.state_dict()
    for part, prefix, wanted in ((vision, _VISION, vision_layers), (text, _DECODER, layers)):
        count = part.num_hidden_layers
        if wanted is not None and wanted < count:
            raise EdgeVLMError(f"'{model}' has {count} layers where {wanted} were asked for: it can only grow.")
        state = _deeper(state, prefix, count, wanted or count)
        part.num_hidden_layers = wanted or count
    grown = type(small)(config)
    grown.load_state_dict(state)
    with partial_folder(out) as partial:
        save(grown, source, partial, base=model, dtype=torch.float32)
        path = partial / "config.json"  # the source's own
        written = json.loads(path.read_text())
        written["vision_config"]["num_hidden_layers"] = vision.num_hidden_layers
        written["text_config"]["num_hidden_layers"] = text.num_hidden_layers
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        publish(partial, out)
    return out


def places(count: int, wanted: int) -> list[int]:
    """Of which old layer each new one is, in order; the added ones are spread evenly and follow their original."""
    added = wanted - count
    after = [-(-(n + 1) * count // added) - 1 for n in range(added)]
    return sorted([*range(count), *after])


def _deeper(state: dict[str, Tensor], prefix: str, count: int, wanted: int) -> dict[str, Tensor]:
    grown = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    order = places(count, wanted)
    for place, old in enumerate(order):
        added = place > 0 and order[place - 1] == old
        start = f"{prefix}{old}."
        for name, tensor in state.items():
            if name.startswith(start):
                rest = name.removeprefix(start)
                zero = added and rest.startswith(_OUTPUTS)
                grown[f"{prefix}{place}.{rest}"] = torch.zeros_like(tensor) if zero else tensor.clone()
    return grown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edgevlm.train.grow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vision-layers", type=int)
    parser.add_argument("--layers", type=int, help="of the decoder")
    given = parser.parse_args(arguments)
    try:
        print(grow(given.model, given.out, given.vision_layers, given.layers))
    except EdgeVLMError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
