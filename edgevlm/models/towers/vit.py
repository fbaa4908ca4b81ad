"""A vision transformer on squares of one size: SigLIP (arXiv 2303.15343), CLIP (arXiv 2103.00020), InternViT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.models.blocks import residual
from edgevlm.models.ops import Ops, X
from edgevlm.models.spec import Attention, Block
from edgevlm.models.tensor import Tensor
from edgevlm.types import F32


@dataclass(frozen=True)
class Vit:
    image_size: int  # pixels per side of one tile
    patch_size: int  # pixels per side of one patch
    hidden_size: int
    num_layers: int
    block: Block
    patch_bias: bool = True
    class_token: bool = False  # a learned first position, dropped at the end
    patch_norm: bool = False  # of patches, before their positions are added (AIMv2)
    pre_norm: bool = False  # before the first layer (CLIP)
    post_norm: bool = True  # False: patch states are taken before the final norm
    masked_tiles: bool = False  # its ONNX graph takes pictures of as many tiles each, and a mask of those that are real
    taps: tuple[int, ...] = ()  # the layers behind which states are taken, side by side; (): behind the last alone
    deepstack: tuple[int, ...] = ()  # layers whose states become further levels of features (arXiv 2406.04334)
    kind: str = "vit"

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2

    @property
    def typical_patches(self) -> int:
        """Patches of a picture, for estimates of time and memory."""
        return self.num_patches

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch states of a view of that size in pixels."""
        return height // self.patch_size, width // self.patch_size

    def inputs(self) -> dict[str, Tensor]:
        return {"pixels": Tensor("float32", ("tiles", 3, self.image_size, self.image_size))}

    def feeds(self, pixels: F32) -> dict[str, F32]:
        """The inputs for normalized pixels (3, S, S)."""
        return {"pixels": pixels[None]}

    def join(self, feeds: Sequence[dict[str, F32]]) -> dict[str, F32]:
        """The inputs for several views at once."""
        return {"pixels": np.concatenate([each["pixels"] for each in feeds])}

    def states(self, ops: Ops, inputs: dict[str, X]) -> list[X]:
        """Normalized tiles (B, 3, S, S) to patch states (B, patches, D), then those behind layers of `deepstack`."""
        x = ops.patch_embed(
            inputs["pixels"], "vision.patch_embedding", self.hidden_size, self.patch_size, self.patch_bias
        )
        x = ops.norm(x, "vision.patch_norm", self.block.norm) if self.patch_norm else x
        x = ops.prepend(x, "vision.class_token", self.hidden_size) if self.class_token else x
        x = ops.add_table(x, "vision.position_embedding", self.num_patches + self.class_token, self.hidden_size)
        x = ops.norm(x, "vision.pre_norm", self.block.norm) if self.pre_norm else x
        taken = {}
        for i in range(self.num_layers):
            x = taken[i + 1] = self._layer(ops, x, f"vision.layers.{i}")
        x = ops.beside([taken[layer] for layer in self.taps]) if self.taps else x
        found = [x, *(taken[layer + 1] for layer in self.deepstack)]
        x, *marked = map(ops.drop_first, found) if self.class_token else found
        return [ops.norm(x, "vision.post_norm", self.block.norm) if self.post_norm else x, *marked]

    def _layer(self, ops: Ops, x: X, w: str) -> X:
        block, width = self.block, self.hidden_size
        (attention,) = block.mixers
        assert isinstance(attention, Attention)
        x = residual(ops, x, block, w, 1, lambda h: ops.attention(h, w, attention, width, None, None))
        return residual(ops, x, block, w, 2, lambda h: ops.mlp(h, w, block.mlp, width))
