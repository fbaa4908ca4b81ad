"""The machine of a measurement: processor, memory, system, board, engine versions. Linux, macOS, Windows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from edgevlm.io.processor import processor, processor_line, read_fields, read_line, sysctl, usable_cores

ENGINES = ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "coremltools", "numpy", "pillow", "tokenizers")


def device_card(root: Path = Path("/")) -> dict[str, Any]:
    """Facts by name, None where the system does not report one. `root` is where /proc, /sys and /etc are looked for.

    `memory` is in bytes, `load` the average number of busy processes over the last minute: figures of a machine that
    was busy with other things say little.
    """
    cpu = processor(root)
    return {
        "cpu": cpu["name"],
        "instructions": cpu["instructions"],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory": _memory(root),
        "board": _board(root),
        "governor": read_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
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
        processor_line({"name": card.get("cpu") or card.get("machine"), "instructions": card.get("instructions")}),
        f"{cores} cores" if cores else None,
        f"{memory / 1e9:.1f} GB" if isinstance(memory, int | float) else None,
        card.get("os"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _memory(root: Path) -> int | None:
    if platform.system() == "Darwin":
        size = sysctl("hw.memsize")
        return int(size) if size and size.isdigit() else None
    total = read_fields(root / "proc/meminfo", ":").get("MemTotal", "").split()
    return int(total[0]) * 1024 if total and total[0].isdigit() else None


def _board(root: Path) -> str | None:
    """ "Raspberry Pi 5 Model B Rev 1.0", "NVIDIA Jetson Orin Nano Developer Kit", with Jetson's L4T release."""
    model = read_line(root / "proc/device-tree/model")
    release = read_line(root / "etc/nv_tegra_release")
    return f"{model or 'Jetson'}, L4T {release.split(',')[0].lstrip('# ')}" if release else model


def _os(root: Path) -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return read_fields(root / "etc/os-release", "=").get("PRETTY_NAME") or f"{platform.system()} {platform.version()}"


def _versions() -> dict[str, str]:
    from edgevlm import __version__

    versions = {"edgevlm": __version__, "python": platform.python_version()}
    for name in ENGINES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
