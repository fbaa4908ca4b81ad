"""What families share: the SigLIP tower and the Llama decoder, their configs and where their tensors stand.

Options and defaults follow transformers' models/{siglip,smolvlm,idefics3,llama}: a field that config.json leaves out
has the default of the config class there (published SmolVLMs leave out half of the vision fields).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families.config import Section
from edgevlm.errors import EdgeVLMError
from edgevlm.models.spec import DecoderSpec, ModelSpec, RopeScaling, VisionSpec
from edgevlm.types import F32, I64

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_HARMLESS = (
    ".position_ids",
    ".inv_freq",
)  # buffers that old versions of transformers saved; all are computed


@dataclass(frozen=True)
class Source:
    """One tensor of the tree: its Hugging Face name, its shape, and which rows to take (None: all)."""

    name: str
    shape: tuple[int, ...]
    rows: I64 | None = None


class MappedWeights:
    """A checkpoint's tensors under edgevlm's canonical names."""

    def __init__(self, checkpoint: Checkpoint, sources: dict[str, Source]) -> None:
        self._checkpoint = checkpoint
        self._sources = sources

    def names(self) -> list[str]:
        return list(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sources[name].shape

    def stored_name(self, name: str) -> str:
        """The tensor's name in the checkpoint."""
        return self._sources[name].name

    def dtype(self, name: str) -> str:
        """How the checkpoint stores the tensor: "float32", "float16" or "bfloat16"."""
        return self._checkpoint.dtype(self._sources[name].name)

    def read(self, name: str) -> F32:
        """One tensor as a new C-contiguous float32 array."""
        source = self._sources[name]
        tensor = self._checkpoint.read(source.name)
        return tensor if source.rows is None else tensor[source.rows]


SMOLVLM_DEFAULTS = {"image_size": 224, "patch_size": 32, "hidden_size": 1152}


def read_vision(config: Section, defaults: dict[str, int] = SMOLVLM_DEFAULTS) -> VisionSpec:
    return VisionSpec(
        image_size=config.side("image_size", defaults["image_size"]),
        patch_size=config.side("patch_size", defaults["patch_size"]),
        hidden_size=config.count("hidden_size", defaults["hidden_size"]),
        intermediate_size=config.count("intermediate_size", 3072),
        num_layers=config.count("num_hidden_layers", 12),
        num_heads=config.count("num_attention_heads", 16),
        layer_norm_eps=config.number("layer_norm_eps", 1e-6),
        activation=config.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS),
        num_channels=int(config.choice("num_channels", 3, {3: "3"})),
    )


