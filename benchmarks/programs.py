"""The benchmarks' own C programs: a monitor that is the floor, one that answers exits, and one that makes traffic.

They are compiled, static, for each architecture that has a compiler here, and go to the nested host with the tree; guests have no
libraries. What is an architecture's own is in a folder of its name.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from aiovmm import architecture
from aiovmm.architecture import Architecture

__all__ = ["compile_programs", "program"]

HERE = Path(__file__).parent
BIN = HERE / "bin"


def compile_programs() -> None:
    """Bring all of them up to date, as far as there are compilers."""
    for known in architecture.ALL:
        compiler = shutil.which(_compiler(known))
        if compiler is not None:
            own = HERE / known.name
            _compile(compiler, [*HERE.glob("*.c"), *own.glob("*.c")], [*own.glob("*.h")], BIN / known.name)


def _compiler(wanted: Architecture) -> str:
    return "gcc" if wanted is architecture.host() else f"{wanted.name.replace('_', '-')}-linux-gnu-gcc"


def _compile(compiler: str, sources: Iterable[Path], headers: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    newest_header = max((header.stat().st_mtime for header in headers), default=0.0)
    for source in sources:
        target = folder / source.stem
        if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, newest_header):
            fresh = target.with_suffix(".new")
            subprocess.run([compiler, "-O2", "-static", "-Wall", "-o", fresh, source], check=True, timeout=60)
            fresh.replace(target)


def program(name: str) -> Path:
    """Where the compiled program for this host is. Raises FileNotFoundError if it could not be compiled (gcc and libc6-dev)."""
    compile_programs()
    path = BIN / architecture.host().name / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: gcc and libc6-dev compile it")
    return path
