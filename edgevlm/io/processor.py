"""This machine: its processor and instructions for products of 8-bit numbers, and what of it this process takes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

# As Linux names them in /proc/cpuinfo: the flag, and what it is called here. With one of the VNNI ones or of Arm's, an
# engine adds products in 32 bits; with AVX2 alone it may add pairs of them in 16.
_FLAGS = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "amx_int8": "amx_int8",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}
# As macOS names them: 1 where the processor has it.
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


def usable_cores() -> int:
    """Of this process, which may not be all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int | None:
    """Bytes of this process's largest resident set so far; None where the system does not report it (Windows).

    Not Linux's ru_maxrss: a process starts with its parent's there.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            peak = next((line for line in status if line.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else None
    except OSError:
        pass
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor(root: Path = Path("/")) -> dict[str, Any]:
    """{"name", "instructions"}: None where the system does not report it. `root` is where /proc is looked for."""
    if platform.system() == "Darwin":
        found: list[str] | None = [name for key, name in _SYSCTL.items() if sysctl(key) == "1"]
        return {"name": sysctl("machdep.cpu.brand_string"), "instructions": found}
    fields = read_fields(root / "proc/cpuinfo", ":")
    # Arm's Linux has no model name, only the maker's and the design's numbers.
    arm = f"Arm implementer {fields.get('CPU implementer')} part {fields.get('CPU part')}"
    name = fields.get("model name") or (arm if "CPU part" in fields else None) or platform.processor() or None
    flags = fields.get("flags") or fields.get("Features")
    found = [known for flag, known in _FLAGS.items() if flag in flags.split()] if flags else None
    return {"name": name, "instructions": found}


def processor_line(facts: Any) -> str:
    """ "Intel(R) Xeon(R) Processor (avx2, avx512_vnni)"; of any JSON, so that what is missing is left out."""
    facts = facts if isinstance(facts, dict) else {}
    name, found = str(facts.get("name") or ""), facts.get("instructions")
    return f"{name} ({', '.join(map(str, found))})" if name and found and isinstance(found, list) else name


def read_line(path: Path) -> str | None:
    """A one-line file; device trees end theirs with a zero byte."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def read_fields(path: Path, separator: str) -> dict[str, str]:
    """`key<separator>value` lines, the first of each key."""
    fields: dict[str, str] = {}
    for line in (read_line(path) or "").splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def sysctl(name: str) -> str | None:
    """A value of macOS's kernel."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, encoding="utf-8", timeout=5)
        return done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
