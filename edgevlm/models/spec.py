"""What a vision-language model is: frozen dataclasses that every stage reads and no stage changes."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from edgevlm.errors import EdgeVLMError

T = TypeVar("T")


@dataclass(frozen=True)
class VisionSpec:
    """A SigLIP-type tower: square image, square patches, learned positions, pre-norm blocks, final norm."""

    image_size: int  # pixels per side of one tile
    patch_size: int  # pixels per side of one patch
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    activation: str  # "gelu_tanh" | "gelu"
    num_channels: int = 3
    post_norm: bool = True  # False: patch states are taken before the final norm, as LLaVA does

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2


@dataclass(frozen=True)
class ProjectorSpec:
    """ "pixel_shuffle": by `scale_factor`, then one linear map without bias (Idefics3).

    "mlp": two linear maps with an activation between them (LLaVA 1.5, arXiv 2310.03744). "qformer" and "resampler":
    `queries` learned queries per tile; these can be trained and are not exported.
    """

    kind: str  # "pixel_shuffle" | "mlp" | "qformer" | "resampler"
    scale_factor: int = 1
    activation: str = "gelu"  # mlp: "gelu" | "gelu_tanh"
    queries: int | None = None


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's: long wavelengths are stretched by `factor`, short ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int  # positions that the model was first trained on


@dataclass(frozen=True)
class DecoderSpec:
    """A Llama-type decoder: RMSNorm, RoPE (split halves), grouped-query attention, SwiGLU."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int  # positions, prompt and answer together
    tie_embeddings: bool
    rope_scaling: RopeScaling | None = None


@dataclass(frozen=True)
class ModelSpec:
    name: str
    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_token_id: int  # the placeholder that image features replace

    @property
    def image_tokens(self) -> int:
        """Decoder positions that one tile takes."""
        return self.projector.queries or self.vision.num_patches // self.projector.scale_factor**2


def to_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON values."""
    return dataclasses.asdict(spec)


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Build `cls` from JSON values, strictly: unknown, missing and mistyped fields are refused, naming `where`."""
    if not isinstance(data, dict):
        raise EdgeVLMError(f"{where} should hold a JSON object, found {type(data).__name__}: export the bundle again.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise EdgeVLMError(
            f"{where} has the unknown field '{unknown[0]}': it was written by another version of edgevlm; "
            "export the bundle again."
        )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise EdgeVLMError(f"{where} lacks the field '{name}': export the bundle again.")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list):
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        if inner is None and len(args) != len(value):
            raise EdgeVLMError(f"{where} should have {len(args)} items, found {len(value)}: export the bundle again.")
        return tuple(_convert(inner or args[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise EdgeVLMError(f"{where} should be {name}, found {value!r}: export the bundle again.")
