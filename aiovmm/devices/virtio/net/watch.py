"""Waiting for a descriptor in the event loop, with callbacks that are registered only while they can do good."""

from __future__ import annotations

import asyncio

from aiovmm.virtqueue.serving import Serving, Turn

__all__ = ["FdWatch"]


class FdWatch:
    """One coroutine may serve what is read from `fd`, and one wait for it to be writable. `close` before the descriptor is
    closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._serving: Serving | None = None
        self._writer: asyncio.Future[None] | None = None

    async def serve(self, turn: Turn) -> None:
        """Call `turn` at once, and whenever there may be something to read, straight from the loop's callbacks, until it wants
        to return. `Next.KICK` waits for input. Raises what it raises. The descriptor stays watched, for the next time, until
        `ignore`."""
        self._serving = Serving(self, turn)
        try:
            await self._serving.run()
        finally:
            self._serving = None

    def end_turn(self) -> bool:
        """There is nothing to read: watch for it. The loop tells as long as there is something, so nothing is missed."""
        if not self._reading:
            self._loop.add_reader(self._fd, self._on_readable)
            self._reading = True
        return True

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
        if self._serving is not None:
            self._serving.kicked()
        else:
            self.ignore()

    def _on_writable(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
