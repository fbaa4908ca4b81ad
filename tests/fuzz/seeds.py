"""Small valid files of every kind that is read, for damage: made without torch, but for the checkpoints of families."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).parents[1]
FAMILIES = ("qwen2_5_vl", "internvl", "llava15", "nanovlm", "deepseek_vl")
LAYER = "model.text_model.layers.0.self_attn"


def make_seeds(out: Path, checkpoint: Path, *, everything: bool) -> Path:
    """Fill `out`. checkpoint: a SmolVLM. everything: also CoreML packages in the bundle, and every family."""
    from edgevlm.export.pipeline import ExportOptions, export_model

    _checkpoints(out, checkpoint)
    targets = ("onnx", "gguf", "coreml") if everything else ("onnx", "gguf")
    export_model(ExportOptions(str(checkpoint), out / "bundle", targets=targets, quantize="int8", gate=False))
    shutil.copytree(Path(__file__).parent / "seed.mlpackage", out / "package")
    _data(out)
    if everything:
        sys.path.insert(0, str(TESTS))
        for family in FAMILIES:
            importlib.import_module(f"tiny.{family}").build(out / family)
    return out


def _checkpoints(out: Path, checkpoint: Path) -> None:
    from safetensors.numpy import save_file

    names = [path.name for path in checkpoint.iterdir() if path.suffix in (".json", ".jinja")]
    for folder in ("checkpoint", "sharded", "tensors", "adapter"):
        (out / folder).mkdir(parents=True)
    for name in names:
        shutil.copyfile(checkpoint / name, out / "checkpoint" / name)
        shutil.copyfile(checkpoint / name, out / "sharded" / name)
    shutil.copyfile(checkpoint / "model.safetensors", out / "checkpoint" / "model.safetensors")
    shutil.copyfile(checkpoint / "model.safetensors", out / "sharded" / "model-00001-of-00001.safetensors")
    from edgevlm.io.safetensors import SafetensorsFile

    tensors = SafetensorsFile(checkpoint / "model.safetensors").tensors
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (out / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    rng = np.random.default_rng(0)
    some = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=7).astype(np.float16),
            "c": np.arange(6).reshape(1, 2, 3), "empty": np.zeros((0, 2), np.float32)}  # fmt: skip
    save_file(some, out / "tensors" / "model.safetensors", {"format": "pt"})
    rows, columns = tensors[f"{LAYER}.q_proj.weight"].shape
    lora = {
        f"base_model.model.{LAYER}.q_proj.lora_A.weight": rng.normal(size=(2, columns)).astype(np.float32),
        f"base_model.model.{LAYER}.q_proj.lora_B.weight": rng.normal(size=(rows, 2)).astype(np.float32),
    }
    save_file(lora, out / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
              "base_model_name_or_path": "tiny", "init_lora_weights": True, "rank_pattern": {"q_proj": 2},
              "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}  # fmt: skip
    (out / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def _data(out: Path) -> None:
    from edgevlm.scenes.folder import write_scenes

    write_scenes(out / "scenes", "train", 0, 2, size=(64, 64))
    data = out / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "a.png")
    _lines(
        data / "questions.jsonl",
        {"id": "1", "image": "a.png", "question": "Is it red?", "answer": "no", "skill": "colour"},
        {"id": "2", "images": ["a.png", "a.png"], "question": "How many?", "answers": ["2", "two"], "metric": "vqa"},
        {"question": "1 + 1?", "answers": ["2"]},
    )
    _lines(
        data / "answers.jsonl",
        {"suite": "scenes", "version": 1},
        *({"id": str(i), "answer": "yes", "score": 1.0, "expected": ["yes"]} for i in range(3)),
    )
    turns = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "No."}]
    _lines(
        data / "records.jsonl",
        {"image": "a.png", "conversations": turns},
        {"image": "a.png", "question": "Is it blue?", "answer": "No."},
    )
    _lines(
        data / "examples.jsonl",
        {"image": "a.png", "question": "Is it red?", "answer": "no"},
        {"image": "a.png", "question": "Is it blue?"},
    )
    skill = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    figures = {"bundle": "b", "suite": "scenes", "runtime": "onnxruntime", "score": 0.5, "questions": 2,
               "skills": {"colour": skill}, "scores": {"colour": {"a": 0.0, "b": 1.0}}}  # fmt: skip
    (data / "eval.json").write_text(json.dumps(figures))


def _lines(path: Path, *rows: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
