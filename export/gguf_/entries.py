"""Which tensors the two files hold: the model's weight tree under llama.cpp's names, and what its loader adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from edgevlm.bundle.qtensor import BLOCK, QTensor
from edgevlm.export.gguf_.archs import ProjectorType, TextArch
from edgevlm.export.gguf_.blocks import ggml_type
from edgevlm.export.quantize.recipe import Recipe
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Group
from edgevlm.models.record import weight_tree
from edgevlm.models.rope import rope_factors
from edgevlm.models.spec import Attention, Decoder, Rope
from edgevlm.runtimes.llama.names import PROJECTORS, ROPE_DIVISORS, ROPE_FACTORS, SHARING, TEXT
from edgevlm.runtimes.llama.table import Table, frame_name
from edgevlm.types import F32


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    weights: tuple[str, ...] = ()  # the canonical weights that it holds, one on top of the other
    linear: bool = False
    constant: QTensor | None = None  # its values, where they are no weight of the model
    row: int | None = None  # the one row of the weight that it holds
    frame: int | None = None  # whose kernel it is, of a patch embedding of several frames


def decoder_entries(spec: ModelSpec, arch: TextArch, recipe: Recipe) -> list[Entry]:
    """The text model's tensors. A tied head has none: llama.cpp then takes token_embd."""
    first, *rest = _entries(spec, "decoder.", TEXT[arch.name], recipe)
    rope = spec.decoder.ropes["main"]
    plain = rope.scaling is None and arch.name != SHARING  # where it is asked for in any case
    if rope.divisors:  # up to the context that the first counts for, and beyond
        divisors = np.array(rope.divisors, np.float32)
        return [first, *(_constant(name, divisors) for name in ROPE_DIVISORS), *rest]
    if arch.all_keys:
        rest += _unread(spec.decoder, TEXT[arch.name])
    return [first, *([] if plain else [_constant(ROPE_FACTORS, _factors(rope))]), *rest]


def _unread(d: Decoder, table: Table) -> list[Entry]:
    """Keys and values of layers that read others': nothing, in the fewest bytes."""
    found = []
    for layer in range(d.num_layers):
        a = d.block(layer).mixers[0]
        if not isinstance(a, Attention) or a.reads != "earlier":
            continue
        rows, w = a.kv_heads * a.head_dim, f"decoder.layers.{layer}"
        found.append(_constant(table.name(f"{w}.k_norm.weight"), np.zeros(a.head_dim, np.float32)))
        for part in "kv":
            codes, scale = (
                np.zeros((rows, d.hidden_size), np.int8),
                np.zeros((rows, d.hidden_size // BLOCK), np.float16),
            )
            empty = (
                QTensor("int4", codes, scale) if d.hidden_size % BLOCK == 0 else QTensor("fp32", codes * np.float32(0))
            )
            kind = ggml_type(empty.kind, d.hidden_size)
            found.append(Entry(table.name(f"{w}.{part}.weight"), codes.shape, kind, linear=True, constant=empty))
    return found


def _factors(rope: Rope) -> F32:
    """What llama.cpp divides each frequency by: one that turns nothing by more than any context has positions."""
    found = rope_factors(rope)
    if rope.turning is not None:
        found[rope.turning :] = 1e30
    return found


def mmproj_entries(spec: ModelSpec, projector: ProjectorType, recipe: Recipe, line_break: int | None) -> list[Entry]:
    """The vision tower's and the projector's tensors. line_break: the token between rows of image tokens."""
    table = PROJECTORS[projector.name]
    entries = [entry for part in ("vision.", "projector.") for entry in _entries(spec, part, table, recipe)]
    entries += [_constant(name, values) for name, values in projector.constants(spec).items()]
    if projector.line_break:
        width, embed = (spec.decoder.hidden_size,), ("decoder.embed.weight",)
        entries.append(Entry(projector.line_break, width, GGMLQuantizationType.F32, embed, row=line_break))
    return entries


def _entries(spec: ModelSpec, part: str, table: Table, recipe: Recipe) -> list[Entry]:
    found: dict[str, Entry] = {}
    for weight, info in weight_tree(spec).items():
        if not weight.startswith(part):
            continue
        shape, kind = info.shape, GGMLQuantizationType.F16 if table.halves(weight) else GGMLQuantizationType.F32
        if info.is_linear:
            form = recipe.form(weight).kind
            spans = table.spans(weight, info.is_linear)
            moved = table.turns(weight) or spans or (table.scatters(weight) and form == "int4")
            kind = ggml_type("fp32" if moved and form.startswith("int") else form, shape[-1])
        if table.square_patches and weight == "vision.patch_embedding.weight":
            shape = (shape[0], 3, spec.vision.patch_size, spec.vision.patch_size)
            frames, name = getattr(spec.vision, "frames", 1), table.name(weight)
            for frame in range(frames) if frames > 1 else ():
                one = frame_name(name, frame)
                found[one] = Entry(one, shape, kind, (weight,), frame=frame)
            if frames > 1:
                continue
        shape = shape[::-1] if table.turns(weight) else shape
        if table.kernel and table.scatters(weight):
            group = next(step for step in spec.projector if isinstance(step, Group))
            shape, kind = (shape[0], group.width, group.side, group.side), GGMLQuantizationType.F32
        shape = (*shape, 1, 1) if table.spans(weight, info.is_linear) else shape
        planes = table.planes_of(weight)
        shape = (planes, shape[0] // planes, *shape[1:]) if planes else shape
        name, weights = table.name(weight), tuple([weight])
        if above := found.get(name):
            weights, shape = (*above.weights, weight), (above.shape[0] + shape[0], *shape[1:])
            kind = kind if kind == above.kind else GGMLQuantizationType.F32  # which holds both
        found[name] = Entry(name, shape, kind, weights, info.is_linear)
    return list(found.values())


def _constant(name: str, values: F32) -> Entry:
    return Entry(name, values.shape, GGMLQuantizationType.F32, constant=QTensor("fp32", values))
