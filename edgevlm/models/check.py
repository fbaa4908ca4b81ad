"""Whether a model's description is one: every number within its limit, every word known, all of them together.

A checkpoint's config.json and a bundle's manifest are held by the same rules, before anything is allocated by them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.models.bounds import BOUNDS, Bound
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import (
    Average,
    Gated,
    Group,
    Linear,
    Pool,
    Positions,
    Queries,
    Resample,
    Shuffle,
    Step,
    Take,
)
from edgevlm.models.spec import (
    Attention,
    Decoder,
    DeltaRule,
    Norm,
    keeps,
    states,
)
from edgevlm.models.towers.conv_vit import ConvVit
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.mobilenet import Attending, Bottleneck, MobileNet
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit
from edgevlm.models.window_queries import WindowQueries


def check_model(spec: ModelSpec, where: str, advice: str) -> None:
    """Raise EdgeVLMError unless `spec` is the description of a model.

    where: the file that it comes from. advice: what to do, at the end of the message.
    """
    for problems in (_parts(spec), _counts(spec), _together(spec)):  # each relies on the one before
        for wrong in problems:
            raise EdgeVLMError(f"{where} does not describe a model: {wrong}; {advice}.")


def _parts(value: Any, path: str = "") -> Iterator[str]:
    """What is wrong with single fields, of `value` and of everything in it."""
    if isinstance(value, tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if dataclasses.is_dataclass(item):
                yield from _parts(item, f"{path}[{key}]")
    if not dataclasses.is_dataclass(value):
        return
    for field in dataclasses.fields(value):
        found, name = getattr(value, field.name), f"{path}.{field.name}".removeprefix(".")
        bound = BOUNDS[type(value)].get(field.name)
        if bound is None:
            yield from _parts(found, name)
        elif found is not None:
            for each in found if isinstance(found, tuple) else (found,):
                if problem := _outside(each, bound):
                    yield f"{name} is {repr(each)[:80]}, expected {problem}"


def _outside(found: Any, bound: Bound) -> str | None:
    """What was expected, where `found` is something else."""
    if not bound or isinstance(bound[0], str):
        if isinstance(found, str) and (found in bound if bound else len(found) <= limits.TEXT):
            return None
        return " or ".join(map(repr, bound)) if bound else f"at most {limits.TEXT} characters"
    least, most = bound[0], bound[1]
    return None if least <= found <= most else f"{least:.7g} to {most:.7g}"


def _counts(spec: ModelSpec) -> Iterator[str]:
    """How many parts there are, and that those are there which others name."""
    vision, text = spec.vision, spec.decoder
    if not 1 <= text.num_layers <= limits.LAYERS:
        yield f"it asks for {text.num_layers} layers, expected 1 to {limits.LAYERS}"
    if not 1 <= len(text.blocks) <= limits.BLOCK_KINDS or max(text.layers) >= len(text.blocks):
        yield "decoder.layers names a block that is not in decoder.blocks"
    if any(not 1 <= len(block.mixers) <= 2 for block in text.blocks):
        yield "a layer of the decoder has no mixer, or more than two"
    if isinstance(vision, ConvVit) and not max(1, vision.attending) <= len(vision.widths) <= limits.STAGES:
        yield f"its tower has {len(vision.widths)} stages, expected {max(1, vision.attending)} to {limits.STAGES}"
    if len(vision.block.mixers) != 1 or not isinstance(vision.block.mixers[0], Attention):
        yield "a layer of the tower is not one attention and an MLP"
    if not 1 <= len(spec.projector) <= limits.PROJECTOR_STEPS:
        yield f"its projector has {len(spec.projector)} steps, expected 1 to {limits.PROJECTOR_STEPS}"
    if len(spec.deepstack) > limits.PROJECTOR_STEPS:
        yield f"its further levels have {len(spec.deepstack)} steps, expected at most {limits.PROJECTOR_STEPS}"
    if any(step.index not in vision.inputs() for step in (*spec.projector, *spec.deepstack) if isinstance(step, Take)):
        yield "its projector takes rows by an input that the tower has not"
    for rope in (rope for attention in _attentions(text) for rope in (attention.rope, attention.second_rope)):
        if rope is not None and rope not in text.ropes:
            yield f"an attention turns by the RoPE {rope[:80]!r}, which is not in decoder.ropes"
    for field in ("full", "convolving") if isinstance(vision, QwenVit) else ():
        if (count := len(getattr(vision, field))) > limits.LAYERS:
            yield f"vision.{field} names {count} layers, expected at most {limits.LAYERS}"
    marked = getattr(vision, "deepstack", ())
    if list(marked) != sorted(set(marked)) or any(layer >= vision.num_layers for layer in marked):
        yield "its levels of features come from layers that the tower has not, or not in order"
    levels = len(marked) + sum(step.levels for step in spec.projector if isinstance(step, WindowQueries))
    if levels != len(text.deepstack) or bool(marked) != bool(spec.deepstack):
        yield f"its pictures give {levels} further levels of features and the decoder takes {len(text.deepstack)}"
    if list(text.deepstack) != sorted(set(text.deepstack)) or any(i >= text.num_layers for i in text.deepstack):
        yield "its decoder takes levels of features behind layers that it has not, or not in order"


def _together(spec: ModelSpec) -> Iterator[str]:
    """What the numbers ask for together."""
    vision, text = spec.vision, spec.decoder
    tower, attentions = vision.block.mixers[0], _attentions(text)
    assert isinstance(tower, Attention)
    inner = vision.widths[-1] if isinstance(vision, ConvVit) else vision.hidden_size
    if tower.heads * tower.head_dim != inner and not isinstance(vision, MobileNet):
        yield "the vision hidden_size is no multiple of num_attention_heads"
    rules = [mixer for block in text.blocks for mixer in block.mixers if isinstance(mixer, DeltaRule)]
    if any(rule.value_heads % rule.key_heads for rule in rules):
        yield "the value heads of its linear attention are no multiple of its key heads"
    if tower.gated or tower.reads != "self" or tower.second_rope or tower.norm_after:
        yield "the attention of its tower is gated, does not read its own states, or turns them in another way"
    if any((a.second_rope or a.norm_after) and (a.reads != "self" or a.rope is None) for a in attentions):
        yield "an attention turns heads by two RoPEs or before their norm, and has no RoPE or reads others' states"
    if tower.cache != "float32" or len({a.cache for a in attentions if a.reads != "memory"}) > 1:
        yield "its layers keep keys and values in different forms, or its tower keeps some"
    for a in attentions:
        sizes = {text.ropes[rope or ""].size for rope in (a.rope, a.second_rope)} if a.second_rope else {a.head_dim}
        if sizes != {a.head_dim}:
            yield "halves of a head turn by RoPEs of which one does not turn all of it"
    if any(not norm.weight and norm.kind != "rms" for norm in _norms(spec)):
        yield "a layer norm of it has no weight"
    if any(a.heads % a.kv_heads for a in (tower, *attentions)):
        yield "num_attention_heads is no multiple of num_key_value_heads"
    for rope in text.ropes.values():
        if rope.size % 2:
            yield f"head_dim is {rope.size} and RoPE needs an even one"
        if rope.sections and sum(rope.sections) != rope.size // 2:
            yield "mrope_section does not add up to half of head_dim"
        axes = (limits.POSITION_AXES, limits.POSITION_AXES + (text.places == "number"))
        if len(rope.sections) not in (0, *axes):
            yield f"mrope_section has {len(rope.sections)} numbers, expected {axes[-1]}"
    if any(a.rope is not None and text.ropes[a.rope].size > a.head_dim for a in attentions):
        yield "RoPE turns more values than a head has"
    if text.context_length * sum(rope.size for rope in text.ropes.values()) > limits.ROPE_TABLE:
        yield f"its context of {text.context_length} positions needs RoPE tables of over {limits.ROPE_TABLE} values"
    kept = sum(math.prod(n or 1 for n in state.shape) for state in states(text) if None in state.shape)
    if kept > limits.STATE_PER_POSITION:
        yield f"it keeps {kept} values per position, expected at most {limits.STATE_PER_POSITION}"
    carried = sum(math.prod(n or 0 for n in state.shape) for state in states(text) if state.kind == "replace")
    if carried > limits.STATE_VALUES:
        yield f"it carries {carried} values beside keys and values, expected at most {limits.STATE_VALUES}"
    yield from _shared(text)
    if text.streams > 1 and (text.deepstack or any(block.scaled for block in text.blocks)):
        yield "several streams of states go through its layers, with further levels of features or scales beside them"
    if any(block.laurel and (block.places != "sandwich" or len(block.mixers) > 1) for block in text.blocks):
        yield "maps beside a mixer of its layers stand where they do not fit"
    if any(block.mlp.cutoff is not None and not block.mlp.gated for block in text.blocks):
        yield "an MLP of it has no gate, and a cutoff of its values"
    if vision.block.laurel or vision.block.mlp.cutoff is not None:
        yield "layers of its tower have maps beside the mixer, or gates of which not all values count"
    if text.per_layer_width > limits.MLP_WIDTH or (text.per_layer and (text.deepstack or text.norm is None)):
        yield f"its layers take {text.per_layer_width} values of a token, or further levels of features beside them"
    if spec.image_token_id >= text.vocab_size:
        yield f"image_token_id {spec.image_token_id} is outside the vocabulary"
    if spec.region is not None and spec.region.end >= text.vocab_size:
        yield f"the token {spec.region.end}, which ends its places, is outside the vocabulary"
    if spec.region is not None and (spec.region.coord_features % 2 or spec.region.size_features % 2):
        yield "its region head writes places as an odd number of cosines and sines"
    if len(spec.markers) > limits.MARKERS or max(spec.markers, default=0) >= text.vocab_size:
        yield f"it has over {limits.MARKERS} tokens around pictures, or one outside the vocabulary"
    yield from _square(spec, vision) if isinstance(vision, Vit) else _windows(vision)
    yield from _projector(spec, spec.projector)
    if spec.deepstack:
        yield from _projector(spec, spec.deepstack)


def _shared(text: Decoder) -> Iterator[str]:
    """Layers that read an earlier one's keys and values find one whose heads are theirs."""
    for layer in range(text.num_layers):
        for m, mixer in enumerate(text.block(layer).mixers):
            if not isinstance(mixer, Attention) or mixer.reads != "earlier":
                continue
            found = keeps(text, layer, m)
            other = text.block(found).mixers[m] if found >= 0 else None
            heads = (other.kv_heads, other.head_dim) if isinstance(other, Attention) else None
            if heads != (mixer.kv_heads, mixer.head_dim):
                yield f"layer {layer} reads keys and values of an earlier layer, and there is none with its heads"
                return


