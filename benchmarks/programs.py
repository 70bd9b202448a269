"""The benchmarks' own C programs: a monitor that is the floor, one that answers exits, and one that makes traffic.

They are compiled, static, where there is a compiler, and go to the nested host with the tree; guests have no libraries.
"""

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
    newest_header = max(header.stat().st_mtime for header in HERE.glob("*.h"))
    for source in HERE.glob("*.c"):
        target = BIN / source.stem
        if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, newest_header):
            fresh = target.with_suffix(".new")
            subprocess.run([compiler, "-O2", "-static", "-Wall", "-o", fresh, source], check=True, timeout=60)
            fresh.replace(target)


def program(name: str) -> Path:
    """Where the compiled program is. Raises FileNotFoundError if it could not be compiled (gcc and libc6-dev)."""
    compile_programs()
    path = BIN / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: gcc and libc6-dev compile it")
    return path
