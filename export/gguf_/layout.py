"""Which tensors a GGUF pair holds: llama.cpp's `llama` architecture and `idefics3` projector."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from edgevlm.export.gguf_.blocks import ggml_type
from edgevlm.export.quantize.recipe import Recipe, is_linear
from edgevlm.models.llama import head_name
from edgevlm.models.model import ModelSpec
from edgevlm.runtimes.gguf import ROPE_FACTORS, gguf_name


@dataclass(frozen=True)
class Entry:
    """One tensor of a file and the canonical weight that it holds."""

    weight: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def name(self) -> str:
        return gguf_name(self.weight)


class _Plan:
    """Collects entries; a weight's form comes from the recipe, its bias follows it where the checkpoint has one."""

    def __init__(self, weights: Container[str], recipe: Recipe) -> None:
        self.entries: list[Entry] = []
        self._weights, self._recipe = weights, recipe

    def add(self, weight: str, *shape: int) -> None:
        kind = GGMLQuantizationType.F32
        if is_linear(weight):
            kind = ggml_type(self._recipe.form(weight).kind, shape[-1])
        self.entries.append(Entry(weight, shape, kind))

    def affine(self, weight: str, *shape: int) -> None:
        """A linear map, a norm or a convolution, with its bias where there is one."""
        self.add(f"{weight}.weight", *shape)
        if f"{weight}.bias" in self._weights:
            self.add(f"{weight}.bias", shape[0])


def decoder_entries(spec: ModelSpec, weights: Container[str], recipe: Recipe) -> list[Entry]:
    """The text model's tensors. A tied head has none: llama.cpp then takes token_embd. `weights` tells of biases."""
    s, plan = spec.decoder, _Plan(weights, recipe)
    plan.affine("decoder.embed", s.vocab_size, s.hidden_size)
    if s.rope_scaling is not None:
        plan.add(ROPE_FACTORS, s.head_dim // 2)
    for i in range(s.num_layers):
        w = f"decoder.layers.{i}"
        plan.affine(f"{w}.norm1", s.hidden_size)
        plan.affine(f"{w}.q", s.num_heads * s.head_dim, s.hidden_size)
        plan.affine(f"{w}.k", s.num_kv_heads * s.head_dim, s.hidden_size)
        plan.affine(f"{w}.v", s.num_kv_heads * s.head_dim, s.hidden_size)
        plan.affine(f"{w}.o", s.hidden_size, s.num_heads * s.head_dim)
        plan.affine(f"{w}.norm2", s.hidden_size)
        plan.affine(f"{w}.gate", s.intermediate_size, s.hidden_size)
        plan.affine(f"{w}.up", s.intermediate_size, s.hidden_size)
        plan.affine(f"{w}.down", s.hidden_size, s.intermediate_size)
    plan.affine("decoder.norm", s.hidden_size)
    if not s.tie_embeddings:
        plan.affine(head_name(s), s.vocab_size, s.hidden_size)
    return plan.entries


def mmproj_entries(spec: ModelSpec, weights: Container[str], recipe: Recipe) -> list[Entry]:
    """The vision tower's and the projector's tensors (llama.cpp: tools/mtmd/clip.cpp, models/siglip.cpp)."""
    s, plan = spec.vision, _Plan(weights, recipe)
    d, ff = s.hidden_size, s.intermediate_size
    plan.affine("vision.patch_embedding", d, s.num_channels, s.patch_size, s.patch_size)
    plan.add("vision.position_embedding", s.num_patches, d)
    for i in range(s.num_layers):
        w = f"vision.layers.{i}"
        plan.affine(f"{w}.norm1", d)
        for part in ("q", "k", "v", "o"):
            plan.affine(f"{w}.{part}", d, d)
        plan.affine(f"{w}.norm2", d)
        plan.affine(f"{w}.fc1", ff, d)
        plan.affine(f"{w}.fc2", d, ff)
    plan.affine("vision.post_norm", d)
    plan.affine("projector.linear", spec.decoder.hidden_size, d * spec.projector.scale_factor**2)
    return plan.entries