def read_decoder(config: Section, *, tied: bool) -> DecoderSpec:
    config.choice("model_type", "llama", {"llama": "llama"})
    config.choice("hidden_act", "silu", {"silu": "silu"})
    hidden, heads = config.count("hidden_size", 4096), config.count("num_attention_heads", 32)
    theta, scaling = _rope(config)
    return DecoderSpec(
        vocab_size=config.count("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=config.count("intermediate_size", 11008),
        num_layers=config.count("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=config.count("num_key_value_heads", heads),
        head_dim=config.count("head_dim", max(1, hidden // heads)),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6 if config.given else 1e-5),
        rope_theta=theta,
        context_length=config.count("max_position_embeddings", 2048),
        tie_embeddings=tied,
        rope_scaling=scaling,
    )


def _rope(config: Section) -> tuple[float, RopeScaling | None]:
    """Base and scaling: transformers 4 has rope_theta beside rope_scaling, transformers 5 both in rope_parameters."""
    rope = config.section("rope_scaling") if config.value("rope_scaling") else config.section("rope_parameters")
    kind = rope.value("rope_type") or rope.value("type") or "default"
    if kind not in ("default", "llama3"):
        raise EdgeVLMError(
            f"config.json asks for the RoPE scaling {kind!r} ({rope.where}): edgevlm supports 'default' and "
            "'llama3'; use a checkpoint with one of these."
        )
    for section in (rope, config):
        if section.number("partial_rotary_factor", 1.0) != 1.0:
            raise EdgeVLMError(
                f"{section.where}: partial_rotary_factor is not 1: edgevlm supports RoPE over whole heads "
                "only; use a SmolVLM or SmolVLM2 checkpoint."
            )
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    if kind == "default":
        return theta, None
    scaling = RopeScaling(
        rope.number("factor"),
        rope.number("low_freq_factor"),
        rope.number("high_freq_factor"),
        original_context=rope.count("original_max_position_embeddings"),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise EdgeVLMError(f"{rope.where}: low_freq_factor is not below high_freq_factor: download config.json again.")
    return theta, scaling


def is_tied(checkpoint: Checkpoint, config: Section, text: Section, head: str, embed: str) -> bool:
    """As transformers: the top-level field decides, except that a stored head which differs stays a head.

    A file without a head can only mean a tied one, where either config says so.
    """
    names, tied = checkpoint.names(), config.flag("tie_word_embeddings")
    if head not in names:
        return tied or text.flag("tie_word_embeddings")
    return tied and embed in names and checkpoint.same(head, embed)


def check_spec(spec: ModelSpec) -> None:
    vision, text, scale = spec.vision, spec.decoder, spec.projector.scale_factor
    problems = [
        (max(vision.num_layers, text.num_layers) > 1000, "it asks for more than 1000 layers"),
        (vision.image_size > 8192, "the vision image_size is over 8192"),
        (
            vision.hidden_size % vision.num_heads,
            "the vision hidden_size is no multiple of num_attention_heads",
        ),
        (vision.image_size < vision.patch_size, "the vision image_size is smaller than patch_size"),
        (
            vision.patches_per_side % scale,
            f"{vision.patches_per_side} patches per side are no multiple of scale_factor",
        ),
        (text.num_heads % text.num_kv_heads, "num_attention_heads is no multiple of num_key_value_heads"),
        (text.head_dim % 2, f"head_dim is {text.head_dim} and RoPE needs an even one"),
        (
            spec.image_token_id >= text.vocab_size,
            f"image_token_id {spec.image_token_id} is outside the vocabulary",
        ),
    ]
    for wrong, sentence in problems:
        if wrong:
            raise EdgeVLMError(f"config.json does not describe a model: {sentence}; download it again.")


@dataclass
class Sources:
    """Where each canonical weight stands in the files, gathered part by part."""

    found: dict[str, Source] = field(default_factory=dict)

    def add(self, name: str, source: str, *shape: int, rows: I64 | None = None) -> None:
        self.found[name] = Source(source, shape, rows)

    def linear(self, name: str, source: str, rows: int, columns: int, *, bias: bool) -> None:
        self.add(f"{name}.weight", f"{source}.weight", rows, columns)
        if bias:
            self.add(f"{name}.bias", f"{source}.bias", rows)

    def vision(self, spec: VisionSpec, prefix: str, rows: I64 | None) -> None:
        """The SigLIP tower below `prefix`; rows: of the position table, in patch order (None: as they stand)."""
        width, patch = spec.hidden_size, spec.patch_size

        def norm(name: str, source: str) -> None:
            self.add(f"{name}.weight", f"{source}.weight", width)
            self.add(f"{name}.bias", f"{source}.bias", width)

        embeddings = f"{prefix}embeddings"
        self.add("vision.patch_embedding.weight", f"{embeddings}.patch_embedding.weight", width, 3, patch, patch)
        self.add("vision.patch_embedding.bias", f"{embeddings}.patch_embedding.bias", width)
        table = f"{embeddings}.position_embedding.weight"
        self.add("vision.position_embedding", table, spec.num_patches, width, rows=rows)
        for i in range(spec.num_layers):
            name, source = f"vision.layers.{i}", f"{prefix}encoder.layers.{i}"
            norm(f"{name}.norm1", f"{source}.layer_norm1")
            for short, long in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
                self.linear(f"{name}.{short}", f"{source}.self_attn.{long}", width, width, bias=True)
            norm(f"{name}.norm2", f"{source}.layer_norm2")
            self.linear(f"{name}.fc1", f"{source}.mlp.fc1", spec.intermediate_size, width, bias=True)
            self.linear(f"{name}.fc2", f"{source}.mlp.fc2", width, spec.intermediate_size, bias=True)
        if spec.post_norm:
            norm("vision.post_norm", f"{prefix}post_layernorm")

    def decoder(self, spec: DecoderSpec, prefix: str, head: str, text: Section) -> None:
        """The Llama below `prefix`, and its head where it has one of its own."""
        hidden, inner = spec.hidden_size, spec.intermediate_size
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        attention_bias, mlp_bias = text.flag("attention_bias"), text.flag("mlp_bias")
        self.add("decoder.embed.weight", f"{prefix}embed_tokens.weight", spec.vocab_size, hidden)
        for i in range(spec.num_layers):
            name, source = f"decoder.layers.{i}", f"{prefix}layers.{i}"
            self.add(f"{name}.norm1.weight", f"{source}.input_layernorm.weight", hidden)
            self.linear(f"{name}.q", f"{source}.self_attn.q_proj", queries, hidden, bias=attention_bias)
            self.linear(f"{name}.k", f"{source}.self_attn.k_proj", keys, hidden, bias=attention_bias)
            self.linear(f"{name}.v", f"{source}.self_attn.v_proj", keys, hidden, bias=attention_bias)
            self.linear(f"{name}.o", f"{source}.self_attn.o_proj", hidden, queries, bias=attention_bias)
            self.add(f"{name}.norm2.weight", f"{source}.post_attention_layernorm.weight", hidden)
            self.linear(f"{name}.gate", f"{source}.mlp.gate_proj", inner, hidden, bias=mlp_bias)
            self.linear(f"{name}.up", f"{source}.mlp.up_proj", inner, hidden, bias=mlp_bias)
            self.linear(f"{name}.down", f"{source}.mlp.down_proj", hidden, inner, bias=mlp_bias)
        self.add("decoder.norm.weight", f"{prefix}norm.weight", hidden)
        if not spec.tie_embeddings:
            self.add("decoder.head.weight", head, spec.vocab_size, hidden)

    def weights(self, checkpoint: Checkpoint, unused: Callable[[str], bool]) -> MappedWeights:
        """The tree, once every tensor is there with its shape, and none more but buffers and `unused` ones."""
        names, sources = set(checkpoint.names()), self.found
        for source in sources.values():
            if source.name not in names:
                raise EdgeVLMError(
                    f"{checkpoint.folder} lacks the tensor '{source.name}' that its config.json asks for: "
                    "download it again."
                )
            if (found := checkpoint.shape(source.name)) != source.shape:
                raise EdgeVLMError(
                    f"{checkpoint.folder} holds '{source.name}' with the shape {list(found)} where its "
                    f"config.json asks for {list(source.shape)}: config and weights belong to different models; "
                    "download both again."
                )
        known = {source.name for source in sources.values()}
        extra = sorted(n for n in names - known if not n.endswith(_HARMLESS) and not unused(n))
        if extra:
            raise EdgeVLMError(
                f"{checkpoint.folder} holds the tensor '{extra[0]}', which no {checkpoint.config['model_type']} "
                f"model has ({len(extra)} such): it is of another architecture, or quantized; use the original "
                "checkpoint."
            )
        return MappedWeights(checkpoint, sources)


def patch_positions(side: int) -> I64:
    """The row of the position table that each of side x side patches takes, in raster order.

    transformers buckets float32 fractions i/side, and rounding puts some patches of some sizes (19, 25, 29)
    into their neighbour's bucket. Models are trained with that, so it is reproduced to the bit. At the
    published sizes (26, 27 and 32 patches per side) every patch has its own row.
    """
    fractions = np.arange(side, dtype=np.float32) * (np.float32(1.0) / np.float32(side))
    fractions = np.minimum(fractions, np.float32(1.0 - 1e-6))
    buckets = np.searchsorted(_torch_arange(1 / side, 1.0, 1 / side), fractions, side="right")
    rows: I64 = (buckets[:, None] * side + buckets[None, :]).reshape(-1).astype(np.int64)
    return rows


def _torch_arange(start: float, end: float, step: float) -> F32:
    """torch.arange in float32 as its AVX2 kernel computes it
    (aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp).

    Whole pairs of 8-lane vectors round their first lane to float32 before the lanes are added in double;
    the rest is
    computed in double. That moves some boundaries by one unit in the last place, which decides between
    buckets.
    """
    count = math.ceil((end - start) / step)
    index = np.arange(count)
    exact = start + step * index
    bases = exact[index // 8 * 8].astype(np.float32).astype(np.float64)
    in_vectors = index < count // 16 * 16
    return np.where(in_vectors, bases + step * (index % 8), exact).astype(np.float32)
