"""A vision-language model: tower, projector, decoder."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.models.ops import Ops, X
from edgevlm.models.projector import Grid, Resample, Step, projector
from edgevlm.models.region import Region
from edgevlm.models.spec import Decoder
from edgevlm.models.tensor import Tensor
from edgevlm.models.towers.conv_vit import ConvVit
from edgevlm.models.towers.halved_vit import HalvedVit
from edgevlm.models.towers.mobilenet import MobileNet
from edgevlm.models.towers.placed_vit import PlacedVit
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit

Tower = Vit | ConvVit | MobileNet | QwenVit | HalvedVit | SheetVit | PlacedVit


@dataclass(frozen=True)
class ModelSpec:
    name: str
    family: str
    vision: Tower
    projector: tuple[Step, ...]
    decoder: Decoder
    image_token_id: int  # the placeholder that image features replace
    markers: tuple[int, ...] = ()  # tokens around pictures whose embeddings in such a prompt are a weight of their own
    newline: bool = False  # a learned row ends each row of features: used beside the graphs (inputs/packing.py)
    framed: bool = False  # with newline: one more learned row each begins and ends a picture's features
    separator: bool = False  # ... and one stands between the map of the tiles and the whole picture
    deepstack: tuple[Step, ...] = ()  # from a marked layer of the tower to one more level of features, each by its own
    region: Region | None = None  # a head that reads places out of the decoder's states (models/region.py)

    @property
    def image_tokens(self) -> int:
        """Decoder positions that one tile takes, for a tower of one picture size."""
        assert isinstance(self.vision, Vit)
        rows, cols = self.token_grid(self.vision.image_size, self.vision.image_size)
        return rows * cols

    @property
    def masked_tiles(self) -> bool:
        """Whether the encoder's ONNX graph takes pictures x tiles and a mask, in place of tiles alone."""
        return isinstance(self.vision, Vit) and self.vision.masked_tiles

    def token_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of image tokens of a view of that size in pixels."""
        grid = self.vision.grid(height, width)
        for step in self.projector:
            grid = step.grid(grid)
        return grid


def image_features(ops: Ops, spec: ModelSpec, inputs: dict[str, X]) -> X:
    """The tower's inputs to features (B, tokens, decoder hidden size), and behind them those of further levels."""
    # Only towers of one size have steps that need the grid of the states.
    grid = (spec.vision.patches_per_side,) * 2 if isinstance(spec.vision, Vit) else (0, 0)
    states, *marked = spec.vision.states(ops, inputs)
    levels = [
        projector(ops, x, spec.deepstack, grid, f"projector.deepstack.{layer}")
        for layer, x in zip(spec.vision.deepstack, marked, strict=True)
    ]
    features = projector(ops, states, spec.projector, grid)
    return ops.beside([features, *levels]) if levels else features


def feature_shape(spec: ModelSpec) -> Tensor:
    width = spec.decoder.feature_width
    if isinstance(spec.vision, Vit):
        return Tensor("float32", ("tiles", spec.image_tokens, width))
    counts = [step.count for step in spec.projector if isinstance(step, Resample)]
    counts += [spec.vision.unit**2] if isinstance(spec.vision, SheetVit) else []
    tokens = counts[0] if counts else "tokens"
    return Tensor("float32", (1, tokens, width))
