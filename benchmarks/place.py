"""Where a benchmark ran: machine, kernels and versions, without which its figures say nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from aiovmm import architecture
from aiovmm.errors import AiovmmError

__all__ = ["GUESTS", "title", "where"]

GUESTS = Path("/guest")
"""The nested host's kernels and programs for guests."""
_EMULATED = {"x86_64": "AMD-V", "aarch64": "arm64 (EL2)"}


def where() -> dict[str, Any]:
    """Plain data, for JSON."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _qemu(),
        "guest kernels": _releases(),
        "nested": "AIOVMM_KVMHOST" in os.environ,
        "kvm": _kvm(),
        "load": round(os.getloadavg()[0], 2),
    }


def title(place: dict[str, Any]) -> str:
    """One line that says the same."""
    parts = [place["kvm"], f"{place['processors']} processors", f"Linux {place['kernel']}", f"Python {place['python']}"]
    return ", ".join([*parts, *([place["qemu"]] if place["qemu"] else [])])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, "unknown")


def _qemu() -> str:
    try:
        done = subprocess.run([architecture.host().emulator, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "QEMU " + done.stdout.split("version ")[1].split()[0]


def _releases() -> list[str]:
    return [path.read_text().strip() for path in sorted(GUESTS.glob("*/release"))]


def _kvm() -> str:
    from aiovmm.kvm import Kvm

    if "AIOVMM_KVMHOST" in os.environ:
        return f"nested KVM in an emulated {_EMULATED[architecture.host().name]} host"
    try:
        with Kvm.open() as kvm:
            return "KVM that emulates guest kernel code" if kvm.emulates_guest_code() else "KVM"
    except (AiovmmError, OSError):
        return "no KVM"
