"""Bare-metal guests: small flat binaries assembled from `*.S` here with the GNU assembler, built when first asked for.

Every guest is linked to run at `CODE` in 64-bit mode with an identity map (see `machine.py`), and includes `guest.inc` for the
names of ports and a few macros. Real-mode parts stand below `.code16`. `kernel` and `pvh` are kernels, ELF files that a VM boots.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["CACHE", "CODE", "build", "build_all", "build_kernel"]

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / "build" / "guests"
CODE = 0x10000
"""Where a guest is loaded and entered."""
KERNELS = ("kernel", "pvh", "timers")
KERNEL = 0x100000
"""The same of a kernel."""


@functools.cache
def build(name: str) -> bytes:
    """The flat binary of `NAME.S`. Skips the test, naming it, where binutils is missing."""
    return _build(name, "bin", f"-Ttext={CODE:#x}", "--oformat=binary").read_bytes()


@functools.cache
def build_kernel(name: str = "kernel") -> Path:
    """The ELF file of `NAME.S`, which a VM boots."""
    note = f"--section-start=.note.pvh={KERNEL + 0x1000:#x}"
    return _build(name, "elf", "-N", "--no-warn-rwx-segments", f"-Ttext={KERNEL:#x}", note)


def build_all() -> None:
    """Every guest there is, into CACHE: for a place without binutils that gets the tree."""
    for name in sorted(path.stem for path in HERE.glob("*.S")):
        (build_kernel if name in KERNELS else build)(name)


def _build(name: str, suffix: str, *link: str) -> Path:
    source, include = HERE / f"{name}.S", HERE / "guest.inc"
    key = hashlib.sha256(source.read_bytes() + include.read_bytes() + repr(link).encode()).hexdigest()[:16]
    result = CACHE / f"{name}-{key}.{suffix}"
    if not result.exists():
        for tool in ("as", "ld"):
            if shutil.which(tool) is None:
                pytest.skip(f"binutils is missing (`{tool}`), so bare-metal guests cannot be assembled")
        CACHE.mkdir(parents=True, exist_ok=True)
        stem = CACHE / f"{name}-{os.getpid()}"
        obj, out = stem.with_suffix(".o"), stem.with_suffix(".tmp")
        subprocess.run(["as", "--64", f"-I{HERE}", "-o", obj, source], check=True)
        subprocess.run(["ld", *link, "-o", out, obj], check=True)
        obj.unlink()
        out.rename(result)
    return result
