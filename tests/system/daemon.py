"""Back ends in processes of their own."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.system.guest import limit

PROJECT = Path(__file__).resolve().parents[2]


async def until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    """Wait for what cannot be awaited. `timeout`: see `limit`."""
    async with asyncio.timeout(limit(timeout)):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Daemon:
    """A back end in a process of its own."""

    def __init__(self, command: Sequence[str | Path], socket: Path) -> None:
        self._command = [str(part) for part in command]
        self._socket = socket
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        # Some end when their input does, so it is a pipe that stays open.
        self._process = subprocess.Popen(self._command, cwd=PROJECT, stdin=subprocess.PIPE)

    def kill(self) -> None:
        """SIGKILL, and its end."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    async def __aenter__(self) -> Daemon:
        self.start()
        await until(self._socket.exists)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.kill()

    def has_written(self, size: int) -> bool:
        """Whether the process has changed so many bytes of files, those in the page cache included."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/io").read_text()
        return int(re.findall(r"\nwrite_bytes: (\d+)", text)[0]) >= size
