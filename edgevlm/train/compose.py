"""A new vision-language model from a pretrained encoder and a pretrained language model, for the align stage.

The projector starts at random; everything else is copied. mlp, pixel-shuffle and linear (a shuffle by 1) have the
layouts of families that say how they are composed, qformer and resampler are edgevlm's own (edgevlm.train.connectors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from edgevlm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgevlm.checkpoint.families import FAMILIES
from edgevlm.checkpoint.families.composed import Composed
from edgevlm.errors import EdgeVLMError
from edgevlm.io.folders import replacing
from edgevlm.io.listing import CHECKPOINT
from edgevlm.io.options import check_types
from edgevlm.train.compose_files import Vocabulary, extend_tokenizer, write_processor
from edgevlm.train.models import open_source, quiet_transformers

_LAYOUTS = {kind: family.composed for family in FAMILIES if family.composed for kind in family.composed.projectors}
_VLMS = (kind for family in FAMILIES if family.composed for kind in family.model_types)
_ENCODERS = ("siglip", "siglip_vision_model", *_VLMS)


@dataclass(frozen=True)
class ComposeOptions:
    encoder: str  # folder or Hub id of a SigLIP model, or of a VLM that has one
    decoder: str  # ... of a Llama-type language model, or of a VLM that has one
    projector: str
    out: Path
    scale_factor: int | None = None  # pixel-shuffle; None: nearest to 64 tokens per tile
    queries: int = 64  # qformer, resampler: image tokens per tile
    layers: int = 3  # ... their depth
    tiles: int = 4  # longest edge of a picture in tiles; 0: the whole picture only
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.projector not in _LAYOUTS:
            raise EdgeVLMError(f"Projector '{self.projector}' does not exist: choose one of {', '.join(_LAYOUTS)}.")
        scale = 1 if self.scale_factor is None else self.scale_factor
        if min(self.queries, self.layers, scale) < 1 or not 0 <= self.tiles <= 6:
            raise EdgeVLMError("--queries, --layers and --scale-factor are 1 or more, --tiles 0 to 6: fix them.")
        if not self.layout.grid and self.tiles not in (0, 4):
            raise EdgeVLMError(f"A model with the {self.projector} projector sees whole pictures: leave --tiles out.")

    @property
    def layout(self) -> Composed:
        return _LAYOUTS[self.projector]


@dataclass(frozen=True)
class _Half:
    """One half of a checkpoint: its config and where its tensors' names start."""

    checkpoint: Checkpoint
    config: dict[str, Any]
    prefix: str

    def tensors(self) -> dict[str, Tensor]:
        names = [name for name in self.checkpoint.names() if name.startswith(self.prefix)]
        return {name.removeprefix(self.prefix): torch.from_numpy(self.checkpoint.read(name)) for name in names}


def compose(
    options: ComposeOptions, note: Callable[[str], None], finish: Callable[[Path], None] = lambda folder: None
) -> Path:
    """Write the new checkpoint `options.out`; its path. Raises EdgeVLMError.

    finish: changes the folder's files before it gets its name.
    """
    inputs = [("--encoder", options.encoder), ("--decoder", options.decoder)]
    with replacing(options.out, CHECKPOINT, options.force, [given for given in inputs if given[1] != "default"]) as out:
        summary = _compose(options, out.new)
        finish(out.new)
        out.publish()
    note(summary)
    return options.out


def _compose(options: ComposeOptions, out: Path) -> str:
    """Write the checkpoint into `out`; a sentence on what is in it."""
    encoder = _half(options.encoder, "encoder", "vision_config", "embeddings.patch_embedding.weight", _ENCODERS)
    decoder = _half(options.decoder, "decoder", "text_config", "embed_tokens.weight", ("llama",))
    quiet_transformers()
    transformers.set_seed(options.seed)
    vision, layout = _vision_config(encoder.config, options.layout.vision), options.layout
    side = vision.image_size // vision.patch_size
    if not layout.fits(side):
        raise EdgeVLMError(
            f"The encoder has {side} patches per side, a size at which the layout of {options.projector} gives two "
            "neighbours one position: use --projector mlp."
        )
    text = transformers.LlamaConfig(**{k: v for k, v in decoder.config.items() if k != "model_type"})
    folder = decoder.checkpoint.folder
    vocabulary = extend_tokenizer(folder, out, layout)
    model, tokens = _build(options, vision, text, vocabulary, side)
    _fill(model, encoder, decoder, text)
    model.save_pretrained(out)
    write_processor(out, layout, vision.image_size, tokens, options.tiles if layout.grid else 0)
    made = open_source(str(out))  # everything that training and export will read
    new = sum(p.numel() for name, p in model.named_parameters() if "connector" in name or "projector" in name)
    return (
        f"{made.spec.image_tokens} image tokens of {vision.image_size} x {vision.image_size} pixels; "
        f"{new / 1e6:.2f} million weights of the projector are new: train them with --stage align."
    )


