"""Where events and log lines are written to: a stream whose reader may be slow, leave, or come later, or a file whose storage may
stand still."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from aiovmm.cli.messages import say
from aiovmm.runtime.hands import Hands
from aiovmm.runtime.nowait import write_now

__all__ = ["ROOM", "RecordWriter", "let_threads_write"]

ROOM = 256 << 10
"""Bytes that wait for a file's storage, at most."""
_PATIENCE = 1.0  # seconds that storage has at the end for what waits


_threads_write = True


def let_threads_write(may: bool) -> None:
    """Or not, while this process may have none: until it is confined (confinement.py) there is no guest that would wait."""
    global _threads_write
    _threads_write = may


def _lost_in_words(count: int) -> bytes:
    return b"aiovmm: lines lost here: %d\n" % count


class RecordWriter:
    """Writes to `fd`, whatever that is and whoever shares it, and waits for nobody. Of a stream nothing is kept for who does not
    read, but the rest of what has been begun: who reads again gets whole records. What goes to a file is written by a thread.

    What is lost is counted, and a record of its own, which `lost` makes of the number, stands in its place as soon as that can be
    written. `what` they are is said by `tell` where they cannot be written, once until they can be again; and at the end how
    many were lost since, though not of a reader that has left."""

    def __init__(
        self,
        fd: int,
        what: str = "events",
        tell: Callable[[str], None] = say,
        lost: Callable[[int], bytes] = _lost_in_words,
    ) -> None:
        self._fd = fd
        self._what, self._tell, self._of_lost = what, tell, lost
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._write = os.write if is_file else write_now
        self._hands = Hands(1, f"aiovmm: write {what}") if is_file else None
        self._lock = threading.Lock()  # of what follows
        self._lost = 0
        self._waiting_bytes = self._waiting = 0
        self._rest = b""  # of a record that has been begun; this and the next belong to who writes
        self._said = False  # that they cannot be written

    def write(self, data: bytes) -> None:
        """One record, now or soon, or never."""
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            data = self._of_lost(lost) + data
        if self._hands is None or not _threads_write:
            self._write_now(data, lost + 1)
        elif not self._written_later(self._hands, data, lost + 1):
            self._count(lost + 1)

    async def finish(self) -> None:
        """Wait until all is written that waits, for a second at most, and say what was lost at the end."""
        with suppress(RuntimeError):
            await asyncio.wait([asyncio.wrap_future(self._flushed())], timeout=_PATIENCE)
        self._end()

    def finish_now(self) -> None:
        """The same where there is no event loop any more."""
        with suppress(RuntimeError, TimeoutError):
            self._flushed().result(_PATIENCE)
        self._end()

    def _flushed(self) -> Future[None]:
        if self._hands is not None and self._waiting:
            return self._hands.submit(lambda: None)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _end(self) -> None:
        with self._lock:
            lost, self._lost = self._lost + self._waiting, 0
        if lost:
            self._tell(f"{self._what}: {lost} were lost at the end: where they go to takes no more")

    def _count(self, records: int) -> None:
        with self._lock:
            self._lost += records

    # -- a file's

    def _written_later(self, hands: Hands, data: bytes, records: int) -> bool:
        with self._lock:
            if self._waiting_bytes + len(data) > ROOM:
                return False
            self._waiting_bytes += len(data)
            self._waiting += records
        try:
            hands.submit(self._in_thread, data, records)
        except RuntimeError:  # there is no thread
            self._no_more(data, records)
            return False
        return True

    def _in_thread(self, data: bytes, records: int) -> None:
        try:
            self._write_now(data, records)
        finally:
            self._no_more(data, records)

    def _no_more(self, data: bytes, records: int) -> None:
        with self._lock:
            self._waiting_bytes -= len(data)
            self._waiting -= records

    # -- writing

    def _write_now(self, data: bytes, records: int) -> None:
        """What is left of the one before first. `data` stands for so many records, which are lost if none of it can be begun."""
        begun = False
        try:
            self._pour()
            self._rest = data[self._write(self._fd, data) :]
            begun = True
            self._pour()
            self._said = False
        except OSError as exc:
            self._failed(exc, 0 if begun else records)

    def _pour(self) -> None:
        while self._rest:
            self._rest = self._rest[self._write(self._fd, self._rest) :]

    def _failed(self, error: OSError, records: int) -> None:
        if error.errno == errno.EPIPE:
            self._rest = b""
            return
        self._count(records)
        if error.errno != errno.EAGAIN and not self._said:
            self._said = True
            self._tell(f"{self._what} cannot be written: {error.strerror}")
