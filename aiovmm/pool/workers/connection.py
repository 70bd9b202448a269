"""The socket between a pool and a worker, at either end: frames in, frames out, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from aiovmm.errors import PeerError, SnapshotError
from aiovmm.pool.workers.frames import Decoder, encode
from aiovmm.runtime.plain import State
from aiovmm.runtime.stream_socket import join_socket

__all__ = ["Connection", "connect"]


class Connection(asyncio.Protocol):
    """`heard` is called with each message and its data; it may raise PeerError or SnapshotError for what it should not have been
    sent. `over` is set at the end, of whatever kind; `error` then is how the other end broke the protocol, if it did."""

    def __init__(self, heard: Callable[[State, bytes], None]) -> None:
        self.over = asyncio.Event()
        self.error: PeerError | None = None
        self._heard = heard
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()

    def send(self, message: State, data: bytes = b"") -> None:
        """Queue a frame. Ignored once it is over. Raises UsageError for one that is too large."""
        frame = encode(message, data)
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
        """At once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.error is not None:
            return
        try:
            for message, belonging in self._decoder.feed(data):
                self._heard(message, belonging)
        except (PeerError, SnapshotError) as exc:
            self.error = exc if isinstance(exc, PeerError) else PeerError(str(exc))
            self.abort()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._room.set()
        self.over.set()


async def connect(sock: socket.socket, heard: Callable[[State, bytes], None]) -> Connection:
    """A connection over `sock`, which is its from now on."""
    return await join_socket(sock, lambda: Connection(heard))
