"""Write the tables of docs/choose.md: sizes by arithmetic, times measured (docs/performance.json) or estimated.

python docs/make_choose.py          writes them
python docs/make_choose.py --check  exits with 1 if the page would change
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from edgevlm.bench.estimate import DEVICES, Device, seconds
from edgevlm.checkpoint.checkpoint import Checkpoint
from edgevlm.checkpoint.families import qwen3_vl
from edgevlm.export.quantize.recipe import fit, make_recipe
from edgevlm.export.targets import TARGETS
from edgevlm.io.json import JsonFile
from edgevlm.models.model import ModelSpec
from edgevlm.models.record import weight_tree
from edgevlm.models.work import encoding, reading

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "choose.md", ROOT / "docs" / "performance.json"
BEGIN, END = "<!-- {}: written by `python docs/make_choose.py`. -->\n", "<!-- The end of {}. -->\n"
SIDE, WORDS = 512, 20  # a picture of SIDE x SIDE pixels in one view, and a question of so many tokens

# config.json of Qwen/Qwen3-VL-2B-Instruct, what a model is read from.
QWEN3_VL_2B: dict[str, Any] = {
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144, "rope_theta": 5000000, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {
        "depth": 24, "deepstack_visual_indexes": [5, 11, 17], "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
        "intermediate_size": 4096, "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2048,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "tie_word_embeddings": True,
}  # fmt: skip


def _qwen() -> ModelSpec:
    """Read by its family, from the configuration alone."""
    names = ["model.language_model.embed_tokens.weight"]
    checkpoint = SimpleNamespace(name="Qwen3-VL-2B", folder="Qwen3-VL-2B", names=lambda: names)
    return qwen3_vl.read(cast(Checkpoint, checkpoint), JsonFile(Path("config.json"), QWEN3_VL_2B))


def _performance() -> ModuleType:
    path = ROOT / "docs" / "make_performance.py"
    spec = importlib.util.spec_from_file_location("make_performance", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


performance = _performance()


@dataclass(frozen=True)
class Model:
    hub: str
    spec: ModelSpec
    tokens: int  # of a picture
    measured: str | None  # its shape in performance.json; None: the model of "peers"


MODELS = (
    Model("HuggingFaceTB/SmolVLM-256M-Instruct", performance.SMOLVLM_256M, 64, None),
    Model("Qwen/Qwen3-VL-2B-Instruct", _qwen(), 256, "Qwen3-VL-2B"),
)


@dataclass(frozen=True)
class Choice:
    """A kind of device. program: of performance.json, on `machine`; device: whose rates estimate what is not there."""

    title: str
    flags: str
    engine: str
    why: str
    target: str = "onnx"
    program: str = "edgevlm_onnx"
    machine: int | None = None
    device: str | None = None


# In performance.json the machine with instructions for 8-bit products stands before the one without.
CHOICES = (
    Choice("x86 server or PC with VNNI", "--target onnx", "onnxruntime",
           "`--preset latency` reads prompts sooner, for more bytes", machine=0),
    Choice("x86 server or PC, older", "--target onnx", "onnxruntime", "exact 8-bit products cost it more", machine=1),
    Choice("Raspberry Pi 5", "--target onnx", "onnxruntime", "a 64-bit system; a fan, or it slows down", device="pi5"),
    Choice("Raspberry Pi 4", "--target onnx", "onnxruntime", "small models only", device="pi4"),
    Choice("Jetson Orin Nano", "--target onnx", "onnxruntime", "its CPU; NVIDIA's build of onnxruntime has its GPU",
           device="orin-nano"),
    Choice("Android phone", "--target onnx", "onnxruntime", "its CPU", device="phone"),
    Choice("iPhone, iPad, Mac", "--target coreml", "CoreML",
           "`--coreml-profile ane` for the Neural Engine: [two profiles](coreml.md)", target="coreml"),
    Choice("Browser or Node", "--target onnx", "transformers.js",
           "the graphs in standard operators: [elsewhere](using-a-bundle-elsewhere.md)", program="transformersjs",
           machine=0),
    Choice("Where llama.cpp runs", "--target gguf", "llama.cpp",
           "its GPUs, too: [GGUF](gguf.md); on the x86 CPU with VNNI", target="gguf", program="edgevlm_llama",
           machine=0),
)  # fmt: skip


class Shapes:
    """A model's weights without their values."""

    def __init__(self, spec: ModelSpec) -> None:
        self.tree = weight_tree(spec)

    def names(self) -> list[str]:
        return list(self.tree)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tree[name].shape

    def is_linear(self, name: str) -> bool:
        return self.tree[name].is_linear


