"""One reader of a console: a cursor into the history ring, and the ways to wait for what comes there."""

from __future__ import annotations

import asyncio
import re
from asyncio import IncompleteReadError
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from aiovmm.console.ring import HistoryRing
from aiovmm.console.search import OVERLAP, Found, Look, Pattern, PatternSearch, SeparatorSearch
from aiovmm.errors import ConsoleEnded, ExpectTimeout, PatternTooSlow, StateError, UsageError
from aiovmm.runtime.event import Event
from aiovmm.runtime.home import Use

__all__ = ["ConsoleReader", "OutputLog"]

CHUNK = 64 << 10
"""Default size of a read, in bytes."""

_IN_A_ROW = 0.0005
"""Seconds in which a reader finds what it wants without waiting: then others have their turn. What is taken apart line by line a
guest prints a hundred times as fast."""


class OutputLog:
    """What the guest printed: the ring, whether more can come, and those who wait for it."""

    def __init__(self, capacity: int, use: Use) -> None:
        self.use = use
        self.ring = HistoryRing(capacity)
        self.ended = False
        self.over = Event()
        self._waiters: list[asyncio.Future[None]] = []

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The guest has printed."""
        self.ring.write(data)
        self.wake()

    def end(self) -> None:
        """It will print no more. Idempotent."""
        self.ended = True
        self.over.set()
        self.wake()

    def wake(self) -> None:
        """Whoever waits for output looks again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until there is more, or no more can come."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)


