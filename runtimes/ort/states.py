"""What a decoder's graph keeps between calls, by the declaration of its states, and what else a call feeds it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.components import HIDDEN, position_inputs, rope_names
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder, State, states, with_cache
from edgevlm.runtimes.base import context_error
from edgevlm.runtimes.ort.check import KEEP
from edgevlm.types import F32

# A second decoder graph for prompts pays from here on; below it, starting it costs more than it saves.
PREFILL_POSITIONS = 16
MOST_STEPS = PREFILL_POSITIONS - 1  # positions whose logits a call gives: the decoder's own graph reads as many
KV_ROUND = 128  # positions: the smallest KV buffer, and what every first buffer is rounded up to

Array = np.ndarray[Any, Any]


class Cache(Protocol):
    position: int
    hidden: F32  # (1, 1, D) of the last call that gave one position's logits, where the graph gives it

    def empty(self, batch: int) -> dict[str, Array]:
        """What a graph is given before the first position, by state name."""

    def make_room(self, positions: int) -> None:
        """For so many in all; EdgeVLMError beyond the context length."""

    def run(self, embeds: F32, inputs: Mapping[str, Array], keep: int = 1) -> F32:
        """Append positions (S, D); logits (keep, V) after the last ones. inputs: what else the graph takes."""

    def held(self, kinds: Collection[str]) -> dict[str, Array]:
        """Copies of the states of these kinds after the last position, without their batch axis."""

    def put(self, length: int, held: Mapping[str, Array]) -> None:
        """Hold `length` positions: states that `held` has are those, others go back to it."""


class SharedCache:
    """One buffer per growing state, bound as past and as present: GroupQueryAttention appends in place.

    A buffer starts at the positions that the first call needs, rounded up to `KV_ROUND`, and doubles when it is full
    (one copy of what it holds), up to the context length: a model of 8192 positions never allocates them for a short
    question. Forgetting is free: the kernel reads as far as the attention mask is long.
    A state that is replaced has two buffers, which take turns as past and as present.
    """

    def __init__(self, ort: Any, spec: Decoder, sessions: list[Any], hidden: bool = False) -> None:
        """hidden: whether the graph gives hidden states, too."""
        self.position = 0
        self.capacity = 0
        self._ort, self._spec, self._sessions = ort, spec, sessions
        self._bindings = [session.io_binding() for session in sessions]
        self._buffers: dict[str, Array] = {}
        self._turns = {
            state.name: (_zeros(state, 1, 0), _zeros(state, 1, 0)) for state in states(spec) if state.kind == "replace"
        }
        self._mask = np.empty((1, 0), np.int64)
        self._logits = np.empty((1, 1, spec.vocab_size), np.float32)
        self.hidden = np.empty((1, 1, spec.hidden_size), np.float32)
        self._given = {"logits": self._logits} | ({HIDDEN: self.hidden} if hidden else {})
        self._keep = np.array(1)

    def empty(self, batch: int) -> dict[str, Array]:
        return empty_states(states(self._spec), batch)

    def make_room(self, positions: int) -> None:
        if positions > self.capacity:
            self._grow(positions)

    def run(self, embeds: F32, inputs: Mapping[str, Array], keep: int = 1) -> F32:
        total = self.position + len(embeds)
        self.make_room(total)
        if self.position == 0:
            for past, _ in self._turns.values():
                past.fill(0)
        if keep != 1 or self._keep != 1:  # a binding would give what it made once for the next call
            self._bind_logits(keep)
        which = which_session(self._sessions, len(embeds))
        binding = self._bindings[which]
        given: dict[str, Array] = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),
            "attention_mask": self._mask[:, :total],
        }
        given |= {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in given.items():  # the arrays have to live until the call ends
            self._bind(binding, name, value)
        self._sessions[which].run_with_iobinding(binding)
        self._turns = {name: (present, past) for name, (past, present) in self._turns.items()}
        self._bind_states(self._turns)
        self.position = total
        logits: F32 = self._logits if keep == 1 else binding.get_outputs()[0].numpy()  # bound first
        rows: F32 = logits[0].copy()
        return rows

    def held(self, kinds: Collection[str]) -> dict[str, Array]:
        found = {}
        for state in states(self._spec):
            if state.kind == "replace" and state.kind in kinds:
                found[state.name] = self._turns[state.name][0][0].copy()
            elif state.kind in kinds:
                found[state.name] = self._buffers[state.name][0, :, : self.position].copy()
        return found

    def put(self, length: int, held: Mapping[str, Array]) -> None:
        self.make_room(length)
        for name, value in held.items():
            if name in self._turns:
                self._turns[name][0][0] = value
            else:
                self._buffers[name][0, :, :length] = value
        self.position = length

    def _grow(self, total: int) -> None:
        spec = self._spec
        if total > spec.context_length:
            raise context_error(total, spec.context_length)
        wanted = max(2 * self.capacity, -(-total // KV_ROUND) * KV_ROUND)
        capacity = min(wanted, spec.context_length)
        for binding in self._bindings:  # they hold the old buffers, which are freed one by one below
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        self.capacity = 0  # until every layer has grown: an interrupt must not leave a mixture in use
        kept = self.position
        for state in states(spec):
            if state.kind == "replace":
                continue
            buffer = _zeros(state, 1, capacity)
            if kept:
                buffer[:, :, :kept] = self._buffers[state.name][:, :, :kept]
            self._buffers[state.name] = buffer
        self._mask = np.ones((1, capacity), np.int64)
        self._bind_logits(1)
        self._bind_states({name: (buffer, buffer) for name, buffer in self._buffers.items()} | self._turns)
        self.capacity = capacity

    def _bind_logits(self, keep: int) -> None:
        """Where they go, and hidden states with them. The graph declares one row, and the engine takes no larger buffer
        for more."""
        self._keep = np.array(keep)
        for binding in self._bindings:
            for name, array in self._given.items():
                if keep == 1:
                    binding.bind_ortvalue_output(name, self._ort.OrtValue.ortvalue_from_numpy(array))
                else:
                    binding.bind_output(name)
            self._bind(binding, KEEP, self._keep)

    def _bind_states(self, buffers: Mapping[str, tuple[Array, Array]]) -> None:
        """Past and present of each, in every session."""
        for name, (past, present) in buffers.items():
            given, taken = (self._ort.OrtValue.ortvalue_from_numpy(buffer) for buffer in (past, present))
            for binding in self._bindings:
                binding.bind_ortvalue_input(f"past_key_values.{name}", given)
                binding.bind_ortvalue_output(f"present.{name}", taken)

    def _bind(self, binding: Any, name: str, array: np.ndarray[Any, Any]) -> None:
        binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))


class PassedCache:
    """Past goes in, past and new come out, a copy for each call: what graphs of standard operators can do."""

    def __init__(self, ort: Any, spec: Decoder, sessions: list[Any], hidden: bool = False) -> None:
        self.position = 0
        self.hidden = np.empty((1, 1, spec.hidden_size), np.float32)
        self._ort, self._spec, self._sessions = ort, spec, sessions
        self._wanted = ["logits", *[HIDDEN] * hidden]
        self._states = states(with_cache(spec, "float32"))
        self._past: list[Any] = []  # OrtValues, fed back without passing through numpy

    def empty(self, batch: int) -> dict[str, Array]:
        return empty_states(self._states, batch)

    def make_room(self, positions: int) -> None:
        if positions > self._spec.context_length:
            raise context_error(positions, self._spec.context_length)

    def run(self, embeds: F32, inputs: Mapping[str, Array], keep: int = 1) -> F32:
        position = self.position
        total = position + len(embeds)
        self.make_room(total)
        value = self._ort.OrtValue.ortvalue_from_numpy
        if position == 0:
            self._past = [value(empty) for empty in self.empty(1).values()]
        for number, (state, past) in enumerate(zip(self._states, self._past, strict=True)):
            if state.kind == "append" and past.shape()[2] > position:
                self._past[number] = value(np.ascontiguousarray(past.numpy()[:, :, :position]))
        names = [state.name for state in self._states]
        feeds = {
            "inputs_embeds": value(np.ascontiguousarray(embeds[None], np.float32)),
            "attention_mask": value(np.ones((1, total), np.int64)),
            **{name: value(np.ascontiguousarray(array)) for name, array in inputs.items()},
            **{f"past_key_values.{name}": past for name, past in zip(names, self._past, strict=True)},
            KEEP: value(np.array(keep)),
        }
        session = self._sessions[which_session(self._sessions, len(embeds))]
        outputs = session.run_with_ort_values([*self._wanted, *(f"present.{name}" for name in names)], feeds)
        self._past = outputs[len(self._wanted) :]
        if len(self._wanted) > 1:
            self.hidden = outputs[1].numpy()
        self.position = total
        logits: F32 = outputs[0].numpy()[0]
        return logits

    def held(self, kinds: Collection[str]) -> dict[str, Array]:
        found = {}
        for state, past in zip(self._states, self._past, strict=True):
            if state.kind in kinds:
                value = past.numpy()[0].copy()  # the engine's own memory, which the next call frees
                found[state.name] = value if state.kind == "replace" else value[:, : self.position]
        return found

    def put(self, length: int, held: Mapping[str, Array]) -> None:
        value = self._ort.OrtValue.ortvalue_from_numpy
        before = self._past or [None] * len(self._states)
        self._past = [
            value(np.ascontiguousarray(held[state.name][None])) if state.name in held else past
            for state, past in zip(self._states, before, strict=True)
        ]
        self.position = length


def vision_feeds(spec: ModelSpec, view: F32) -> dict[str, Array]:
    """The encoder graph's inputs for normalized pixels (3, H, W)."""
    feeds: dict[str, Array] = spec.vision.feeds(view)
    return tile_feeds(spec, feeds["pixels"]) if "pixels" in feeds else feeds


