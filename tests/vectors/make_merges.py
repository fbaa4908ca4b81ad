"""Write what peft merges small adapters to: edgevlm/assets/merges.json.

    python tests/vectors/make_merges.py          (re)writes it
    python tests/vectors/make_merges.py --check  exits with 1 if it would change

Every merged value comes from peft's merge_and_unload on torch layers. Nothing here imports edgevlm. README.md describes
the file and the numbers that tensors are filled with.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn

OUT = Path(__file__).parents[2] / "edgevlm" / "assets" / "merges.json"
EMBED, HEAD = "model.language_model.embed_tokens", "lm_head"
LAYERS = {
    EMBED: lambda: nn.Embedding(11, 6),
    **{f"model.language_model.layers.{i}.self_attn.q_proj": lambda: nn.Linear(6, 6) for i in range(2)},
    **{f"model.language_model.layers.{i}.mlp.down_proj": lambda: nn.Linear(8, 6, bias=False) for i in range(2)},
    "model.vision_tower.embeddings.patch_embedding": lambda: nn.Conv2d(3, 5, 2, bias=False),
    "model.vision_tower.encoder.layers.0.self_attn.q_proj": lambda: nn.Linear(4, 4, bias=False),
    HEAD: lambda: nn.Linear(6, 11, bias=False),
}
# The same as the files of transformers 4 call them.
DISK = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model.",
        "lm_head": "language_model.lm_head"}  # fmt: skip
TEXT = r".*language_model.*\.q_proj"
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {
        "target_modules": ["q_proj", "down_proj"], "r": 6, "lora_alpha": 9, "bias": "lora_only",
        "rank_pattern": {"down_proj": 2, r"vision_tower.*\.q_proj": 4},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    },
    "rsLoRA": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 3, "use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "patch_embedding"], "r": 3, "lora_alpha": 6, "use_dora": True},
    "LoRA on embedding and head": {"target_modules": [EMBED, HEAD], "r": 5, "lora_alpha": 10},
    "own embedding of a tied model": {"target_modules": TEXT, "modules_to_save": ["embed_tokens"], "tied": True},
    "own head of a tied model": {"target_modules": TEXT, "modules_to_save": [HEAD], "tied": True},
}  # fmt: skip


def numbers(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Tensors filled one after another: number i is (i * 2654435761 mod 2^32 >> 8) / 2^24 - 1/2, i from seed * 2^20."""
    at, found = seed << 20, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        values = [((i * 2654435761 % 2**32) >> 8) / 2**24 - 0.5 for i in range(at, at + count)]
        found[name] = torch.tensor(values, dtype=torch.float32).reshape(shape)
        at += count
    return found


def on_disk(name: str) -> str:
    start = next(start for start in DISK if name.startswith(start))
    return DISK[start] + name.removeprefix(start)


def model(base: dict[str, torch.Tensor], tied: bool) -> nn.Module:
    root = nn.Module()
    for name, make in LAYERS.items():
        at, path = root, name.split(".")
        for part in path[:-1]:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(path[-1], make())
    root.load_state_dict(
        {name: base[on_disk(name)] for name in root.state_dict() if on_disk(name) in base}, strict=False
    )
    if tied:
        root.get_submodule(HEAD).weight = root.get_submodule(EMBED).weight
    return root


@torch.no_grad()
def record(name: str, seed: int) -> dict[str, Any]:
    options = {"r": 8, "lora_alpha": 8, **CASES[name]}
    tied = bool(options.pop("tied", False))
    shapes = {f"{layer}.{part}": list(value.shape) for layer, make in LAYERS.items()
              for part, value in make().state_dict().items() if not (tied and layer == HEAD)}  # fmt: skip
    shapes = {on_disk(layer): shape for layer, shape in shapes.items()}
    base = numbers(shapes, seed + 1)
    wrapped = peft.get_peft_model(model(base, tied), peft.LoraConfig(**options))
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    adapter = {key: list(value.shape) for key, value in sorted(state.items())}
    loaded = peft.set_peft_model_state_dict(wrapped, numbers(adapter, seed))
    assert not loaded.unexpected_keys
    merged = wrapped.merge_and_unload().state_dict()
    config = {key: value for key, value in options.items() if key != "target_modules"} | {"peft_type": "LORA"}
    changed = {}
    for memory, value in merged.items():
        stored = on_disk(memory)
        if stored not in base or not torch.equal(base[stored], value):
            changed[stored] = [float(f"{number:.8g}") for number in value.flatten().tolist()]
    return {
        "name": name, "seed": seed, "config": config, "adapter": adapter, "base": shapes, "tied": tied,
        "embed": on_disk(EMBED) + ".weight", "head": on_disk(HEAD) + ".weight", "merged": changed,
    }  # fmt: skip


def make() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [record(name, 2 * number) for number, name in enumerate(CASES, 1)]
    lines = ",\n".join(json.dumps(case) for case in cases)
    return f'{{"peft": "{peft.__version__}",\n"cases": [\n{lines}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = make()
    if parser.parse_args().check:
        sys.exit(OUT.read_text("utf-8") != made)
    OUT.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
