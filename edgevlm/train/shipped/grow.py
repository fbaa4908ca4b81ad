"""Enlarge a model without changing its function: `python -m edgevlm.train.shipped.grow MODEL --out OUT --layers 8`.

A new layer is a copy of the one before it whose two outputs into the residual stream are zero, so that it begins as the
identity (Net2Net, Chen et al. 2016, arXiv 1511.05641; as LLaMA Pro, arXiv 2401.02415, does it). What the smaller model
learnt is kept, and training goes on from there.

A larger patch has more pixels of the same part of a picture, so the number of patches stays. The new kernel's output on
an enlarged patch is the old kernel's on the original (FlexiViT, Beyer et al. 2023, arXiv 2212.08013).
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.io.files import change_json
from edgevlm.io.folders import replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.io.program import run_module
from edgevlm.train.models import open_source, save

_VISION, _DECODER = "model.vision_model.encoder.layers.", "model.text_model.layers."
_KERNEL = "model.vision_model.embeddings.patch_embedding.weight"
_OUTPUTS = ("self_attn.out_proj", "self_attn.o_proj", "mlp.fc2", "mlp.down_proj")


def grow(
    model: str,
    out: Path,
    vision_layers: int | None = None,
    layers: int | None = None,
    patch: int | None = None,
    heads: Path | None = None,
) -> Path:
    """Write `model` with that many layers in encoder and decoder and patches of that many pixels a side.

    It has the shipped model's layout. None keeps the model's number. heads: a file of pretraining's that goes with the
    model. Raises EdgeVLMError where the model has more.
    """
    with replacing(out, CHECKPOINT) as output:
        _grow(model, output.new, vision_layers, layers, patch)
        if heads is not None:
            shutil.copyfile(heads, output.new / heads.name)
        output.publish()
    return out


def _grow(model: str, out: Path, vision_layers: int | None, layers: int | None, patch: int | None) -> None:
    source = open_source(model)
    if not isinstance(source.image.rule, TilesThenWhole):
        raise EdgeVLMError(f"'{model}' sees pictures in another way than the shipped model: begin with one like that.")
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
    was = vision.patch_size
    if patch is not None and patch < was:
        raise EdgeVLMError(f"'{model}' has patches of {was} pixels where {patch} were asked for: it can only grow.")
    if patch is not None and patch > was:
        state[_KERNEL] = larger_kernel(state[_KERNEL], patch)
        vision.image_size, vision.patch_size = vision.image_size // was * patch, patch
    grown = type(small)(config)
    grown.load_state_dict(state)
    save(grown, source, out, base=model, dtype=torch.float32)
    path = out / "config.json"  # the source's own
    seen = {name: getattr(vision, name) for name in ("num_hidden_layers", "image_size", "patch_size")}
    change_json(path, {"vision_config": seen, "text_config": {"num_hidden_layers": text.num_hidden_layers}})
    path = out / "preprocessor_config.json"
    there = json.loads(path.read_text(encoding="utf-8"))
    sizes = {name: there[name]["longest_edge"] for name in ("size", "max_image_size")}
    change_json(path, {name: {"longest_edge": edge // was * vision.patch_size} for name, edge in sizes.items()})


def larger_kernel(kernel: Tensor, patch: int) -> Tensor:
    """(W, 3, p, p) to (W, 3, patch, patch)."""
    side = kernel.shape[-1]
    pixels = torch.eye(side * side).reshape(-1, 1, side, side)
    enlarge = F.interpolate(pixels, (patch, patch), mode="bicubic", antialias=True).flatten(1)
    solved: Tensor = kernel.flatten(2) @ torch.linalg.pinv(enlarge).T
    return solved.reshape(*kernel.shape[:2], patch, patch)


def places(count: int, wanted: int) -> list[int]:
    """The old layer that each new layer copies, in order; added layers are spread evenly, each after its original."""
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
                grown[f"{prefix}{place}.{rest}"] = torch.zeros_like(tensor) if zero else tensor
    return grown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edgevlm.train.shipped.grow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vision-layers", type=int)
    parser.add_argument("--layers", type=int, help="of the decoder")
    parser.add_argument("--patch", type=int, help="pixels")
    given = parser.parse_args(arguments)
    return run_module(lambda: grow(given.model, given.out, given.vision_layers, given.layers, given.patch))


if __name__ == "__main__":
    raise SystemExit(main())
