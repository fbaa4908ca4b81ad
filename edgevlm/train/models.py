"""A checkpoint as something to train: the transformers model, its specifications, its parts, and how it is saved."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevlm.checkpoint.adapter import LoraAdapter
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import read_checkpoint, read_image_spec, read_prompt_spec
from edgevlm.checkpoint.module_names import StoredNames
from edgevlm.checkpoint.opening import open_model
from edgevlm.checkpoint.upstream import copy_upstream
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.native import Native
from edgevlm.inputs.prompt import Prompter
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.models.model import ModelSpec
from edgevlm.train.collate import Collator
from edgevlm.train.examples import Encoder
from edgevlm.train.options import PARTS, TrainOptions

PLACES = {
    "vision": re.compile(r"(^|\.)(vision_model|vision_tower)\."),
    "projector": re.compile(r"(^|\.)(connector|multi_modal_projector|aligner)\."),
}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be trained, by its folder."""

    checkpoint: Checkpoint
    spec: ModelSpec
    image: ImageSpec
    prompt: PromptSpec

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def processor(self) -> Path:
        """Where the tokenizer's files are."""
        return self.checkpoint.processor

    def encoder(self, max_length: int | None = None, max_tiles: int | None = None, tiled: float = 0.0) -> Encoder:
        longest = min(max_length or self.spec.decoder.context_length, self.spec.decoder.context_length)
        return Encoder(self.image, Prompter(self.prompt, self.processor / "tokenizer.json"), longest, max_tiles, tiled)

    def collator(self, per_question: bool = False) -> Collator:
        pad_id = self.prompt.pad_id if self.prompt.pad_id is not None else self.prompt.stop_ids[0]
        return Collator(self.image, pad_id, not isinstance(self.image.rule, TilesThenWhole), per_question)

    def load(self, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """The transformers model, with an attention kernel that accepts a mask per pair of positions."""
        import transformers

        import edgevlm.train.connectors  # noqa: F401 (registers the layouts that are edgevlm's own)

        model = transformers.AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=dtype, attn_implementation="sdpa", **options
        )
        model.config.use_cache = False
        return model if self.checkpoint.adapter is None else _merged(model, self.checkpoint, self.checkpoint.adapter)


def _merged(model: Any, checkpoint: Checkpoint, adapter: LoraAdapter) -> Any:
    """The model with the adapter merged by peft, which says nothing where it finds no layer for a tensor."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, adapter.folder).merge_and_unload()
    state = merged.state_dict()
    places = StoredNames(state)
    for name in sorted(adapter.changed):
        ours, found = torch.from_numpy(checkpoint.read(name)), places.find(name)
        if found is None or not torch.allclose(state[found].float().reshape(ours.shape), ours, rtol=1e-3, atol=1e-4):
            raise EdgeVLMError(
                f"peft does not find all layers of '{checkpoint.adapter_name}' in the class that transformers has for "
                f"{checkpoint.name} ('{name}' is not merged): such an adapter can be exported, and not trained on."
            )
    return merged


def quiet_transformers() -> None:
    """Keep transformers' progress bars and warnings off standard error; errors still raise."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def open_source(model: str, processor: str | None = None) -> Source:
    """`model` is a folder, a Hub id or "default"; an adapter's stands for its base model with the adapter merged.

    processor: where the tokenizer and the processor's files are, if not beside the weights. Raises EdgeVLMError for
    what cannot be trained.
    """
    checkpoint = open_model(model, processor=processor)
    spec, _ = read_checkpoint(checkpoint)
    files = checkpoint.processor
    source = Source(checkpoint, spec, read_image_spec(files, spec), read_prompt_spec(files, spec))
    _check_trainable(source)
    return source


def _check_trainable(source: Source) -> None:
    import transformers

    import edgevlm.train.connectors  # noqa: F401

    name, kind = source.checkpoint.name, source.checkpoint.config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise EdgeVLMError(
            f"{name} has the layout of its authors' own code ({str(kind)[:80]}), which transformers has no class for: "
            "train the same model in transformers' layout, if there is one."
        )
    if isinstance(source.image.rule, Native):
        raise EdgeVLMError(
            f"{name} takes pictures of any size, which edgevlm trains on no model yet: train it with another tool, and "
            "export the result, or its adapter with --adapter."
        )


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to by its name in transformers: vision, projector or decoder."""
    return next((part for part in PARTS if part in PLACES and PLACES[part].search(name)), "decoder")


def choose_trained(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze every part but `parts`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def lora_config(model: Any, parts: tuple[str, ...], rank: int) -> Any:
    """An adapter on every linear layer of `parts` but the head, of the kind that `edgevlm export --adapter` merges."""
    from peft import LoraConfig

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name + ".") in parts and not name.endswith("lm_head")
    ]
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names, bias="none")


def load_for_training(source: Source, options: TrainOptions) -> Any:
    """The model of `source` in float32 with the right parts free, or in less where only an adapter is trained."""
    if options.lora is None:
        model = source.load()
        choose_trained(model, options.parts)
        return model
    if source.checkpoint.adapter is not None:
        raise EdgeVLMError(
            f"'{options.model}' is an adapter, and --lora would make one of a merged model that is stored nowhere: "
            "leave --lora out, or give the base model."
        )
    extra: dict[str, Any] = {"quantization_config": _four_bit(options.bf16)} if options.four_bit else {}
    model = source.load(torch.bfloat16 if options.bf16 else torch.float32, **extra)
    if options.four_bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=options.gradient_checkpointing)
    if options.stage == "preference":  # TRL adds the adapter itself, and takes it away for the reference
        return model
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, options.parts, options.lora))


def save(model: Any, source: Source, folder: Path, *, base: str, dtype: torch.dtype | None = None) -> None:
    """Write the weights and the source's small files in the Hub's layout; of a model with an adapter, only the adapter.

    base: what an adapter names as its model. dtype: how weights are stored; None: as the source stores most of them.
    """
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = base
        # lora_config leaves embedding and head alone; peft would ask the Hub for the base to find that out.
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's form to fill in
        return
    stored = dtype or stored_dtype(source.checkpoint)
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay tied, and are stored once
    state = {
        name: converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().to(stored))
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    copy_upstream(source.folder, folder, source.processor)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(stored).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type of most of a checkpoint's values."""
    sizes: dict[str, int] = {}
    for name in checkpoint.names():
        count = 1
        for side in checkpoint.shape(name):
            count *= side
        sizes[checkpoint.dtype(name)] = sizes.get(checkpoint.dtype(name), 0) + count
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return getattr(torch, most) if most in _DTYPES.values() else torch.float32


def _four_bit(bf16: bool) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise EdgeVLMError(
            "--4bit needs the package bitsandbytes: pip install bitsandbytes, or leave --4bit out."
        ) from None
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if bf16 else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
