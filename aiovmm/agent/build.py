"""Builds the agent's program: static, without a C library, for every architecture that there is a compiler for.

Called by setup.py, for `bin/` beside this file or in a build directory. It imports nothing of aiovmm, which is not
built yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

__all__ = ["FLAGS", "build_agents"]

SOURCES = Path(__file__).resolve().parent / "guest"
NATIVE = SOURCES.parent.parent / "native/src"  # a folder for each architecture that there are guests of
FLAGS = (  # noqa: SIM905 - as one types them
    "-std=gnu11 -Os -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns "
    "-fno-pie -no-pie -nostdlib -static -Wall -Wextra -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -s"
).split()


def build_agents(target: Path) -> None:
    """`aiovmm-agent-NAME` in `target` for the architecture that is built for, and for those others that a cross
    compiler is there for. One that is up to date is left alone. Raises CalledProcessError; a missing compiler for the
    first is one, too."""
    native = sysconfig.get_platform().removeprefix("linux-")
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime for path in (*SOURCES.iterdir(), Path(__file__)))
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(path.name for path in NATIVE.iterdir() if path.is_dir()):
        compiler = os.environ.get("CC", "cc").split() if name == native else [f"{name}-linux-gnu-gcc"]
        path = target / f"aiovmm-agent-{name}"
        if (path.exists() and path.stat().st_mtime >= newest) or (name != native and not shutil.which(compiler[0])):
            continue
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        subprocess.run([*compiler, *FLAGS, "-o", fresh, *sources], check=True)
        fresh.replace(path)
