"""llama.cpp's projector type for a tower of inverted bottlenecks: tools/mtmd/models/mobilenetv5.cpp.

Its loader finds layers by their names; strides, kernels of stages' first layers, norms and the 16 x 16 tokens of a
picture are constants of its graph. It has no layer scales where a file has none: ours are folded.
"""

from __future__ import annotations

from edgevlm.export.gguf_.archs.projector import ProjectorType
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Normalize
from edgevlm.models.spec import Norm
from edgevlm.models.towers.mobilenet import Bottleneck, MobileNet
from edgevlm.runtimes.llama import names
from edgevlm.runtimes.llama.bottlenecks import APART, ATTENDING, FEWER_KEYS, FUSED, LAYERS

SIDE = 16  # tokens per side of a picture
NORM = Norm("rms", 1e-6)


def _tower(spec: ModelSpec) -> MobileNet:
    assert isinstance(spec.vision, MobileNet)
    return spec.vision


def _other_layers(spec: ModelSpec) -> bool:
    """Anything but the published kinds in their order, with the strides and kernels that the graph computes."""
    vision = _tower(spec)
    if len(vision.layers) != len(LAYERS) or LAYERS[vision.fine][:2] != (3, 0):
        return True
    for layer, (_, n, kind) in zip(vision.layers, LAYERS, strict=True):
        if isinstance(layer, Bottleneck):
            kernels = {layer.first, layer.middle, layer.fused} - {0}
            found = FUSED if layer.fused else APART
            fitting = (
                layer.stride == (1 if n else 2)
                and layer.fused in (0, 3)
                and (layer.stride == 1 or layer.middle or layer.fused)
                and all(kernel > 1 and kernel % 2 for kernel in kernels)
            )
        else:
            found = ATTENDING if layer.stride == 1 else FEWER_KEYS
            fitting = layer.attention.kv_heads == 1 and layer.stride <= 2 and layer.kernel > 1
        if not fitting or found is not kind:
            return True
    return (vision.block.norm, vision.block.mlp.act) != (NORM, "gelu_tanh")


def _other_projector(spec: ModelSpec) -> bool:
    maps = Linear("linear", spec.decoder.hidden_size, bias=False)
    bare = Normalize(Norm("rms", 1e-6, weight=False), "norm_after")
    return spec.projector != (Normalize(NORM), maps, bare)


BOTTLENECKS = (
    ProjectorType(
        names.BOTTLENECKS, "mobilenet", ("norm", "linear", "norm"), other_layers=_other_layers,
        refusals={
            f"vision tower makes other than {SIDE} x {SIDE} tokens of a picture": lambda spec: (
                spec.token_grid(_tower(spec).image_size, _tower(spec).image_size) != (SIDE, SIDE)
            ),
            "projector has other norms than llama.cpp's or a bias": _other_projector,
            # clip_n_mmproj_embd takes the inputs of the projector's map for its outputs.
            "projector makes features of another width than its tower's states, which llama.cpp takes for equal": (
                lambda spec: spec.decoder.hidden_size != spec.vision.hidden_size
            ),
        },
        # clip_n_output_tokens divides a side by this, and takes the result for all tokens of a picture.
        more_keys={"patch_size": lambda spec, image: _tower(spec).image_size // SIDE**2},
    ),
)  # fmt: skip
