"""The onnx/ folder of a bundle on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.layout import Layout, decoder_inputs
from edgevlm.models.components import position_inputs
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder, states
from edgevlm.runtimes.base import F32, I64
from edgevlm.runtimes.eager import context_error
from edgevlm.runtimes.ort.products import session_options, signed_saturates

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

# A second decoder graph for prompts pays from here on; below it, starting it costs more than it saves.
PREFILL_POSITIONS = 16
KV_ROUND = 128  # positions: the smallest KV buffer, and what every first buffer is rounded up to

Array = np.ndarray[Any, Any]
Providers = list[tuple[str, dict[str, str]]]

_CPU = "CPUExecutionProvider"
# By device, in order of preference: (execution provider, its options, the package that has it). "gpu" leaves TensorRT
# out, which compiles for minutes and has no blockwise operators, and "cpu" XNNPACK, which has none of the fused ones:
# both are there by their own names, for fp16 and fp32 graphs of standard operators.
_PROVIDERS: dict[str, tuple[tuple[str, dict[str, str], str], ...]] = {
    "cpu": ((_CPU, {}, "onnxruntime"),),
    "gpu": (
        ("CUDAExecutionProvider", {}, "onnxruntime-gpu (NVIDIA)"),
        ("MIGraphXExecutionProvider", {}, "onnxruntime-migraphx (AMD)"),
        ("DmlExecutionProvider", {}, "onnxruntime-directml (Windows)"),
        ("WebGpuExecutionProvider", {}, "onnxruntime-webgpu"),
        ("CoreMLExecutionProvider", {"MLComputeUnits": "CPUAndGPU"}, "onnxruntime (macOS)"),
    ),
    "npu": (
        ("QNNExecutionProvider", {}, "onnxruntime-qnn (Qualcomm)"),
        ("CoreMLExecutionProvider", {"MLComputeUnits": "CPUAndNeuralEngine"}, "onnxruntime (macOS)"),
    ),
    "cuda": (("CUDAExecutionProvider", {}, "onnxruntime-gpu (NVIDIA)"),),
    "tensorrt": (("TensorrtExecutionProvider", {}, "onnxruntime-gpu (NVIDIA, with TensorRT installed)"),),
    "coreml": (("CoreMLExecutionProvider", {}, "onnxruntime (macOS)"),),
    "webgpu": (("WebGpuExecutionProvider", {}, "onnxruntime-webgpu"),),
    "xnnpack": (("XnnpackExecutionProvider", {}, "a build of onnxruntime with --use_xnnpack"),),
    "qnn": (("QNNExecutionProvider", {}, "onnxruntime-qnn (Qualcomm)"),),
}


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported with its telemetry off.

    Official builds since 1.29 write a device id and a database into the home folder when they are imported.
    `disable_telemetry_events()` comes too late to stop that; only this variable, set before the import, does.
    Where the program imported onnxruntime before, nothing can be changed any more.
    Raises EdgeVLMError where the package is missing or does not load.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise EdgeVLMError(
            f"onnxruntime could not be imported ({error}): install it with `pip install onnxruntime`, "
            "which the plain `pip install edgevlm` also does."
        ) from None
    return onnxruntime


class OrtRuntime:
    """`Runtime` on ONNX Runtime: three or four sessions, batch 1.

    parts: "vision" loads the encoder alone, "text" everything else, for one half of a pair of engines.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        portable: bool = False,
        parts: str = "all",
    ) -> None:
        target = bundle.manifest.targets.get("onnx")
        if target is None:
            raise EdgeVLMError(
                f"The bundle '{bundle.folder}' holds no ONNX graphs: export it again with them, "
                f"`edgevlm export MODEL --target onnx -o {bundle.folder} --force`."
            )
        ort = import_onnxruntime()
        self._spec = bundle.manifest.spec
        providers = _providers(ort, device)
        try:
            graphs = target["graphs"]
            key = "portable" if portable else "file"
            files = {graph: bundle.path(entry[key]) for graph, entry in graphs.items()}
            shared = bool(graphs["decoder"]["shared_kv"]) and not portable
        except (KeyError, TypeError, AttributeError):
            raise EdgeVLMError(
                f"The manifest of '{bundle.folder}' does not describe its ONNX graphs: export it again."
            ) from None

        unsigned = not portable and signed_saturates(ort)  # standard operators multiply in float32

        def load(graph: str, session_threads: int | None) -> Any:
            if graph not in files:
                raise EdgeVLMError(f"The bundle '{bundle.folder}' has no graph '{graph}': export it again.")
            return _open_session(ort, files[graph], providers, session_threads, unsigned)

        self._layout = Layout(0)
        self._vision: Any = None
        self._embed: Any = None
        self._decoders: list[Any] = []
        self._cache: _Cache | None = None
        if parts != "text":
            self._vision = load("vision_encoder", threads)
        if parts != "vision":
            # Looking up rows needs no pool; an idle one would spin beside the decoder's after every token.
            self._embed = load("embed_tokens", 1)
            self._decoders.append(load("decoder", threads))
            if "decoder_prefill" in files:
                self._decoders.append(load("decoder_prefill", threads))
            cache = SharedCache if shared else PassedCache
            self._cache = cache(ort, self._spec.decoder, self._decoders)
        count = "one thread per core" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}"
        self.device = f"CPU ({count})" if device == "cpu" else f"{providers[0][0]}, CPU for what it lacks"

    def encode(self, pixels: F32) -> F32:
        # One view per call: peak memory is one view's, and where activations are quantized per call their
        # range is one view's too, so a view's features do not depend on the views that it arrives with.
        return np.concatenate(
            [self._vision.run(["image_features"], vision_feeds(self._spec, view))[0] for view in pixels]
        )

    def encode_together(self, pixels: F32) -> F32:
        """As `encode`, in one call and beside a masked tile, which the graph drops: what the gate holds it to."""
        shape = (1, len(pixels) + 1, *pixels.shape[1:])
        padded = np.zeros(shape, np.float32)
        padded[0, :-1] = pixels
        mask = np.ones((1, len(pixels) + 1, *pixels.shape[2:]), np.bool_)
        mask[0, -1] = False
        feeds = {"pixel_values": padded, "pixel_attention_mask": mask}
        features: F32 = self._vision.run(["image_features"], feeds)[0]
        return features

    def prefill_padded(self, prompts: Sequence[F32]) -> F32:
        """Logits (B, V) after each of several prompts (S, D), padded on the right into one batch; no cache is kept."""
        longest = max(map(len, prompts))
        embeds = np.zeros((len(prompts), longest, self._spec.decoder.hidden_size), np.float32)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        past = {
            f"past_key_values.{name}": empty for name, empty in empty_states(self._spec.decoder, len(prompts)).items()
        }
        session = self._decoders[_which(self._decoders, longest)]
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, **past}
        logits: F32 = session.run(["logits"], feeds)[0][:, 0]
        return logits

    def embed(self, ids: I64) -> F32:
        rows: F32 = self._embed.run(["inputs_embeds"], {"input_ids": ids[None]})[0][0]
        return rows

    def prefill(self, embeds: F32, layout: Layout | None = None) -> F32:
        assert self._cache is not None, "the runtime is closed"
        d = self._spec.decoder
        if layout is not None:
            self._layout = layout
        return self._cache.run(embeds, position_feeds(d, self._layout, self._cache.position, len(embeds)))

    def step(self, token: int) -> F32:
        return self.prefill(self.embed(np.array([token], np.int64)))

    @property
    def position(self) -> int:
        return self._cache.position if self._cache else 0

    def truncate(self, length: int) -> None:
        if self._cache:
            self._cache.position = min(self._cache.position, length)

    def close(self) -> None:
        self._vision = self._embed = self._cache = None
        self._decoders = []