def _norms(value: Any) -> Iterator[Norm]:
    """Every norm of a description."""
    if isinstance(value, Norm):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _norms(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _norms(getattr(value, field.name))


def _square(spec: ModelSpec, vision: Vit) -> Iterator[str]:
    if vision.image_size < vision.patch_size:
        yield "the vision image_size is smaller than patch_size"
    if vision.num_patches > limits.PATCHES:
        yield f"its tower takes {vision.num_patches} patches, expected at most {limits.PATCHES}"
    if vision.taps and (len(vision.taps) > limits.TAPS or max(vision.taps) != vision.num_layers):
        yield "its tower takes states behind other layers than it has"
    if isinstance(vision, ConvVit):
        yield from _stages(vision)
    if isinstance(vision, MobileNet):
        yield from _bottlenecks(vision)
    for steps in (spec.projector, spec.deepstack):
        side = vision.patches_per_side
        for step in steps:
            if isinstance(step, Shuffle | Pool):
                if side % step.scale:
                    yield f"{side} patches per side are no multiple of scale_factor"
                side //= step.scale
            if isinstance(step, WindowQueries):
                yield from _queries(vision, side, step)
            if isinstance(step, Positions) and step.rows != side**2:
                yield f"its projector adds {step.rows} positions where {side**2} are"


def _stages(vision: ConvVit) -> Iterator[str]:
    (last,), count = vision.block.mixers, len(vision.widths)
    assert isinstance(last, Attention)
    if count != len(vision.depths) or sum(vision.depths) != vision.num_layers:
        yield "its tower has other numbers of stages and blocks than its widths and depths say"
    pairs = zip(vision.widths, (*vision.widths[1:], vision.hidden_size), strict=True)
    if any(wide % narrow for narrow, wide in pairs) or vision.hidden_size % vision.squeeze:
        yield "channels of its tower's stages are no multiples of those before"
    if vision.image_size % vision.patch_size or vision.patch_size != 2 ** (count + 1):
        yield "its tower's pictures are no whole number of states"
    if vision.deepstack:
        yield "a tower of convolutions gives no further levels of features"
    if any(width % last.head_dim for width in vision.widths[count - vision.attending :]):
        yield "channels of its tower's stages are no multiples of a head"


def _bottlenecks(vision: MobileNet) -> Iterator[str]:
    if len(vision.layers) != vision.num_layers or not 0 < vision.fine < vision.num_layers:
        yield "its tower has another number of layers than it says, or none between the grids that it fuses"
    step, fine = 2, 0
    for number, layer in enumerate(vision.layers, 1):
        if isinstance(layer, Bottleneck):
            step *= layer.stride
            kernels = layer.first, layer.middle, layer.fused
            if (layer.stride > 1 and not any(kernels)) or (layer.fused and any(kernels[:2])):
                yield "a layer of its tower has no kernel that makes its grid smaller, or too many kernels"
        else:
            a = layer.attention
            if a != Attention(a.heads, a.kv_heads, a.head_dim) or a.heads % a.kv_heads:
                yield "a layer of its tower has attention with more than heads"
            if layer.stride == 1 and a != vision.block.mixers[0]:
                yield "the attention of its tower differs between layers"
        if vision.image_size % (step * layer.stride if isinstance(layer, Attending) else step):
            yield "its tower's pictures are no whole number of states"
            return
        fine = step if number == vision.fine else fine
    if vision.image_size % vision.patch_size or vision.patch_size % max(1, fine):
        yield "its tower's pictures are no whole number of fused states"
    if vision.deepstack or vision.taps:
        yield "a tower of convolutions gives no further levels of features"


def _windows(vision: QwenVit) -> Iterator[str]:
    if isinstance(vision, SheetVit):
        if vision.window is None or vision.table != vision.window or vision.full or vision.deepstack:
            yield "the squares of its tower's sheet are no windows with a row of the table for each patch"
        elif 2 * vision.margin >= vision.window:
            yield "its tower's crops have nothing but margins"
    if vision.window is not None and vision.window % vision.merge:
        yield "the window of its tower is no multiple of spatial_merge_size"
    if vision.kernel % 2 == 0:
        yield f"the convolution of its tower takes {vision.kernel} patches per side, expected an odd number"
    if vision.hidden_size // vision.attention.heads % 4:
        yield "heads of its tower are no multiple of 4, for RoPE over rows and columns"
    if isinstance(vision, HalvedVit) and (vision.halved >= vision.num_layers or vision.window or vision.deepstack):
        yield "its tower joins neighbours behind a layer that it has not, or has windows or further levels beside that"
    if vision.resample != "none" and vision.table**2 > limits.PATCHES:
        yield f"its tower has a table of {vision.table} x {vision.table} positions, expected at most {limits.PATCHES}"


def _projector(spec: ModelSpec, steps: tuple[Step, ...]) -> Iterator[str]:
    vision = spec.vision
    taps = getattr(vision, "taps", ()) if steps is spec.projector else ()
    width = getattr(vision, "width", vision.hidden_size * max(1, len(taps)))
    for step in steps:
        if isinstance(step, Shuffle | Group | Pool | Average):
            if step.width != width:
                yield f"its projector takes {step.width} channels together where {width} come"
            if not isinstance(step, Pool | Average):
                width *= (step.scale if isinstance(step, Shuffle) else step.side) ** 2
        elif isinstance(step, Linear | Gated):
            width = step.rows
        elif isinstance(step, Positions | Resample) and step.width != width:
            yield f"its projector adds positions of {step.width} channels where {width} come"
        elif isinstance(step, Resample) and (step.width % step.heads or getattr(vision, "places", 0) != step.width):
            yield f"its projector attends by {step.heads} heads to places that its tower does not give"
        elif isinstance(step, WindowQueries):
            width = step.rows * len(step.states)
        elif isinstance(step, Queries):
            return
    levels = sum(step.levels for step in steps if isinstance(step, WindowQueries))
    if width != spec.decoder.hidden_size * (1 + levels):
        yield f"its projector gives {width} channels and the decoder takes {spec.decoder.hidden_size}"


def _queries(vision: Vit, side: int, step: WindowQueries) -> Iterator[str]:
    (attention,) = step.block.mixers or (None,)
    if not isinstance(attention, Attention) or attention.heads * attention.head_dim != step.width:
        yield "its projector's queries have other attention than their width"
    if step.window % step.query or side % step.window:
        yield f"its projector's windows of {step.window} do not fit {side} patches per side, or its queries them"
    if len(step.states) != len(step.corners) or max(step.states, default=-1) + 1 != max(1, len(vision.taps)):
        yield "its projectors read other states than the tower gives"
    if max(step.corners, default=-1) >= 0 and step.scale != 2:
        yield f"its projector takes one of 2 x 2 neighbours where {step.scale} x {step.scale} have a query"
    if step.width != vision.hidden_size:
        yield f"its projector takes {step.width} channels of a state, which has {vision.hidden_size}"


def _attentions(text: Decoder) -> list[Attention]:
    return [mixer for block in text.blocks for mixer in block.mixers if isinstance(mixer, Attention)]