def tile_feeds(spec: ModelSpec, pixels: F32, padding: int = 0) -> dict[str, Array]:
    """The encoder graph's inputs for tiles (T, 3, S, S); where it takes a mask, `padding` more that it drops."""
    if not spec.masked_tiles:
        return {"pixel_values": pixels}
    # transformers' batch of pictures with as many tiles as the one with most: here one picture.
    padded = np.pad(pixels, ((0, padding), (0, 0), (0, 0), (0, 0)))
    mask = np.ones((1, len(padded), *pixels.shape[2:]), np.bool_)
    mask[:, len(pixels) :] = False
    return {"pixel_values": padded[None], "pixel_attention_mask": mask}


def position_feeds(d: Decoder, layout: Layout, past: int, new: int) -> dict[str, Array]:
    """What a decoder graph takes where positions are not plain indices: masks, and RoPE rows for the whole cache.

    Only the new positions' rows are read, so that those of the past can be zeros.
    """
    if d.is_plain:
        return {}
    inputs, rows = decoder_inputs(d, layout, past, new), rope_names(d)
    return {
        name: np.pad(inputs[name], ((past, 0), (0, 0))) if name in rows else inputs[name] for name in position_inputs(d)
    }


def empty_states(kept: Iterable[State], batch: int = 1) -> dict[str, Array]:
    """What a decoder's graph is given before the first position, by state name."""
    return {state.name: _zeros(state, batch, 0) for state in kept}


def _zeros(state: State, batch: int, positions: int) -> Array:
    return np.zeros((batch, *(positions if size is None else size for size in state.shape)), state.dtype)


def which_session(sessions: list[Any], positions: int) -> int:
    return 1 if len(sessions) > 1 and positions >= PREFILL_POSITIONS else 0
