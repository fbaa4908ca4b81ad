"""Write the tables of docs/performance.md: from docs/performance.json, which measurements fill, and from counted work.

python docs/make_performance.py                                         writes them
python docs/make_performance.py --rates FILE --peers peers/peers.json   takes measurements into performance.json first
python docs/make_performance.py --rates FILE --shapes shapes/shapes.json   ... of models of other shapes
python docs/make_performance.py --check                                 exits with 1 if the page would change

--peers: what bench/peers/compare.py wrote; --shapes: what bench/peers/shapes.py wrote; --rates: what bench/rates.py
wrote, on the same machine. Each machine keeps its own, the latest first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.bench.estimate import DEVICES, Device, seconds
from edgevlm.export.quantize.recipe import make_recipe
from edgevlm.export.targets import TARGETS
from edgevlm.models.model import ModelSpec
from edgevlm.models.projector import Linear, Shuffle
from edgevlm.models.spec import Attention, Block, Decoder, Mlp, Norm, Rope, ShortConv
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.models.towers.vit import Vit
from edgevlm.models.work import Work, encoding, reading

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.json"
BEGIN, END = "<!-- {}: written by `python docs/make_performance.py`. -->\n", "<!-- The end of {}. -->\n"
COMMAND = "python docs/make_performance.py"


# The shapes of published models, from their config.json.


def _tower_block(width: int, heads: int, mlp: int) -> Block:
    attention = Attention(heads, heads, width // heads, bias=True, out_bias=True)
    return Block((attention,), Mlp(mlp, "gelu_tanh", gated=False, bias=True), Norm("layer"))


def _tower(side: int, patch: int, width: int, layers: int, mlp: int) -> Vit:
    return Vit(side, patch, width, layers, _tower_block(width, width // 64 if width % 64 == 0 else 16, mlp))


def _text(vocab: int, width: int, layers: int, heads: tuple[int, int, int], mlp: int, tied: bool = True) -> Decoder:
    """heads: of queries, of keys, and their size."""
    block = Block((Attention(*heads, rope="main"),), Mlp(mlp))
    return Decoder(
        vocab, width, 8192, (block,), (0,) * layers, ropes={"main": Rope(1e4, heads[2])}, tie_embeddings=tied
    )


def _hybrid(width: int, heads: int, mlp: int) -> Decoder:
    attention = Attention(heads, 8, width // heads, rope="main", qk_norm=Norm())
    blocks = Block((ShortConv(3),), Mlp(mlp)), Block((attention,), Mlp(mlp))
    layers = tuple(int(i in (2, 5, 8, 10, 12, 14)) for i in range(16))
    return Decoder(65536, width, 8192, blocks, layers, ropes={"main": Rope(1e6, width // heads)}, tie_embeddings=True)


BASE, LARGE = _tower(512, 16, 768, 12, 3072), _tower(378, 14, 1152, 27, 4304)  # SigLIP's base and so400m
SMOL_135M, SMOL_360M = _text(49280, 576, 30, (9, 3, 64), 1536), _text(49280, 960, 32, (15, 5, 64), 2560)
LLAMA_3B, TINYLLAMA = _text(128256, 3072, 28, (24, 8, 128), 8192), _text(32000, 2048, 22, (32, 4, 64), 5632, False)
LFM2_350M, LFM2_700M, LFM2_1B = _hybrid(1024, 16, 4608), _hybrid(1536, 24, 6912), _hybrid(2048, 32, 8192)
# A speech encoder, whose 1,500 positions are taken for patches here; without its two convolutions, 2 % of its work.
SPEECH = QwenVit(1, 1, None, 768, 12, (), _tower_block(768, 12, 3072))


def _model(name: str, decoder: Decoder, vision: Vit = BASE, scale: int = 4) -> ModelSpec:
    return ModelSpec(
        name, "", vision, (Shuffle(scale, vision.hidden_size), Linear("map", decoder.hidden_size)), decoder, 0
    )


SMOLVLM_256M = _model("SmolVLM-256M", SMOL_135M)
MODELS = (
    SMOLVLM_256M,
    _model("SmolVLM-500M", SMOL_360M),
    _model("LFM2-VL-450M", LFM2_350M, scale=2),
    _model("LFM2-VL-1.6B", LFM2_1B, _tower(512, 16, 1152, 27, 4304), scale=2),
)


# What others have measured.

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/"
WHISPER = "https://github.com/ggml-org/whisper.cpp/issues/89"
GEERLING = "https://github.com/geerlingguy/ai-benchmarks/issues/24"
LLAMAFILE = "https://justine.lol/matmul/"
YZMA = "https://github.com/hybridgroup/yzma/blob/main/benchmarks/linux.md"
CACTUS = "https://github.com/cactus-compute/cactus"
Q2_K, Q4_K_M, Q5_K, Q6_K, Q8_0 = 5.2, 4.85, 5.5, 6.5625, 8.5  # bits of a number; 576 columns leave Q2_K little to do


@dataclass(frozen=True)
class Published:
    """A figure: tokens a second ("prefill" of 512, "decode" behind 64) or seconds of an encoder.

    bits: of a weight's number, scales included; sets: it is one that a rate of the device was taken from.
    """

    device: str
    what: str
    stage: str
    part: ModelSpec | Decoder | Vit | QwenVit
    bits: float
    figure: float
    source: str
    sets: bool = False
    size: tuple[int, int] = (512, 512)  # of the encoder's picture

    @property
    def model(self) -> ModelSpec:
        if isinstance(self.part, ModelSpec):
            return self.part
        return (
            _model("", self.part) if isinstance(self.part, Decoder) else ModelSpec("", "", self.part, (), SMOL_135M, 0)
        )

    def predicted(self) -> float:
        device = DEVICES[self.device]
        if self.stage == "encode":
            work = encoding(self.model, *self.size)
            return seconds(work, 0, device, integer=self.bits < 16)
        new, past = (512, 0) if self.stage == "prefill" else (1, 64)
        work = reading(self.model, new, past)
        read = sum(work.read[name] for name in work.products) * self.bits / 8
        return new / seconds(work, read, device, number=2)


PUBLISHED = (
    Published("pi5", "Whisper small's encoder, fp16", "encode", SPEECH, 16, 8.33, WHISPER, sets=True, size=(1, 1500)),
    Published("pi5", "LFM2-350M Q6_K", "prefill", LFM2_350M, Q6_K, 224.06, f"{LLAMA_CPP}pull/19360", sets=True),
    Published("pi5", "LFM2-350M Q6_K", "decode", LFM2_350M, Q6_K, 38.51, f"{LLAMA_CPP}pull/19360"),
    Published("pi5", "LFM2-350M Q5_K", "prefill", LFM2_350M, Q5_K, 187.35, f"{LLAMA_CPP}pull/19356"),
    Published("pi5", "LFM2-350M Q5_K", "decode", LFM2_350M, Q5_K, 43.00, f"{LLAMA_CPP}pull/19356"),
    Published("pi5", "LFM2-700M Q6_K", "prefill", LFM2_700M, Q6_K, 105.82, f"{LLAMA_CPP}pull/19360"),
    Published("pi5", "LFM2-700M Q6_K", "decode", LFM2_700M, Q6_K, 17.83, f"{LLAMA_CPP}pull/19360"),
    Published("pi5", "LFM2-700M Q5_K", "prefill", LFM2_700M, Q5_K, 89.73, f"{LLAMA_CPP}pull/19356"),
    Published("pi5", "LFM2-700M Q5_K", "decode", LFM2_700M, Q5_K, 21.33, f"{LLAMA_CPP}pull/19356"),
    Published("pi5", "Llama-3.2-3B Q4_K_M", "decode", LLAMA_3B, Q4_K_M, 5.55, GEERLING),
    Published("pi5", "TinyLlama-1.1B Q8_0 in 2024", "prefill", TINYLLAMA, Q8_0, 45, LLAMAFILE),
    Published("pi5", "TinyLlama-1.1B Q8_0 in 2024", "decode", TINYLLAMA, Q8_0, 9, LLAMAFILE),
    Published("pi5", "SmolVLM-256M's encoder, llama.cpp", "encode", SMOLVLM_256M, 16, 5, f"{LLAMA_CPP}issues/8010"),
    Published("pi5", "SmolVLM-256M's encoder, int8, ONNX Runtime of March 2025", "encode", SMOLVLM_256M, 8, 35,
              f"{LLAMA_CPP}issues/8010"),
    Published("pi5", "LFM2.5-VL-1.6B int4, its vendor's engine", "decode", LFM2_1B, 4.5, 11, CACTUS),
    Published("pi4", "TinyLlama-1.1B Q8_0 in 2024", "prefill", TINYLLAMA, Q8_0, 10, LLAMAFILE, sets=True),
    Published("pi4", "TinyLlama-1.1B Q8_0 in 2024", "decode", TINYLLAMA, Q8_0, 3, LLAMAFILE),
    Published("pi4", "SmolLM-135M Q2_K", "decode", SMOL_135M, Q2_K, 28.8, YZMA),
    Published("orin-nano", "SmolLM-135M Q2_K", "decode", SMOL_135M, Q2_K, 84.2, YZMA),
    Published("phone", "LFM2-350M Q4_K_M, Exynos 2400, 3 threads", "prefill", LFM2_350M, Q4_K_M, 303.76,
              f"{LLAMA_CPP}pull/18888", sets=True),
    Published("phone", "LFM2.5-VL-1.6B int4, Galaxy S25 Ultra, its vendor's engine", "decode", LFM2_1B, 4.5, 34, CACTUS,
              sets=True),
    Published("phone", "OmniVLM-968M's encoder, Galaxy S23, llama.cpp", "encode", LARGE, 16, 18,
              f"{LLAMA_CPP}issues/11856", size=(378, 378)),
)  # fmt: skip


# The blocks of the page.


def _table(*rows: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _read(work: Work, spec: ModelSpec) -> float:
    """Bytes of weights as an int4 bundle with the preset `balanced` has them on ONNX; what stays float, in float32."""
    recipe, onnx = make_recipe("int4"), TARGETS["onnx"]
    linear = {name: work.read[name] for name in work.products}
    plain = sum(4 * count for name, count in work.read.items() if name not in linear)
    forms = {name: recipe.form(name) for name in linear}
    return plain + sum(onnx.size_of(name, (linear[name] // 32, 32), forms[name], spec) for name in linear)


def _time(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"


STAGES = {
    "encode a tile": lambda spec: encoding(spec, 512, 512),
    "prefill 80": lambda spec: reading(spec, 80),
    "prefill 900": lambda spec: reading(spec, 900),
    "decode at 80": lambda spec: reading(spec, 1, 80),
    "decode at 900": lambda spec: reading(spec, 1, 900),
}  # those of bench/peers/compare.py


def work_table() -> str:
    rows = [("", "operations", "of them attention", "weights read", "keys and values read", "values between")]
    for stage, count in STAGES.items():
        work = count(SMOLVLM_256M)
        share = f"{100 * work.attention / work.operations:.0f} %"
        sizes = (_read(work, SMOLVLM_256M), 4 * work.kept, 4 * work.values)
        rows.append((stage, f"{work.operations / 1e9:.3g} G", share, *(f"{size / 1e6:,.0f} MB" for size in sizes)))
    return _table(*rows)


MISSING = "Not measured yet."


def _machines(results: dict[str, Any], key: str, table: Callable[[dict[str, Any]], str]) -> str:
    """A table for each machine on which this was measured, under its name."""
    found = [each for each in results.get("machines", []) if each.get(key)]
    parts = (f"**{each['rates']['machine']}**, {each['rates']['threads']} threads:\n\n{table(each)}" for each in found)
    return "\n\n".join(parts) or MISSING


def floor_table(results: dict[str, Any]) -> str:
    """results: of one machine."""
    rates = results["rates"]
    device = Device("here", rates["integer"], rates["floats"], rates["bandwidth"])
    own = (results.get("peers") or {}).get("warm", {}).get("edgevlm_onnx", {}).get("times", {})
    rows = [("", "floor", "measured", "of the floor")]
    for stage, count in STAGES.items():
        work, times = count(SMOLVLM_256M), own.get(stage)
        least = seconds(work, _read(work, SMOLVLM_256M), device)
        taken = statistics.median(times) if isinstance(times, list) and times else None
        rows.append((stage, _time(least), _time(taken) if taken else "-", f"{taken / least:.2f}" if taken else "-"))
    words = (
        f"{rates['integer'] / 1e9:.0f} G operations a second in 8-bit products, {rates['floats'] / 1e9:.0f} G in "
        f"float32, {rates['bandwidth'] / 1e9:.1f} GB/s from memory."
    )
    return f"{words}\n\n{_table(*rows)}"


def peers_table(results: dict[str, Any]) -> str:
    """results: of one machine."""
    peers, compare = results["peers"], _compare()
    programs = [program for program in compare.PROGRAMS if program.name in peers["prepared"]]
    return str(compare.table(programs, peers))


def shapes_table(results: dict[str, Any]) -> str:
    """results: of one machine."""
    parts = []
    for name, peers in results["shapes"].items():
        encoder, decoder = peers["layers"]
        made = "whole"
        if peers["depths"]:
            low, high = peers["depths"]
            made = f"from times with {low} and with {high} layers per part"
        parts.append(f"### {name}\n\n{encoder} layers and {decoder}, {made}, {peers['threads']} threads:")
        parts.append(peers_table({"peers": peers}))
    return "\n\n".join(parts)


def _compare() -> ModuleType:
    path = ROOT / "bench" / "peers" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module
    spec.loader.exec_module(module)
    return module


def devices_table() -> str:
    rows = [("device", "model", "encode a view", "read the prompt", "tokens a second", "the first token after")]
    for device in DEVICES.values():
        for spec in MODELS:
            stages = encoding(spec, 512, 512), reading(spec, 20 + spec.image_tokens), reading(spec, 1, 300)
            picture, prompt, token = (seconds(work, _read(work, spec), device) for work in stages)
            times = _time(picture), _time(prompt), f"{1 / token:.0f}", _time(picture + prompt + token)
            rows.append((device.name, spec.name, *times))
    return _table(*rows)


def errors_table() -> str:
    rows = [("device", "figure", "published", "predicted", "predicted / published")]
    for each in PUBLISHED:
        guess, unit = each.predicted(), "s" if each.stage == "encode" else "tokens/s"
        ratio = f"{guess / each.figure:.2f}" + (" (sets a rate)" if each.sets else "")
        figure = f"[{each.figure:g} {unit}]({each.source})"
        rows.append((DEVICES[each.device].name, f"{each.what}: {each.stage}", figure, f"{guess:.3g} {unit}", ratio))
    return _table(*rows)


def summary() -> str:
    """How far off, of the figures that no rate was taken from."""
    lines = []
    for key, device in DEVICES.items():
        ratios = [each.predicted() / each.figure for each in PUBLISHED if each.device == key and not each.sets]
        off = statistics.median(max(ratio, 1 / ratio) for ratio in ratios)
        lines.append(f"{device.name}: {len(ratios)}, half of them within a factor of {off:.2f}")
    return "Figures that no rate was taken from. " + "; ".join(lines) + "."


def blocks(results: dict[str, Any]) -> dict[str, str]:
    return {
        "Peers": _machines(results, "peers", peers_table),
        "Shapes": _machines(results, "shapes", shapes_table),
        "Work": work_table(),
        "Floor": _machines(results, "rates", floor_table),
        "Devices": devices_table(),
        "Errors": f"{errors_table()}\n\n{summary()}",
    }


def page(text: str, results: dict[str, Any]) -> str:
    return filled(text, blocks(results), (BEGIN, END), PAGE.name)


def filled(text: str, blocks: dict[str, str], marks: tuple[str, str], where: str) -> str:
    """The page `where` with every block written anew; what stands around them stays."""
    for name, block in blocks.items():
        begin, end = (mark.format(name) for mark in marks)
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            sys.exit(f"docs/{where} lacks the lines around its block {name}.")
        text = f"{before}{begin}\n{block}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    for name in ("peers", "shapes", "rates"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    text = PAGE.read_text(encoding="utf-8")
    if args.check:
        if page(text, results) != text:
            sys.exit(f"docs/performance.md does not match docs/performance.json and the counted work: run {COMMAND}")
        return
    given = {name: getattr(args, name) for name in ("peers", "shapes", "rates")}
    new = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in given.items() if path}
    if new and "rates" not in new:
        parser.error("--rates says which machine it was: run bench/rates.py there")
    if new:
        machine, known = new["rates"]["machine"], results.get("machines", [])
        same = [each for each in known if each["rates"]["machine"] == machine]
        others = [each for each in known if each["rates"]["machine"] != machine]
        results["machines"] = [{**(same[0] if same else {}), **new}, *others]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(text, results), encoding="utf-8")


if __name__ == "__main__":
    main()