class _Cache(Protocol):
    position: int

    def run(self, embeds: F32, inputs: Mapping[str, Array]) -> F32: ...


class SharedCache:
    """One buffer per layer and side, bound as past and as present: GroupQueryAttention appends in place.

    A buffer starts at the positions that the first call needs, rounded up to `KV_ROUND`, and doubles when it
    is full (one copy of what it holds), up to the context length: a model of 8192 positions never allocates
    them for a short question. Forgetting is free: the kernel reads as far as the attention mask is long.
    """

    def __init__(self, ort: Any, spec: Decoder, sessions: list[Any]) -> None:
        self.position = 0
        self.capacity = 0
        self._ort, self._spec, self._sessions = ort, spec, sessions
        self._bindings = [session.io_binding() for session in sessions]
        self._buffers: dict[str, F32] = {}
        self._mask = np.empty((1, 0), np.int64)
        self._logits = np.empty((1, 1, spec.vocab_size), np.float32)

    def run(self, embeds: F32, inputs: Mapping[str, Array]) -> F32:
        """Append positions (S, D); logits (V,) after the last. inputs: what else the graph takes."""
        total = self.position + len(embeds)
        if total > self.capacity:
            self._grow(total)
        which = _which(self._sessions, len(embeds))
        binding = self._bindings[which]
        given = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),
            "attention_mask": self._mask[:, :total],
        }
        given |= {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in given.items():  # the arrays have to live until the call ends
            self._bind(binding, name, value)
        self._sessions[which].run_with_iobinding(binding)
        self.position = total
        logits: F32 = self._logits[0, 0].copy()
        return logits

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
            buffer = np.zeros((1, *(capacity if size is None else size for size in state.shape)), np.float32)
            if kept:
                buffer[:, :, :kept] = self._buffers[state.name][:, :, :kept]
            self._buffers[state.name] = buffer
        self._mask = np.ones((1, capacity), np.int64)
        for binding in self._bindings:
            for name, buffer in self._buffers.items():
                value = self._ort.OrtValue.ortvalue_from_numpy(buffer)
                binding.bind_ortvalue_input(f"past_key_values.{name}", value)
                binding.bind_ortvalue_output(f"present.{name}", value)
            binding.bind_ortvalue_output("logits", self._ort.OrtValue.ortvalue_from_numpy(self._logits))
        self.capacity = capacity

    def _bind(self, binding: Any, name: str, array: np.ndarray[Any, Any]) -> None:
        binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))