def _half(model: str, what: str, section: str, mark: str, kinds: tuple[str, ...]) -> _Half:
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    part = config.get(section)
    inner: dict[str, Any] = part if isinstance(part, dict) else config
    kind = str((config if what == "encoder" else inner).get("model_type"))
    found = [name for name in checkpoint.names() if name.endswith(mark)]
    if kind not in kinds or len(found) != 1:
        raise EdgeVLMError(
            f"'{model}' has no {what} that compose knows (model_type {kind!r}): give a checkpoint of "
            f"{'a SigLIP encoder' if what == 'encoder' else 'a Llama-type language model'}, or of a VLM with one."
        )
    return _Half(checkpoint, inner, found[0].removesuffix(mark))


def _vision_config(config: dict[str, Any], name: str) -> Any:
    """The encoder's config as the class `name`; missing fields get the defaults of the file's own model type."""
    kind = str(config.get("model_type"))
    known = {k: v for k, v in config.items() if k != "model_type"}
    own = transformers.CONFIG_MAPPING.get(kind, transformers.SiglipVisionConfig)
    own = own.sub_configs.get("vision_config", own)
    filled = (transformers.SiglipVisionConfig if own is transformers.AutoConfig else own)(**known)
    names = [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
        "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout",
    ]  # fmt: skip
    values = {name: getattr(filled, name) for name in names}
    return getattr(transformers, name)(**values, vision_use_head=False)


def _build(options: ComposeOptions, vision: Any, text: Any, vocabulary: Vocabulary, side: int) -> tuple[Any, int]:
    """The model with fresh weights, and its image tokens per tile."""
    text.vocab_size, text.architectures = vocabulary.size, None
    ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}
    for name, value in ids.items():
        setattr(text, name, value)
    layout = options.layout
    query = options.projector in ("qformer", "resampler")
    scale = _scale(options.scale_factor, side) if options.projector == "pixel-shuffle" else 1
    config: dict[str, Any] = {
        "vision_config": vision, "text_config": text, "image_token_id": vocabulary.image,
        "tie_word_embeddings": bool(text.tie_word_embeddings), **ids, **layout.settings(side, scale),
    }  # fmt: skip
    if query:
        from edgevlm.train.connectors import QueryConfig, QueryVLM

        connector = {"kind": options.projector, "queries": options.queries, "layers": options.layers}
        model: Any = QueryVLM(QueryConfig(**config, query_connector=connector))
    else:
        model = getattr(transformers, layout.model)(getattr(transformers, layout.config)(**config))
    model.generation_config = transformers.GenerationConfig(**ids, do_sample=False)
    return model, options.queries if query else side**2 // scale**2


def _scale(wanted: int | None, side: int) -> int:
    fitting = [scale for scale in range(1, side + 1) if side % scale == 0]
    if wanted is not None and wanted not in fitting:
        listed = ", ".join(map(str, fitting))
        raise EdgeVLMError(f"--scale-factor {wanted} does not divide the {side} patches per side: choose {listed}.")
    return wanted or min(fitting[1:] or fitting, key=lambda scale: abs(side**2 // scale**2 - 64))


@torch.no_grad()
def _fill(model: Any, encoder: _Half, decoder: _Half, text: Any) -> None:
    """Copy both halves in; the rows of new tokens start near the mean of the known ones."""
    inner = model.model
    vision = inner.vision_tower if hasattr(inner, "vision_tower") else inner.vision_model
    language = inner.language_model if hasattr(inner, "language_model") else inner.text_model
    _copy(vision, encoder.tensors(), encoder.checkpoint.name)
    state = decoder.tensors()
    embeddings = {"embed_tokens.weight": language.embed_tokens.weight}
    head = [name for name in decoder.checkpoint.names() if name.endswith("lm_head.weight")]
    if not text.tie_word_embeddings:
        if not head:
            raise EdgeVLMError(f"'{decoder.checkpoint.folder}' lacks its lm_head.weight: download it again.")
        embeddings["lm_head.weight"] = model.lm_head.weight
        state["lm_head.weight"] = torch.from_numpy(decoder.checkpoint.read(head[0]))
    for name, table in embeddings.items():
        known = state.pop(name)[: len(table)]
        table[: len(known)] = known
        fresh = table[len(known) :]
        fresh.copy_(known.mean(0) + 0.1 * known.std() * torch.randn(fresh.shape))
    _copy(language, {k: v for k, v in state.items() if k != "lm_head.weight"}, decoder.checkpoint.name, aside="embed")


def _copy(module: Any, tensors: dict[str, Tensor], name: str, aside: str = "head.") -> None:
    """Every tensor of `module` but those that start with `aside`, by name and shape."""
    wanted = {k: v for k, v in module.state_dict().items() if not k.startswith(aside)}
    for key, value in wanted.items():
        if key not in tensors or tensors[key].shape != value.shape:
            found = list(tensors[key].shape) if key in tensors else "nothing"
            raise EdgeVLMError(
                f"'{name}' has {found} as '{key}', expected {list(value.shape)} by its config.json: download it again."
            )
        value.copy_(tensors[key])
