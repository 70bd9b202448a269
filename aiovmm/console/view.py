"""A console's output for somebody who looks at it on a terminal."""

from __future__ import annotations

import asyncio

from aiovmm.console.pieces import PIECE
from aiovmm.console.reader import CHUNK, ConsoleReader
from aiovmm.console.replay import QueryFilter

__all__ = ["ConsoleView"]


class ConsoleView:
    """A reader whose history leaves out what a terminal would answer again, and which says in place what was lost.

    It takes a piece at a time from the ring, so a terminal that is shown a long history costs no copy of it.
    """

    def __init__(self, reader: ConsoleReader, lost: int, live_from: int) -> None:
        """`lost`: bytes missing before the reader's first; up to the offset `live_from` its output is history."""
        self._reader = reader
        self._live_from = live_from
        self._filter = QueryFilter()
        self._missing = lost if live_from else 0
        self._counted = 0

    async def read(self) -> bytes:
        """The next piece to show; b"" at the end."""
        while True:
            old = self._live_from - self._reader.position
            data = await self._reader.read(min(old, PIECE) if old > 0 else CHUNK)
            shown = self._note() + (self._filter.feed(data) if old > 0 and data else self._filter.flush() + data)
            if shown or not data:
                return shown
            await asyncio.sleep(0)  # a history of nothing that is shown may be long

    @property
    def position(self) -> int:
        """See ConsoleReader.position."""
        return self._reader.position

    def close(self) -> None:
        """See ConsoleReader.close."""
        self._reader.close()

    def _note(self) -> bytes:
        """A line for the output that is missing here, if any is."""
        lost = self._reader.lost
        missing, self._missing, self._counted = self._missing + lost - self._counted, 0, lost
        return b"\r\n[%d bytes of earlier output are not shown]\r\n" % missing if missing else b""