class PassedCache:
    """Past goes in, past and new come out, a copy for each call: what graphs of standard operators can do."""

    def __init__(self, ort: Any, spec: Decoder, sessions: list[Any]) -> None:
        self.position = 0
        self._ort, self._spec, self._sessions = ort, spec, sessions
        self._names = [state.name for state in states(spec)]
        self._past: list[Any] = []  # OrtValues, fed back without passing through numpy

    def run(self, embeds: F32, inputs: Mapping[str, Array]) -> F32:
        """Append positions (S, D); logits (V,) after the last. inputs: what else the graph takes."""
        spec, position = self._spec, self.position
        total = position + len(embeds)
        if total > spec.context_length:
            raise context_error(total, spec.context_length)
        value = self._ort.OrtValue.ortvalue_from_numpy
        if not self._past:
            self._past = [value(empty) for empty in empty_states(spec).values()]
        elif self._past[0].shape()[2] > position:
            self._past = [value(np.ascontiguousarray(past.numpy()[:, :, :position])) for past in self._past]
        feeds = {
            "inputs_embeds": value(np.ascontiguousarray(embeds[None], np.float32)),
            "attention_mask": value(np.ones((1, total), np.int64)),
            **{name: value(np.ascontiguousarray(array)) for name, array in inputs.items()},
            **{f"past_key_values.{name}": past for name, past in zip(self._names, self._past, strict=True)},
        }
        session = self._sessions[_which(self._sessions, len(embeds))]
        outputs = session.run_with_ort_values(["logits", *(f"present.{name}" for name in self._names)], feeds)
        self._past = outputs[1:]
        self.position = total
        logits: F32 = outputs[0].numpy()[0, -1]
        return logits


def vision_feeds(spec: ModelSpec, view: F32) -> dict[str, Array]:
    """The encoder graph's inputs for normalized pixels (3, H, W)."""
    feeds: dict[str, Array] = spec.vision.feeds(view)
    if "pixels" not in feeds:
        return feeds
    # transformers' batch of pictures with as many tiles as the one with most: here one of each, all real.
    return {"pixel_values": feeds["pixels"][None], "pixel_attention_mask": np.ones((1, 1, *view.shape[1:]), np.bool_)}


def position_feeds(d: Decoder, layout: Layout, past: int, new: int) -> dict[str, Array]:
    """What a decoder graph takes where positions are not plain indices: RoPE rows for the whole cache.

    Only the new positions' rows are read, so that those of the past can be zeros.
    """
    if d.is_plain:
        return {}
    inputs = decoder_inputs(d, layout, past, new)
    return {name: np.pad(inputs[name], ((past, 0), (0, 0))) for name in position_inputs(d)}


def empty_states(spec: Decoder, batch: int = 1) -> dict[str, F32]:
    """What a decoder's graph is given before the first position, by state name."""
    return {
        state.name: np.zeros((batch, *(0 if size is None else size for size in state.shape)), np.float32)
        for state in states(spec)
    }


def _which(sessions: list[Any], positions: int) -> int:
    return 1 if len(sessions) > 1 and positions >= PREFILL_POSITIONS else 0


def _providers(ort: Any, device: str) -> Providers:
    available = ort.get_available_providers()
    for provider, options, _ in _PROVIDERS[device]:
        if provider in available:
            return [(provider, options)] if provider == _CPU else [(provider, options), (_CPU, {})]
    packages = ", ".join(package for _, _, package in _PROVIDERS[device])
    raise EdgeVLMError(
        f"The installed onnxruntime {ort.__version__} has no {device.upper()} support: replace it with the "
        f"package for your hardware ({packages}), or use --device cpu."
    )


def _open_session(ort: Any, path: Path, providers: Providers, threads: int | None, unsigned: bool) -> Any:
    options = session_options(ort, unsigned)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    if path.name.startswith("vision"):
        # Threads that spin for a while after the last tile would take the cores from the decoder's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # The decoder's input shapes differ with every token, and the engine would keep one memory plan for each.
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the engine's exceptions share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EdgeVLMError(
            f"onnxruntime {ort.__version__} cannot load '{path}' ({reason}): the file is damaged, incomplete "
            "or needs a newer onnxruntime; check the bundle with `edgevlm verify`, or export it again."
        ) from None
    if providers[0][0] not in session.get_providers():
        raise EdgeVLMError(
            f"onnxruntime has {providers[0][0]} but could not start it: install the driver and libraries "
            "that it needs, or use --device cpu."
        )
    return session
