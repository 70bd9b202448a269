"""A back end in a process of its own, which can be killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

__all__ = ["Daemon"]

ROOT = Path(__file__).resolve().parents[2]


class Daemon:
    """A disk in a process of its own, which can be killed."""

    def __init__(self, path: Path, image: Path, *, delay: float = 0.0) -> None:
        self._command = [sys.executable, "-m", "tests.vhost_user.daemon", str(path), str(image), str(delay)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
