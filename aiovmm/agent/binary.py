"""The agent's program, as the package was built with it."""

from __future__ import annotations

import os
from pathlib import Path

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.errors import ImageError

__all__ = ["agent_binary"]

_FOLDER = Path(__file__).resolve().parent / "bin"


def agent_binary(arch: Architecture | None = None) -> Path:
    """For guests of `arch` (this machine's). Raises ImageError where the package was built without a compiler for it."""
    arch = arch or architecture.host()
    path = _FOLDER / f"aiovmm-agent-{arch.name}"
    if not os.access(path, os.R_OK):
        hint = f"build aiovmm where there is gcc for {arch.title} ({arch.name}-linux-gnu-gcc): `make native`"
        raise ImageError(str(path), f"this aiovmm was built without the agent for {arch.title}", hint)
    return path
