"""Plays a model on shapes and writes down its weights: the tree, derived, with the role of each tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgevlm.models.decoder import decoder, embed_tokens, memory
from edgevlm.models.model import ModelSpec, image_features
from edgevlm.models.ops import Ops
from edgevlm.models.projector import Queries
from edgevlm.models.spec import Attention, Conv, Decoder, DeltaRule, Norm

Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightInfo:
    """role: "matrix" (of a linear map), "table" (looked up by rows), "kernel" (a convolution's), "vector",
    "positions" (a table that is added as it is) or "host" (used beside the graphs, which do not have it)."""

    role: str
    shape: Shape

    @property
    def is_linear(self) -> bool:
        """What is quantized: matrices of linear maps, and tables of tokens, of which one is a tied head's matrix."""
        return self.role in ("matrix", "table")


def weight_tree(spec: ModelSpec) -> dict[str, WeightInfo]:
    """Every weight of the model by canonical name, in the order in which a forward pass reads them.

    Those of a query connector, which torch alone plays, are not among them.
    """
    record = Record()
    played = replace(spec, projector=tuple(step for step in spec.projector if not isinstance(step, Queries)))
    image_features(record, played, {name: tensor.sizes(1) for name, tensor in spec.vision.inputs().items()})
    return record.found | decoder_tree(spec.decoder)


def host_tree(spec: ModelSpec) -> dict[str, WeightInfo]:
    """The weights that no graph has: they are used on the way from one to the next."""
    width = spec.decoder.hidden_size
    shapes = {
        "newline": (spec.decoder.feature_width,) if spec.newline else (),
        **{name: (spec.decoder.feature_width,) if spec.framed else () for name in ("begin", "end")},
        "separator": (spec.decoder.feature_width,) if spec.separator else (),
        "markers": (len(spec.markers), width) if spec.markers else (),
        **(spec.region.shapes(width) if spec.region else {}),
    }
    return {name: WeightInfo("host", shape) for name, shape in shapes.items() if shape}


def decoder_tree(d: Decoder) -> dict[str, WeightInfo]:
    record = Record()
    embed_tokens(record, (1, 1), d)
    memory(record, (1, 1, d.hidden_size), d)
    decoder(record, (1, 1, d.embed_width), d)
    return record.found


class Record(Ops):
    """Values are shapes. Free axes count as 1."""

    backend = "The weight tree"

    def __init__(self) -> None:
        self.found: dict[str, WeightInfo] = {}

    def _add(self, name: str, role: str, *shape: int) -> None:
        self.found.setdefault(name, WeightInfo(role, shape))

    def linear(self, x: Shape, *maps: tuple[str, int], bias: bool = False) -> list[Shape]:
        for name, rows in maps:
            self._add(f"{name}.weight", "matrix", rows, x[-1])
            if bias:
                self._add(f"{name}.bias", "vector", rows)
        return [(*x[:-1], rows) for _, rows in maps]

    def patch_embed(self, pixels: Shape, name: str, width: int, patch: int, bias: bool = True) -> Shape:
        self._add(f"{name}.weight", "kernel", width, pixels[1], patch, patch)
        if bias:
            self._add(f"{name}.bias", "vector", width)
        return (pixels[0], (pixels[2] // patch) * (pixels[3] // patch), width)

    def flatten(self, pixels: Shape) -> Shape:
        return (pixels[0], pixels[2] * pixels[3], pixels[1])

    def conv2d(self, x: Shape, name: str, grid: tuple[int, int], c: Conv) -> Shape:
        self._add(f"{name}.weight", "kernel", c.width, x[-1] // c.groups, c.kernel, c.kernel)
        if c.bias:
            self._add(f"{name}.bias", "vector", c.width)
        return (x[0], (grid[0] // c.stride) * (grid[1] // c.stride), c.width)

    def conv_at(self, x: Shape, name: str, width: int, kernel: int, places: str) -> Shape:
        self._add(f"{name}.weight", "kernel", width, kernel**2)
        return x

    def add_input(self, x: Shape, name: str) -> Shape:
        return x

    def ask(self, k: Shape, v: Shape, name: str, count: int, a: Attention, mask: str) -> Shape:
        self._add(name, "positions", count, k[-1])
        return (1, count, k[-1])

    def mean(self, x: Shape) -> Shape:
        return (x[0], 1, x[-1])

    def mean_channels(self, x: Shape) -> Shape:
        return (*x[:-1], 1)

    def plain_linear(self, x: Shape, name: str, width: int, bias: bool = False) -> Shape:
        self._add(f"{name}.weight", "kernel", width, x[-1])
        if bias:
            self._add(f"{name}.bias", "vector", width)
        return (*x[:-1], width)

    def embed(self, ids: Shape, name: str, rows: int, width: int) -> Shape:
        self._add(f"{name}.weight", "positions" if name == "decoder.positions" else "table", rows, width)
        return (*ids, width)

    def add_table(self, x: Shape, name: str, rows: int, width: int) -> Shape:
        self._add(name, "positions", rows, width)
        return x

    def add_mixed(self, x: Shape, name: str, rows: int, width: int, places: str, shares: str) -> Shape:
        self._add(name, "positions", rows, width)
        return x

    def add_shares(self, x: Shape, name: str, rows: int, width: int, shares: str) -> Shape:
        self._add(name, "positions", rows, width)
        return x

    def prepend(self, x: Shape, name: str, width: int) -> Shape:
        self._add(name, "vector", width)
        return (x[0], x[1] + 1, width)

    def drop_first(self, x: Shape) -> Shape:
        return (x[0], x[1] - 1, x[2])

    def beside(self, parts: list[Shape]) -> Shape:
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def vector(self, name: str, size: int) -> Shape:
        self._add(name, "vector", size)
        return (size,)

    def norm(self, x: Shape, name: str, spec: Norm) -> Shape:
        if spec.weight:
            self._add(f"{name}.weight", "vector", x[-1])
        if spec.kind == "layer":
            self._add(f"{name}.bias", "vector", x[-1])
        return x

    def act(self, x: Shape, kind: str) -> Shape:
        return x

    def add(self, x: Shape, y: Shape) -> Shape:
        return max(x, y, key=lambda shape: shape[-1])

    def mul(self, x: Shape, y: Shape | float) -> Shape:
        return x if isinstance(y, float) else Record.add(self, x, y)

    def mul_heads(self, x: Shape, y: Shape, count: int, size: int) -> Shape:
        return x

    def split(self, x: Shape, *widths: int) -> list[Shape]:
        return [(*x[:-1], width) for width in widths]

    def clip(self, x: Shape, low: Shape, high: Shape) -> Shape:
        return x

    def widen(self, x: Shape, width: int) -> Shape:
        return (*x[:-1], width)

    def heads(self, x: Shape, count: int, size: int) -> Shape:
        return (*x[:-2], count, x[-2], size)

    def merge(self, x: Shape) -> Shape:
        return (*x[:-3], x[-2], x[-3] * x[-1])

    def rotate(self, x: Shape, rope: str, size: int, second: str | None = None) -> Shape:
        return x

    def attend(self, q: Shape, k: Shape, v: Shape, a: Attention, mask: str | None) -> Shape:
        return q

    def append(self, state: str, x: Shape) -> Shape:
        return x

    def rounded(self, x: Shape, name: str, count: int, size: int) -> Shape:
        self._add(name, "vector", count * size)
        return x

    def grown(self, state: str) -> Shape:
        return (1, 1, 1, 1)

    def held(self, state: str) -> Shape:
        return (1, 1, 1, 1)

    def correct(self, x: Shape, decay: Shape, rate: Shape, r: DeltaRule, state: str) -> Shape:
        return (*x[:-2], r.value_heads, x[-2], r.value_dim)

    def causal_conv(self, x: Shape, name: str, width: int, kernel: int, state: str) -> Shape:
        self._add(f"{name}.weight", "kernel", width, kernel)
        return x

    def windows(self, x: Shape, size: int) -> Shape:
        return x

    def unwindow(self, x: Shape, count: int | None = None) -> Shape:
        return x

    def apart(self, x: Shape, count: int, width: int) -> Shape:
        return (x[0], x[1] * count, width)

    def pixel_unshuffle(self, x: Shape, grid: tuple[int, int], scale: int, width: int) -> Shape:
        return (x[0], x[1] * scale**2, width)

    def pixel_shuffle(self, x: Shape, grid: tuple[int, int], scale: int, width: int) -> Shape:
        return (x[0], x[1] // scale**2, x[2] * scale**2)

    def mean_pool(self, x: Shape, grid: tuple[int, int], scale: int, width: int) -> Shape:
        return (x[0], x[1] // scale**2, x[2])

    def group(self, x: Shape, count: int, width: int) -> Shape:
        return (x[0], max(1, x[1] // count), width * count)

    def take(self, x: Shape, index: str) -> Shape:
        return x

    def mix(self, x: Shape, places: str, shares: str) -> Shape:
        return x

    def input(self, name: str) -> Shape:
        return (1, 1)

    def last(self, x: Shape) -> Shape:
        return x
