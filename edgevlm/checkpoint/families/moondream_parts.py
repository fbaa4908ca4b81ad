"""Tower, decoder and region head of Moondream's config; what it leaves out is as in moondream/torch/config.py."""

from __future__ import annotations

from edgevlm.io import limits
from edgevlm.io.json import JsonFile
from edgevlm.models.region import SIZE_BINS, Region
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope
from edgevlm.models.towers.sheet_vit import SheetVit

NORM = Norm("layer", 1e-5)  # torch's default


def read_sheet(config: JsonFile) -> SheetVit:
    config.choice("in_channels", 3, {3: "3"})
    width, heads, patch = (
        config.count(key, usual) for key, usual in (("enc_dim", 1152), ("enc_n_heads", 16), ("enc_patch_size", 14))
    )
    side = config.side("crop_size", 378)
    if side % patch:
        raise config.wrong("crop_size", "a multiple of enc_patch_size")
    attention = Attention(heads, heads, max(1, width // heads), bias=True, out_bias=True)
    mlp = Mlp(config.count("enc_ff_dim", 4304), "gelu_tanh", gated=False, bias=True)
    return SheetVit(
        patch_size=patch,
        merge=1,
        window=side // patch,
        hidden_size=width,
        num_layers=config.count("enc_n_layers", 27, most=limits.LAYERS),
        full=(),
        block=Block((attention,), mlp, NORM),
        patch_bias=True,
        table=side // patch,
        post_norm=True,
        margin=config.count("overlap_margin", 4),
    )


def read_region(config: JsonFile, width: int, end: int) -> Region:
    """width: of the decoder. end: the token that ends a list of places."""
    config.choice("dim", 2048, {width: f"the decoder's {width}"})
    config.choice("size_out_dim", 2 * SIZE_BINS, {2 * SIZE_BINS: "a width's and a height's"})
    return Region(
        end,
        config.count("inner_dim", 8192),
        config.count("coord_out_dim", 1024),
        config.count("coord_feat_dim", 256, least=2),
        config.count("size_feat_dim", 512, least=2),
    )


def read_parallel(config: JsonFile) -> Decoder:
    """Phi 1.5's layers, RoPE over half of each head."""
    width, heads = config.count("dim", 2048), config.count("n_heads", 32)
    size, kv_heads = max(1, width // heads), config.count("n_kv_heads", heads)
    attention = Attention(heads, kv_heads, size, bias=True, out_bias=True, rope="main")
    mlp = Mlp(config.count("ff_dim", 8192), "gelu_tanh", gated=False, bias=True)
    layers = config.count("n_layers", 24, most=limits.LAYERS)
    return Decoder(
        vocab_size=config.count("vocab_size", 51200),
        hidden_size=width,
        context_length=config.count("max_context", 2048),
        blocks=(Block((attention,), mlp, NORM, places="parallel"),),
        layers=(0,) * layers,
        norm=NORM,
        ropes={"main": Rope(10000.0, size // 2)},
        mask="prefix",
        head_bias=True,
    )
