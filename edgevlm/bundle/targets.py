"""A manifest's entries for its targets: one dataclass each, distinguished by `kind`."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.tensor import Tensor

Shape = tuple[int | str, ...]  # a free axis is a name or a range in words


@dataclass(frozen=True)
class OnnxGraph:
    file: str
    portable: str  # the same graph in standard operators over the same weights
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    shared_kv: bool = False  # past and present may be one buffer, written in place


@dataclass(frozen=True)
class OnnxTarget:
    graphs: dict[str, OnnxGraph]
    kind: str = "onnx"


@dataclass(frozen=True)
class GgufTarget:
    model: str
    mmproj: str | None
    architecture: str  # llama.cpp's names
    projector_type: str | None
    bytes: dict[str, int]  # by tensor type
    no_pictures: str | None = None  # why there is no mmproj, where there is none
    alone: str | None = None  # what llama.cpp without edgevlm does otherwise with pictures or words
    kind: str = "gguf"


@dataclass(frozen=True)
class CoreMLFunction:
    """One decoder function: rows per call and positions of its cache."""

    context: int
    rows: int


@dataclass(frozen=True)
class CoreMLVision:
    file: str
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


@dataclass(frozen=True)
class CoreMLDecoder:
    file: str
    functions: dict[str, CoreMLFunction]
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    outputs: tuple[str, ...]  # parts of the logits, in order, and hidden_state where a head beside the decoder reads it
    mask_value: float  # added where a row may not look
    rope: str  # how cos and sin rows are laid out, in words


@dataclass(frozen=True)
class EmbeddingFile:
    """Where the embedding table's codes and scales lie in its file: [first byte, bytes]."""

    file: str
    kind: str  # "fp16", "int8" or "int4"
    shape: tuple[int, int]
    codes: tuple[int, int]
    scale: tuple[int, int] | None = None
    scale_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class CoreMLRows:
    """Where rows of a matrix lie: the operation that holds them, and [first, last + 1) of its rows."""

    op: str
    rows: tuple[int, int]
    kind: str


@dataclass(frozen=True)
class CoreMLPlace:
    package: str
    parts: tuple[CoreMLRows, ...]


@dataclass(frozen=True)
class CoreMLTarget:
    profile: str
    compute_units: str
    minimum_deployment_target: str
    precision: str
    vision: CoreMLVision
    decoder: CoreMLDecoder
    embedding: EmbeddingFile
    weights: dict[str, CoreMLPlace]
    per_layer_embedding: EmbeddingFile | None = None  # the second table, where each layer takes a part of a token's row
    kind: str = "coreml"


TargetEntry = OnnxTarget | GgufTarget | CoreMLTarget