class ConsoleReader:
    """Reads a console's output from its own place, shaped like asyncio.StreamReader.

    A reader that falls more than the history's size behind loses the oldest bytes, never the guest's time nor memory:
    `lost` counts them, and reading goes on at the oldest byte that is kept. Every method moves the cursor only when it
    returns; one that is cancelled, times out or fails leaves the output to be read again. One task at a time may wait
    (else StateError): let each take its own from `Console.reader()`.
    """

    def __init__(self, log: OutputLog, position: int) -> None:
        self._log = log
        self._cursor = position
        self._stop: int | None = None
        self._waiting = False
        self._lost = 0
        self._went_on = self._left = 0.0  # when others last had their turn, and when somebody last found something here

    @property
    def lost(self) -> int:
        """Bytes that were overwritten before this reader got to them."""
        self._catch_up()
        return self._lost

    @property
    def position(self) -> int:
        """Offset of the next byte to read, counted from the first that the guest printed."""
        self._catch_up()
        return self._cursor

    @property
    def unread(self) -> bytes:
        """What could be read without waiting."""
        return self._log.ring.read(self._catch_up(), self._available())

    def at_eof(self) -> bool:
        """True if all was read and no more will come."""
        return self._final() and self._available() == 0

    def close(self) -> None:
        """Read no further than what has been printed by now: what then follows is the end. Idempotent."""
        if self._stop is None:
            self._stop = self._log.ring.end
            self._log.wake()

    async def read(self, n: int = CHUNK) -> bytes:
        """1..`n` bytes, as soon as there are any; b"" at the end."""
        if type(n) is not int or n < 0:
            raise UsageError("read(n) needs a size: a console's output has no bound to read up to")
        await self._until(lambda: n == 0 or self._available() > 0)
        return self._take(min(n, self._available()))

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes, no more than the history holds (else UsageError); asyncio.IncompleteReadError at the end."""
        if type(n) is not int or not 0 <= n <= self._log.ring.capacity:
            raise UsageError(f"readexactly({n!r}): the history holds {self._log.ring.capacity} bytes")
        if not await self._until(lambda: self._available() >= n):
            raise IncompleteReadError(self._take(self._available()), n)
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Output up to and with `separator`; asyncio.IncompleteReadError, with the rest, at the end."""
        found = await self._search_separator(separator)
        if found is None:
            raise IncompleteReadError(self._take(self._available()), None)
        return self._take(found - self._cursor)

    async def readline(self) -> bytes:
        """Output up to and with the next newline; the rest, or b"", at the end."""
        found = await self._search_separator(b"\n")
        return self._take(self._available() if found is None else found - self._cursor)

    async def expect(
        self, pattern: Pattern | Sequence[Pattern], timeout: float | None = 30.0, *, overlap: int = OVERLAP
    ) -> re.Match[bytes]:
        """Wait until `pattern` matches in what is unread, move behind the match, and return it.

        `pattern` is a bytes regular expression, or several: the first that matches wins, and `match.re` tells which. What
        matches is looked for in the output as it comes, so a repeat at the end takes what has come by then: end a pattern with
        what follows (rb"eth0 (\\S+)\\s"). Each byte is looked at once, whatever the pattern, and others have their turn on the
        loop: it costs what it costs, 0.1 to 1 us a byte. A match begins no more than `overlap` bytes before the output that
        completes it, and `match.string` holds little more than those. `^` is the beginning of what was unread at the call.

        `timeout` in seconds, None for no limit. Raises ExpectTimeout, or ConsoleEnded at once when no more output can come;
        both show what is unread, and leave it so. Raises PatternTooSlow (an ExpectTimeout) if what the guest prints makes a
        pattern whose repeats overlap, like rb"(\\w+\\s*)+:", take longer than a loop can wait.
        """
        from aiovmm.runtime.awake import awake_timeout  # not by who only reads
        from aiovmm.runtime.timeouts import check_seconds

        search = PatternSearch(pattern, overlap)
        check_seconds(timeout, "expect(timeout=)")
        await self._give_way()  # before: what is there is found in no time
        try:
            async with awake_timeout(timeout):
                found = await self._search_pattern(search)
        except TimeoutError as exc:
            if isinstance(exc, PatternTooSlow):
                raise
            raise ExpectTimeout(search.text, timeout or 0.0, self.unread) from None
        if found is None:
            raise ConsoleEnded(f"no match for {search.text!r}", self.unread)
        match, self._cursor = found
        return match

    async def lines(self) -> AsyncIterator[bytes]:
        """Line after line, newlines included, until the end."""
        while line := await self.readline():
            yield line

    def __aiter__(self) -> ConsoleReader:
        return self

    async def __anext__(self) -> bytes:
        """The next piece of output, of whatever size it came in."""
        if chunk := await self.read():
            return chunk
        raise StopAsyncIteration

    async def _search_separator(self, separator: bytes) -> int | None:
        """The offset behind the next separator, or None if the end came first."""
        search = SeparatorSearch(separator)
        found: list[int] = []

        def matches() -> bool:
            result = search.run(self._log.ring, self._catch_up(), self._limit())
            found.extend([result] if result is not None else [])
            return bool(found)

        await self._until(matches)
        return found[0] if found else None

    async def _search_pattern(self, search: PatternSearch) -> Found | None:
        """What is found, or None if the end came first."""
        with self._alone():
            while True:
                found = await _carried_out(search.look(self._log.ring, self._catch_up(), self._limit()))
                if found is not None:
                    return found
                if search.seen < self._limit():
                    await asyncio.sleep(0)
                elif self._final():
                    return None
                else:
                    await self._log.changed()

    async def _until(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()`; False if the end came first. `ready` is asked once for each change."""
        await self._give_way()
        with self._alone():
            while not ready():
                if self._final():
                    return False
                await self._log.changed()
            return True

    async def _give_way(self) -> None:
        now = perf_counter()
        if now - self._left > _IN_A_ROW:  # it comes from somewhere else
            self._went_on = now
        elif now - self._went_on > _IN_A_ROW:
            await asyncio.sleep(0)
            self._went_on = perf_counter()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._log.use.check_waiting()
        if self._waiting:
            raise StateError("another task waits on this reader; take one of your own from Console.reader()")
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            self._left = perf_counter()

    def _take(self, n: int) -> bytes:
        data = self._log.ring.read(self._catch_up(), n)
        self._cursor += len(data)
        return data

    def _available(self) -> int:
        return max(0, self._limit() - self._catch_up())

    def _limit(self) -> int:
        """Offset up to which this reader may read now."""
        return self._log.ring.end if self._stop is None else self._stop

    def _final(self) -> bool:
        return self._log.ended or self._stop is not None

    def _catch_up(self) -> int:
        """The cursor, moved to the oldest byte there is if it was overrun."""
        behind = self._log.ring.start - self._cursor
        if behind > 0:
            self._lost += behind
            self._cursor += behind
        return self._cursor


async def _carried_out(look: Look) -> Found | None:
    """Step through a search: others have their turn where it says so, and trials are made."""
    answer: bool | None = None
    while True:
        try:
            asked = look.send(answer)
        except StopIteration as exc:
            found: Found | None = exc.value
            return found
        if asked is None:
            await asyncio.sleep(0)
            answer = None
        else:
            from aiovmm.console.trial import try_match  # for patterns that few write

            answer = await try_match(asked)