def weight_bytes(spec: ModelSpec, target: str) -> int:
    """Of all weights in int4 with the preset `balanced`; vectors and kernels in float32, in CoreML in float16."""
    shapes, holder, total = Shapes(spec), TARGETS[target], 0
    recipe = fit(make_recipe("int4"), shapes)
    for name in shapes.names():
        shape = shapes.shape(name)
        if shapes.is_linear(name):
            total += holder.size_of(name, shape, recipe.form(name), spec)
        else:
            total += math.prod(shape) * (2 if target == "coreml" else 4)
    return total


@dataclass(frozen=True)
class Cost:
    first: float | None  # seconds from a picture and a question to the first token
    rate: float | None  # tokens a second after that
    memory: float | None  # of the whole process at its peak, in bytes
    source: str


def cost(model: Model, choice: Choice, machines: list[dict[str, Any]]) -> Cost:
    if choice.machine is not None:
        found = measured(model, choice.program, machines[choice.machine])
        if found is not None:
            return found
        if choice.program == "edgevlm_onnx":
            rates = machines[choice.machine]["rates"]
            return estimated(model, Device("", rates["integer"], rates["floats"], rates["bandwidth"]))
    return estimated(model, DEVICES[choice.device]) if choice.device else Cost(None, None, None, "not measured")


def measured(model: Model, program: str, machine: dict[str, Any]) -> Cost | None:
    """Of a picture's tokens and the question's: on the line between the measured prompts of 80 and of 900."""
    results = machine["peers"] if model.measured is None else machine.get("shapes", {}).get(model.measured, {})
    times = results.get("warm", {}).get(program, {}).get("times")
    if times is None:
        return None
    encode, short, long, token = (
        statistics.median(times[name]) for name in ("encode a tile", "prefill 80", "prefill 900", "decode at 80")
    )
    prompt = short + (long - short) * (model.tokens + WORDS - 80) / 820
    peak = results.get("cold", {}).get(program, {}).get("peak")
    return Cost(encode + prompt, 1 / token, statistics.median(peak) if peak else None, "measured")


def estimated(model: Model, device: Device) -> Cost:
    works = encoding(model.spec, SIDE, SIDE), reading(model.spec, model.tokens + WORDS), reading(model.spec, 1, 300)
    picture, prompt, token = (seconds(work, performance._read(work, model.spec), device) for work in works)
    return Cost(picture + prompt, 1 / token, None, "estimated")


def _figures(value: float, unit: str = "") -> str:
    return f"{value:.2g}{unit}" if value < 10 else f"{float(f'{value:.2g}'):.0f}{unit}"


def _megabytes(value: float) -> str:
    return f"{float(f'{value / 1e6:.3g}'):,.0f} MB"


def targets_table() -> str:
    rows = [("device", "command", "engine", "")]
    for choice in CHOICES:
        command = f"`edgevlm export MODEL {choice.flags} -o bundle`"
        rows.append((choice.title, command, choice.engine, choice.why))
    return str(performance._table(*rows))


def costs_table(model: Model, machines: list[dict[str, Any]]) -> str:
    rows = [("device", "weights", "memory of the process", "first token after", "tokens a second", "times are")]
    for choice in CHOICES:
        found, held = cost(model, choice, machines), weight_bytes(model.spec, choice.target)
        memory = _megabytes(found.memory) if found.memory else f"more than {_megabytes(held)}"
        first = _figures(found.first, " s") if found.first else "-"
        rate = _figures(found.rate) if found.rate else "-"
        rows.append((choice.title, _megabytes(held), memory, first, rate, found.source))
    return str(performance._table(*rows))


def blocks(results: dict[str, Any]) -> dict[str, str]:
    machines = results["machines"]
    return {"Targets": targets_table()} | {model.hub: costs_table(model, machines) for model in MODELS}


def page(text: str, results: dict[str, Any]) -> str:
    """The page with its tables written anew; what stands around them stays."""
    return str(performance.filled(text, blocks(results), (BEGIN, END), PAGE.name))


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    new = page(text, json.loads(RESULTS.read_text(encoding="utf-8")))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif text != new:
        sys.exit("docs/choose.md does not match docs/performance.json and the counted work: run docs/make_choose.py")


if __name__ == "__main__":
    main()
