"""The end of what a process says, of which there may be any amount while it lives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

__all__ = ["LastWords"]

_PART = 64 << 10  # bytes in a turn of the loop: all that a pipe holds, unless somebody has made it larger


class LastWords:
    """The last `most` bytes of what is written to `fd`, a pipe's end that is the writers' to inherit. Read as it comes, on the
    running loop, so that nobody who writes waits; `hear` is called with all of it, piece by piece. Raises OSError."""

    def __init__(self, most: int, hear: Callable[[bytes], object] = len) -> None:
        self._most, self._hear = most, hear
        self._words = bytearray()
        self._loop = asyncio.get_running_loop()
        self._read, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        self._loop.add_reader(self._read, self._take)

    def begun(self) -> None:
        """The writers have `fd`: ours goes, so that the last of theirs is the end."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def said(self) -> bytes:
        """So far."""
        if self._read >= 0:
            self._take()
        return bytes(self._words)

    def close(self) -> None:
        """Read no more. Idempotent."""
        self.begun()
        read, self._read = self._read, -1
        if read >= 0:
            self._loop.remove_reader(read)
            os.close(read)

    def _take(self) -> None:
        try:
            part = os.read(self._read, _PART)
        except BlockingIOError:
            return
        self._words += part
        del self._words[: max(0, len(self._words) - self._most)]
        self._hear(part)
        if not part:  # nobody can say more
            self.close()
