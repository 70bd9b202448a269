"""Bytes on their way to the guest: a bounded queue with high and low water marks, and those who wait for room in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiovmm.console.device import ByteDevice
from aiovmm.errors import ConsoleEnded, StateError, UsageError
from aiovmm.runtime.home import HomeLoop, Use

__all__ = ["HIGH_WATER", "INPUT_LIMIT", "LOW_WATER", "InputQueue"]

HIGH_WATER = 64 << 10
LOW_WATER = 16 << 10
INPUT_LIMIT = 1 << 20
"""The most that waits for a guest which does not read: a program that never drains gets an error, not all the memory."""

_CHUNK = 4096  # bytes that a device is given first; each time it takes all, twice as many, up to `HIGH_WATER`


class InputQueue:
    """From `high` bytes on it is full for those who wait, until it is down to `low`; `limit` bounds those who do not."""

    def __init__(
        self, high: int = HIGH_WATER, low: int = LOW_WATER, limit: int = INPUT_LIMIT, use: Use | None = None
    ) -> None:
        self._use = use or Use(HomeLoop("a console"))
        self._high, self._low, self._limit = high, low, limit
        self._buffer = bytearray()
        self._device: ByteDevice | None = None
        self._full = False
        self._ended = False
        self._pushing = False
        self._room_appeared = False
        self._waiters: list[asyncio.Future[None]] = []
        self.delivered = 0  # bytes that devices have taken

    def __len__(self) -> int:
        return len(self._buffer)

    def connect(self, device: ByteDevice | None) -> None:
        """Deliver to `device` from now on (None: keep what comes until there is one)."""
        if self._device is not None:
            self._device.set_writable_callback(None)
        self._device = device
        if device is not None and not self._ended:
            device.set_writable_callback(self._push)
            self._push()

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Queue all of `data`, or raise StateError and queue nothing if more than `limit` bytes would wait."""
        _check_bytes(data)
        self._use.check()
        if self._ended:
            raise ConsoleEnded("its guest takes no more input")
        waiting = len(self._buffer) + len(data)
        if waiting > self._limit:
            raise StateError(
                f"{waiting} bytes of console input would wait for the guest, {self._limit} may: "
                "await drain() between writes, or use send(), which takes data of any size"
            )
        self._append(data)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data` piece by piece as there is room. Senders take turns, so theirs may interleave between pieces."""
        _check_bytes(data)
        view = memoryview(data).cast("B")
        while view:
            await self._room()
            piece, view = view[: self._high - len(self._buffer)], view[self._high - len(self._buffer) :]
            self._append(piece)
            self._wake()
            if view and not self._full:
                await asyncio.sleep(0)  # the device takes all at once: others want the loop too

    async def drain(self) -> None:
        """Wait until the queue is not full."""
        await self._room()
        self._wake()

    @property
    def waiting(self) -> bytes:
        """What the device has not taken yet."""
        return bytes(self._buffer)

    def restore(self, data: bytes) -> None:
        """`data` waits before what is there."""
        if not self._ended:
            self._buffer[:0] = data
            self._append(b"")

    def end(self) -> None:
        """The guest is gone: drop what waits, and those who wait get ConsoleEnded."""
        self._ended = True
        self._full = False
        self._buffer.clear()
        self.connect(None)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _room(self) -> None:
        """Wait in turn until the queue is not full. Whoever returns from it calls `_wake` for the next in turn."""
        self._use.check_waiting()
        while self._full and not self._ended:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:  # else as many as are given up while a guest reads nothing would stay
                    self._waiters.remove(waiter)
                self._wake()  # the turn may have been ours already
                raise
        if self._ended:
            raise ConsoleEnded("its guest takes no more input")

    def _wake(self) -> None:
        """Give the first in turn its chance, unless the queue is full."""
        while self._waiters and not self._full:
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data
        self._full = self._full or len(self._buffer) >= self._high
        self._push()

    def _push(self) -> None:
        """Give the device what it takes. Also its writable callback, which it may call from within `receive`."""
        self._room_appeared = True
        if self._pushing or self._device is None:
            return
        self._pushing = True
        try:
            self._deliver(self._device.receive)
        finally:
            self._pushing = False
        if self._full and len(self._buffer) <= self._low:
            self._full = False
            self._wake()

    def _deliver(self, receive: Callable[[bytes], int]) -> None:
        size = _CHUNK
        while self._buffer:
            self._room_appeared = False
            chunk = bytes(self._buffer[:size])
            taken = receive(chunk)
            del self._buffer[:taken]
            self.delivered += taken
            if taken == size:
                size = min(2 * size, HIGH_WATER)
            elif taken == 0 or (taken < len(chunk) and not self._room_appeared):
                return


def _check_bytes(data: object) -> None:
    if not isinstance(data, bytes | bytearray | memoryview):
        hint = f"b{data!r}, or .encode()" if isinstance(data, str) and data.isascii() else "bytes"
        raise UsageError(f"a console takes bytes, not {type(data).__name__}: {hint}")
