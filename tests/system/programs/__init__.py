"""C programs for guests. They are compiled, static, where the tests are collected, and go to the nested hosts with the tree."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.kvmhost.arch import ARCHES

__all__ = ["compile_programs", "program"]

HERE = Path(__file__).parent
BIN = HERE / "bin"  # a folder for each architecture


def compile_programs() -> None:
    """Bring all of them up to date, for each architecture that there is a compiler for."""
    for arch in ARCHES.values():
        compiler = shutil.which(f"{arch.cross}gcc")
        if compiler is None:
            continue
        (BIN / arch.name).mkdir(parents=True, exist_ok=True)
        for source in HERE.glob("*.c"):
            target = BIN / arch.name / source.stem
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                fresh = target.with_suffix(f".{os.getpid()}")  # another process may be about it, too
                subprocess.run([compiler, "-O2", "-static", "-Wall", "-o", fresh, source], check=True, timeout=60)
                fresh.replace(target)


def program(name: str) -> Path | None:
    """Where the program compiled for this machine is, or None if it could not be compiled (gcc and libc6-dev)."""
    path = BIN / platform.machine() / name
    return path if path.exists() else None
