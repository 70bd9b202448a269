"""Standard input and output that are no terminal: for `aiovmm run` in a script, unattended."""

from __future__ import annotations

import os
from collections.abc import Callable

from aiovmm.console.backends.duplex import CHUNK, DuplexBackend
from aiovmm.console.fds import Descriptor, open_end, open_output
from aiovmm.console.stream import Console

__all__ = ["StdioBackend"]


class StdioBackend(DuplexBackend):
    """Descriptors that are pipes, sockets or files. They stay the caller's: they are not closed."""

    def __init__(
        self,
        console: Console,
        input_fd: int = 0,
        output_fd: int = 1,
        *,
        on_output_lost: Callable[[OSError], None] | None = None,
    ) -> None:
        """`on_output_lost`: see Terminal."""
        super().__init__(console)
        self._fds = (input_fd, output_fd)
        self._on_output_lost = on_output_lost
        self._opened: list[Descriptor] = []

    @property
    def place(self) -> str:
        """In words: it has no path."""
        return "standard input and output"

    async def _open(self) -> None:
        self._opened.append(open_end(self._fds[0], os.O_RDONLY))
        self._opened.append(open_output(self._fds[1], self._on_output_lost))

    async def _read(self) -> bytes:
        return await self._opened[0].read(CHUNK)

    async def _write(self, data: bytes) -> None:
        await self._opened[1].write(data)

    async def _close(self) -> None:
        while self._opened:  # the last first: two duplicates of one file put its flags back in that order
            self._opened.pop().close()
