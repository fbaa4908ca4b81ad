"""The teacher's outputs on disk: it runs once over the data, and any number of students train on them.

A block of records is one safetensors file, which has its name when it is whole: what a stopped run finished is kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.io.files import writing
from edgevlm.train.collate import Items
from edgevlm.train.models import Source
from edgevlm.train.options import DistillOptions
from edgevlm.train.outputs import OutputChoice, run_model, top_log_probs
from edgevlm.types import Progress

BLOCK = 256  # records per file
# Of one record: ids, logs (A, k); visual_ids, visual_logs (M, k); relation; features.
TeacherOutputs = dict[str, Tensor]


@dataclass
class TeacherCache:
    """The teacher's outputs by record number, read from their files when needed."""

    folder: Path

    def __post_init__(self) -> None:
        self._files: dict[int, Any] = {}

    def __getitem__(self, number: int) -> TeacherOutputs:
        block = number // BLOCK
        if block not in self._files:
            self._files[block] = safe_open(self.folder / _name(block), "pt")
        file = self._files[block]
        prefix = f"{number}."
        found = {name.removeprefix(prefix): file.get_tensor(name) for name in self._of(block).get(number, [])}
        if not found:
            raise EdgeVLMError(f"The teacher could not read record {number + 1}: it is too long for it; leave it out.")
        return found

    def _of(self, block: int) -> dict[int, list[str]]:
        if not hasattr(self, "_names"):
            self._names: dict[int, dict[int, list[str]]] = {}
        if block not in self._names:
            names: dict[int, list[str]] = {}
            for name in self._files[block].keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                names.setdefault(int(name.split(".")[0]), []).append(name)
            self._names[block] = names
        return self._names[block]


def check_vocabularies(teacher: Source, student: Source) -> None:
    """Distillation compares probabilities of tokens, so the two must mean the same by a token."""
    files = (source.processor / "tokenizer.json" for source in (student, teacher))
    ours, theirs = (load_tokenizer(file).get_vocab(with_added_tokens=True) for file in files)
    if ours != theirs:
        differing = sum(ours.get(token) != id_ for token, id_ in theirs.items()) + len(ours.keys() - theirs.keys())
        raise EdgeVLMError(
            f"Teacher and student have different vocabularies ({len(theirs)} and {len(ours)} tokens, {differing} of "
            "them differ): distil between models of one tokenizer."
        )


def cache_teacher(
    source: Source,
    items: Items,
    folder: Path,
    options: DistillOptions,
    wanted: OutputChoice,
    vocabulary: int,
    progress: Progress,
) -> TeacherCache:
    """The teacher's outputs for all records: those in `folder`, and the missing ones computed and added to it.

    vocabulary: how many logits the student has. Processes share the blocks between them.
    """
    process = PartialState()
    place = folder / _key(source.checkpoint, items, options, wanted)
    place.mkdir(parents=True, exist_ok=True)
    blocks = range(process.process_index, -(-len(items) // BLOCK), process.num_processes)
    missing = [block for block in blocks if not (place / _name(block)).exists()]
    if missing:
        teacher = source.load().to(process.device).eval()
        for done, block in enumerate(missing):
            progress("teacher", done, len(missing))
            _cache_block(teacher, source, items, place, block, options, wanted, vocabulary)
        progress("teacher", len(missing), len(missing))
    process.wait_for_everyone()
    return TeacherCache(place)


@torch.no_grad()
def _cache_block(
    teacher: Any,
    source: Source,
    items: Items,
    place: Path,
    block: int,
    options: DistillOptions,
    wanted: OutputChoice,
    vocabulary: int,
) -> None:
    collator, device, n = source.collator(), PartialState().device, source.spec.image_tokens
    numbers = range(block * BLOCK, min((block + 1) * BLOCK, len(items)))
    tensors: TeacherOutputs = {}
    for start in range(0, len(numbers), options.batch):
        chosen = [items[number] for number in numbers[start : start + options.batch]]
        batch = collator(chosen)
        if "labels" not in batch:
            raise EdgeVLMError(f"{batch['bad'][0]}; fix the record, or leave such records out with --skip-bad.")
        counts = batch["logits_to_keep"].sum(1).tolist()
        tiles = [len(item.examples[0].tiles) for item in chosen]
        inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "numbers", "bad")}
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            out = run_model(teacher, teacher, inputs, source.spec.image_token_id, wanted, n)
        parts: dict[str, tuple[Tensor, list[int]]] = {}
        for name, logits, sizes in (
            ("", out.answers, counts),
            ("visual_", out.visual, [count * n for count in tiles]),
        ):
            if logits is not None:
                ids, logs = top_log_probs(logits[:, :vocabulary], options.temperature, options.top_k)
                parts |= {f"{name}ids": (ids, sizes), f"{name}logs": (logs, sizes)}
        for name, values in (("relation", out.relation), ("features", out.features)):
            if values is not None:
                parts[name] = (values.half(), tiles)
        for name, (values, sizes) in parts.items():
            for item, part in zip(chosen, torch.split(values.cpu(), sizes), strict=True):
                tensors[f"{item.number}.{name}"] = part.contiguous()
    with writing(place / _name(block), force=True) as new:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, new)


def _name(block: int) -> str:
    return f"{block:06d}.safetensors"


def _key(teacher: Checkpoint, items: Items, options: DistillOptions, wanted: OutputChoice) -> str:
    """A folder name that changes with everything that the outputs depend on."""
    with items.records.path.open("rb") as stream:
        data = hashlib.file_digest(stream, "sha256").hexdigest()
    names = ("max_length", "max_tiles", "tiled", "temperature", "top_k", "bf16", "skip_bad")
    facts = {name: getattr(options, name) for name in names} | asdict(wanted)
    facts |= {"version": 1, "teacher": teacher.content_hash(), "data": data, "images": str(items.records.images)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
