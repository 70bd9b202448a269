"""C programs for guests. They are compiled, static, where the tests are collected, and go to the nested host with the tree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["compile_programs", "program"]

HERE = Path(__file__).parent
BIN = HERE / "bin"


def compile_programs() -> None:
    """Bring all of them up to date, if there is a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return
    BIN.mkdir(exist_ok=True)
    for source in HERE.glob("*.c"):
        target = BIN / source.stem
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            fresh = target.with_suffix(".new")
            subprocess.run([compiler, "-O2", "-static", "-Wall", "-o", fresh, source], check=True, timeout=60)
            fresh.replace(target)


def program(name: str) -> Path | None:
    """Where the compiled program is, or None if it could not be compiled (gcc and libc6-dev)."""
    path = BIN / name
    return path if path.exists() else None
