"""The parts that a model is written and run as: signatures derived once, for emitters, manifests and runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevlm.models.blocks import mask_input, rope_inputs
from edgevlm.models.decoder import embed_tokens, head, hidden_states
from edgevlm.models.model import ModelSpec, feature_shape, image_features
from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Decoder, State, states
from edgevlm.models.tensor import Tensor

Values = dict[str, X]
HIDDEN = "hidden_state"  # of a decoder with a head beside it: what the last layer gives at the last position


@dataclass(frozen=True)
class Component:
    """One graph of a model: its inputs and outputs, its states between calls, and how to play it."""

    name: str  # "vision_encoder" | "embed_tokens" | "decoder"
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    states: tuple[State, ...]
    build: Callable[[Ops, Values], Values]


def components(spec: ModelSpec) -> list[Component]:
    """The graphs of a model, in the order of a run."""
    d = spec.decoder
    ids = {"input_ids": Tensor("int64", ("batch_size", "sequence_length"))}
    embeds = {"inputs_embeds": Tensor("float32", ("batch_size", "sequence_length", d.embed_width))}
    outputs = {"logits": Tensor("float32", ("batch_size", 1, d.vocab_size))}
    if spec.region is not None:
        outputs[HIDDEN] = Tensor("float32", ("batch_size", 1, d.hidden_size))

    def decoder(ops: Ops, values: Values) -> Values:
        states = hidden_states(ops, values["inputs_embeds"], d)
        found = {"logits": head(ops, states, d)}
        return found | {HIDDEN: ops.last(states)} if spec.region is not None else found

    return [
        Component(
            "vision_encoder", spec.vision.inputs(), {"image_features": feature_shape(spec)}, (),
            lambda ops, values: {"image_features": image_features(ops, spec, values)},
        ),
        Component(
            "embed_tokens", ids, embeds, (),
            lambda ops, values: {"inputs_embeds": embed_tokens(ops, values["input_ids"], d)},
        ),
        Component("decoder", embeds | position_inputs(d), outputs, tuple(states(d)), decoder),
    ]  # fmt: skip


def position_inputs(d: Decoder) -> dict[str, Tensor]:
    """What a decoder takes besides embeddings where positions are more than indices: nothing for a plain one."""
    if d.is_plain:
        return {}
    found: dict[str, Tensor] = {}
    for name, rope in d.ropes.items():
        found |= {part: Tensor("float32", ("sequence_length", rope.size // 2)) for part in rope_inputs(name)}
    if d.mask != "causal":
        for window in d.windows:
            found[mask_input(window)] = Tensor("bool", ("sequence_length", "total_sequence_length"))
    return found


def rope_names(d: Decoder) -> frozenset[str]:
    """The inputs that hold RoPE rows."""
    return frozenset(part for name in d.ropes for part in rope_inputs(name))
