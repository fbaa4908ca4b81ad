"""llama.cpp's text architecture with several streams of states (`names.STREAMS`, in its src/models), most of whose
numbers stand in its code and not in a file."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

from edgevlm.export.gguf_.archs import sharing
from edgevlm.export.gguf_.archs.parts import Refusals, mlp
from edgevlm.export.gguf_.archs.sharing import first
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope

STREAMS, LAUREL, PER_LAYER, CAP = 4, 64, 256, 30.0
OWN, EVERY = 20, 5  # layers with keys and values of their own; one of so many sees all positions
SPARSE, CUTOFF = 10, NormalDist().inv_cdf(0.95)  # layers of whose gates few values count
# llama.cpp divides a gate's squared deviations by one value less than there are: of 8192 it puts the cutoff 1e-4
# deviations too high, of 160 half a hundredth.
LEAST_GATE = 2048


def _other_layers(d: Decoder) -> bool:
    """Anything but the one kind of layer, with windows, shared keys and few values of gates where the code has them."""
    norm, near = d.norm, first(d, near=True)
    if norm is None or norm.kind != "rms":
        return True
    own = Attention(near.heads, near.kv_heads, near.head_dim, rope="local", qk_norm=norm, scale=1.0, window=near.window)
    bare = Norm("rms", norm.eps, weight=False)
    for layer in range(d.num_layers):
        block = d.block(layer)
        full = (layer + 1) % EVERY == 0
        reads = {"reads": "earlier"} if layer >= OWN else {"v_norm": bare}
        attention = replace(own, **(reads | ({"window": None, "rope": "main"} if full else {})))
        cutoff = block.mlp.cutoff
        kept = cutoff is None if layer >= SPARSE else cutoff is not None and math.isclose(cutoff, CUTOFF, rel_tol=1e-5)
        wanted = Block(
            (attention,), Mlp(mlp(d).size, "gelu_tanh", cutoff=cutoff), norm, places="sandwich", laurel=LAUREL
        )
        if not kept or block != wanted:
            return True
    return False


def _other_ropes(d: Decoder) -> bool:
    size = first(d, near=True).head_dim
    wanted = {"main", "local"} if d.num_layers >= EVERY else {"local"}
    return {name: replace(rope, theta=1.0) for name, rope in d.ropes.items()} != dict.fromkeys(wanted, Rope(1.0, size))


REFUSALS: Refusals = {
    "has other numbers of streams, values beside a mixer or values of a token's row for a layer than the constants of "
    f"llama.cpp, {STREAMS}, {LAUREL} and {PER_LAYER}": lambda d: (
        (d.streams, d.per_layer) != (STREAMS, PER_LAYER) or d.block(0).laurel != LAUREL
    ),
    f"caps logits at another number than {CAP:g}, which is a constant of llama.cpp": lambda d: d.logit_cap != CAP,
    "has other layers than this architecture of llama.cpp, whose code says which of them have windows, read others' "
    "keys and have a cutoff of gates": _other_layers,
    f"has MLPs narrower than {LEAST_GATE}, of whose gates llama.cpp takes other deviations": lambda d: (
        mlp(d).size < LEAST_GATE
    ),
    "has another RoPE than this architecture of llama.cpp": _other_ropes,
    "shows positions later ones, where this architecture of llama.cpp is causal": lambda d: d.mask != "causal",
    **sharing.ROOTS,
    "changes embeddings": lambda d: bool(d.learned_positions or d.embed_norm or d.head_bias),
}
KEYS: sharing.Keys = {
    key: sharing.KEYS[key]
    for key in (
        "embedding_length_per_layer_input", "final_logit_softcapping", "attention.shared_kv_layers",
        "attention.sliding_window", "rope.freq_base_swa",
    )
} | {"altup.num_inputs": lambda d: d.streams, "altup.active_idx": lambda d: 0}  # fmt: skip
