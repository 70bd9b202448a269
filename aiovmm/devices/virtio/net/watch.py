"""Waiting for a descriptor in the event loop, with callbacks that are registered only while they can do good."""

from __future__ import annotations

import asyncio

__all__ = ["FdWatch"]


class FdWatch:
    """One coroutine may wait for `fd` to be readable and one for it to be writable. `close` before the descriptor is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def readable(self) -> None:
        """Until there is something to read. The descriptor stays watched, for the next time, until `ignore`."""
        if not self._reading:
            self._loop.add_reader(self._fd, self._on_readable)
            self._reading = True
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def ignore(self) -> None:
        """Stop watching for input: nobody could take it now, and the loop must not spin on it."""
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    async def writable(self) -> None:
        """Until something can be written."""
        self._writer = self._loop.create_future()
        self._loop.add_writer(self._fd, self._on_writable)
        try:
            await self._writer
        finally:
            self._loop.remove_writer(self._fd)
            self._writer = None

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        self.ignore()
        self._loop.remove_writer(self._fd)

    def _on_readable(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _on_writable(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
