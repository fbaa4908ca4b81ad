"""Granite Vision 4's projectors: which states each reads, before which layer its features come, its tensors."""

from __future__ import annotations

from typing import Any

from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.spec import Attention, Block, Mlp, Norm
from edgevlm.models.window_queries import WindowQueries

HEAD_SIZE = 64  # of the queries: a constant of the config's class


def read_levels(config: JsonFile, layers: int) -> list[tuple[int, int, int, str]]:
    """Of each projector: how many layers of the tower it follows, the decoder's layer that its features are added
    before, its corner of 2 x 2 neighbours or -1, and its tensors' name."""
    pairs, targets = config.value("deepstack_layer_map", []), config.value("spatial_target_layers", [12, 15, 18, 21])
    good = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not good or not isinstance(targets, list) or len(targets) != 4:
        raise config.wrong("deepstack_layer_map", "pairs of layers, beside four spatial_target_layers")
    last = config.value("spatial_vision_layer", -1)
    found: list[Any] = [(*pair, -1, f"layerwise_projectors.{n}.") for n, pair in enumerate(pairs)]
    found += [(last, target, n, f"spatial_projectors.{n}.") for n, target in enumerate(targets)]
    made = []
    for state, target, corner, name in found:
        state = state + layers + 1 if type(state) is int and state < 0 else state
        if type(state) is not int or not 1 <= state <= layers or type(target) is not int or target < 0:
            raise config.wrong("deepstack_layer_map", "layers that tower and decoder have")
        made.append((state, target, corner, name))
    return made


def read_queries(config: JsonFile, width: int, rows: int, taps: list[int], maps: list[Any]) -> WindowQueries:
    query, _, window = str(config.value("downsample_rate", "")).partition("/")
    if not (query.isdecimal() and window.isdecimal() and len(query + window) < 7 and int(query) and int(window)):
        raise config.wrong("downsample_rate", "queries and states per side of a window, such as '4/8'")
    section, heads = config.section("qformer_config"), max(1, width // HEAD_SIZE)
    section.choice("hidden_act", "gelu", {"gelu": "gelu"})
    for key in ("num_hidden_layers", "cross_attention_frequency"):
        section.choice(key, 1, {1: "1"})
    mlp = Mlp(section.count("intermediate_size", 3072, most=limits.MLP_WIDTH), "gelu", gated=False, bias=True)
    attention = Attention(heads, heads, width // heads, bias=True, out_bias=True)
    norm = Norm("layer", section.number("layer_norm_eps", 1e-12))
    states, corners = tuple(taps.index(level[0]) for level in maps), tuple(level[2] for level in maps)
    block = Block((attention,), mlp, norm, places="post")
    return WindowQueries(int(window), int(query), states, corners, width, rows, block, Norm("layer", 1e-6))


_LAYER = "qformer.encoder.layer.0."
_MAPS = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
LEVEL = {
    "norm": "norm",
    "query_norm": "qformer.layernorm",
    **{ours: f"{_LAYER}attention.{theirs}" for ours, theirs in _MAPS.items()},
    **{f"cross.{ours}": f"{_LAYER}crossattention.{theirs}" for ours, theirs in _MAPS.items()},
    "norm1": f"{_LAYER}attention.output.LayerNorm",
    "norm2": f"{_LAYER}crossattention.output.LayerNorm",
    "fc1": f"{_LAYER}intermediate_query.dense",
    "fc2": f"{_LAYER}output_query.dense",
    "norm3": f"{_LAYER}output_query.LayerNorm",
    "out": "out_linear",
}
