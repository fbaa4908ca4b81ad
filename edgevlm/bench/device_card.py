"""The machine of a measurement: processor, memory, system, board, engine versions. Linux, macOS, Windows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ENGINES = ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "coremltools", "numpy", "pillow", "tokenizers")


def device_card(root: Path = Path("/")) -> dict[str, Any]:
    """Facts by name, None where the system does not report one. `root` is where /proc, /sys and /etc are looked for.

    `memory` is in bytes, `load` the average number of busy processes over the last minute: figures of a machine that
    was busy with other things say little.
    """
    return {
        "cpu": _cpu(root),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(root),
        "board": _board(root),
        "governor": _line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "machine": platform.machine(),
        "os": _os(root),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": _versions(),
    }


def card_line(card: dict[str, Any]) -> str:
    """The card in one line for people; of any JSON, so missing facts are left out."""
    memory, cores = card.get("memory"), card.get("cores")
    parts = [
        card.get("board"),
        card.get("cpu") or card.get("machine"),
        f"{cores} cores" if cores else None,
        f"{memory / 1e9:.1f} GB" if isinstance(memory, int | float) else None,
        card.get("os"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _line(path: Path) -> str | None:
    """A one-line file; device trees end theirs with a zero byte."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def _fields(path: Path, separator: str) -> dict[str, str]:
    """`key<separator>value` lines, the first of each key."""
    fields: dict[str, str] = {}
    for line in (_line(path) or "").splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def _cpu(root: Path) -> str | None:
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    fields = _fields(root / "proc/cpuinfo", ":")
    # Arm's Linux has no model name, only the maker's and the design's numbers.
    arm = f"Arm implementer {fields.get('CPU implementer')} part {fields.get('CPU part')}"
    return fields.get("model name") or (arm if "CPU part" in fields else None) or platform.processor() or None


def _memory(root: Path) -> int | None:
    if platform.system() == "Darwin":
        size = _sysctl("hw.memsize")
        return int(size) if size and size.isdigit() else None
    total = _fields(root / "proc/meminfo", ":").get("MemTotal", "").split()
    return int(total[0]) * 1024 if total and total[0].isdigit() else None


def _board(root: Path) -> str | None:
    """ "Raspberry Pi 5 Model B Rev 1.0", "NVIDIA Jetson Orin Nano Developer Kit", with Jetson's L4T release."""
    model = _line(root / "proc/device-tree/model")
    release = _line(root / "etc/nv_tegra_release")
    return f"{model or 'Jetson'}, L4T {release.split(',')[0].lstrip('# ')}" if release else model


def _os(root: Path) -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return _fields(root / "etc/os-release", "=").get("PRETTY_NAME") or f"{platform.system()} {platform.version()}"


def _sysctl(name: str) -> str | None:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _versions() -> dict[str, str]:
    from edgevlm import __version__

    versions = {"edgevlm": __version__, "python": platform.python_version()}
    for name in ENGINES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
