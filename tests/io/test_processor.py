"""What a processor is called, and its instructions for 8-bit products, from files as Linux has them."""

import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.bench.device_card import card_line
from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.commands.info import describe
from edgevlm.io.processor import processor, processor_line
from edgevlm.verify.gate import run_gate

HASWELL = "processor\t: 0\nmodel name\t: Intel Core i7-4770\nflags\t\t: fpu avx fma avx2 bmi2\n\nprocessor\t: 1\n"
XEON = "model name\t: Intel(R) Xeon(R)\nflags\t: avx2 avx512f avx_vnni avx512_vnni amx_int8\n"
PI5 = "BogoMIPS\t: 108\nFeatures\t: fp asimd crc32 asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
GRAVITON = "Features\t: asimd asimddp sve i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.skipif(platform.system() == "Darwin", reason="macOS has no /proc")
@pytest.mark.parametrize(
    ("cpuinfo", "line"),
    [
        (HASWELL, "Intel Core i7-4770 (avx2)"),
        (XEON, "Intel(R) Xeon(R) (avx2, avx_vnni, avx512_vnni, amx_int8)"),
        (PI5, "Arm implementer 0x41 part 0xd0b (dotprod)"),
        (GRAVITON, "Arm implementer 0x41 part 0xd40 (dotprod, i8mm)"),
        ("model name: VIA Nano\nflags: sse2\n", "VIA Nano"),
    ],
)
def test_processors_name_themselves(cpuinfo: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    found = processor(tmp_path)
    assert processor_line(found) == line and json.loads(json.dumps(found)) == found
    assert card_line({"cpu": found["name"], "instructions": found["instructions"]}) == line


def test_what_is_not_reported_is_left_out(tmp_path: Path) -> None:
    assert processor(tmp_path)["instructions"] is None or platform.system() == "Darwin"
    for facts in (None, {}, [], {"name": None, "instructions": ["avx2"]}, {"instructions": 3}):
        assert processor_line(facts) == ""
    assert processor_line({"name": "A", "instructions": 3}) == "A"


def test_the_gate_records_where_it_ran(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert re.search(r"judged on +not recorded\n", describe(bundle))
    report = run_gate(bundle).to_dict()
    assert report["processor"] == processor()
    judged = Bundle(bundle.folder, replace(bundle.manifest, gate=report | {"notes": ["A sentence."]}))
    assert processor_line(processor()) in describe(judged) and describe(judged).endswith("Gate passed.\nA sentence.")
