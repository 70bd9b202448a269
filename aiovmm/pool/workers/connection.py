"""The socket between a pool and a worker, at either end: frames in, frames out, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from aiovmm.errors import PeerError, SnapshotError
from aiovmm.pool.workers.frames import FROM_POOL, FROM_WORKER, Bound, Decoder, encode
from aiovmm.runtime.fair import Account
from aiovmm.runtime.plain import State
from aiovmm.runtime.stream_socket import join_socket
from aiovmm.runtime.turns import Job

__all__ = ["Connection", "connect"]

_MESSAGES = 16  # that are heard in one turn of the loop
_BYTES = 16 << 10  # of them, after which no further one is


class Connection(asyncio.Protocol):
    """`heard` is called with each message and its data; it may raise PeerError or SnapshotError for what it should not have been
    sent. `over` is set at the end, of whatever kind; `error` then is how the other end broke the protocol, if it did.

    A worker may be a guest's by now, and say as much as it likes: messages are heard in turns, and no more are read meanwhile.
    What it `hears` and what is `said` is bounded, by the same two bounds at either end."""

    def __init__(self, heard: Callable[[State, bytes], None], hears: Bound, said: Bound) -> None:
        self.over = asyncio.Event()
        self.error: PeerError | None = None
        self._heard = heard
        self._decoder = Decoder(hears)
        self._said = said
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._turns: Job | None = None
        self._behind = False  # messages wait for their turn
        self._is_paused = self._is_lost = False

    def send(self, message: State, data: bytes = b"") -> None:
        """Queue a frame. Ignored once it is over. Raises UsageError for one that is too large."""
        frame = encode(message, data, self._said)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def drain(self) -> None:
        """Wait until the other end has taken most of what was sent, or it is over."""
        await self._room.wait()

    def close(self) -> None:
        """When all has been sent. Idempotent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """At once: what has come is not heard any more. Idempotent."""
        self._behind = False
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._turns = Job(self._hear, Account())

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        assert self._transport is not None
        assert self._turns is not None
        if self.error is not None:
            return
        self._decoder.add(data)
        if not self._behind:
            self._behind = True
            self._turns.ready()
            if self._behind and not self._transport.is_closing():
                self._is_paused = True
                self._transport.pause_reading()

    def _hear(self) -> None:
        """Some of what has come: one turn."""
        assert self._transport is not None
        assert self._turns is not None
        there = len(self._decoder)
        for _ in range(_MESSAGES):
            if not self._behind or self._next_is_none():
                break
            if there - len(self._decoder) > _BYTES:
                self._turns.again()
                return
        else:
            self._turns.again()
            return
        self._behind = False
        if self._is_lost:
            self._end()
        elif self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def _next_is_none(self) -> bool:
        try:
            found = self._decoder.take()
            if found is not None:
                self._heard(*found)
            return found is None
        except (PeerError, SnapshotError) as exc:
            self.error = exc if isinstance(exc, PeerError) else PeerError(str(exc))
        except (
            Exception
        ) as exc:  # a mistake of ours that it has found: it is not to be deaf to the other end because of it
            self.error = PeerError(f"what it said cannot be heard: {exc!r}")
            context = {"message": "hearing what a worker said failed", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)
        self.abort()
        return True

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. What came before is heard."""
        self._room.set()
        self._is_lost = True
        if not self._behind:
            self._end()

    def _end(self) -> None:
        if self._turns is not None:
            self._turns.close()
        self.over.set()


async def connect(
    sock: socket.socket, heard: Callable[[State, bytes], None], *, hears: Bound = FROM_WORKER, said: Bound = FROM_POOL
) -> Connection:
    """A connection over `sock`, which is its from now on. At the worker's end the bounds are the other way round."""
    return await join_socket(sock, lambda: Connection(heard, hears, said))
