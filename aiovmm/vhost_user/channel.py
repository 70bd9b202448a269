"""A unix stream socket that carries messages with fds, on any event loop. Thin: bytes to the framer, messages from the codec.

An fd that arrives belongs to the message that `receive` returns, and its reader closes it (`close_fds`, or by taking it
over). In every other case it is closed here.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable

from aiovmm.errors import PeerError
from aiovmm.vhost_user.framing import Frame, Framer
from aiovmm.vhost_user.messages import Message, decode, encode
from aiovmm.vhost_user.protocol import MAX_FDS, BackendRequest, FrontendRequest

__all__ = ["Channel", "ChannelClosed", "close_fds"]

_READS = 16
"""Reads of the socket before others get a turn: a peer may send, or cut into single bytes, as fast as we read."""
_FD_SIZE = array.array("i").itemsize


class ChannelClosed(PeerError):
    """The peer has gone: its socket is closed. What it left unfinished is lost."""


def close_fds(fds: Iterable[int]) -> None:
    """Close what came with a message and is not wanted."""
    for fd in fds:
        with contextlib.suppress(OSError):  # close may report an earlier write's error; the number is free all the same
            os.close(fd)


class Channel:
    """Owns `sock`. `kind` says whose requests travel on it. One task receives; sends are made one at a time."""

    def __init__(self, sock: socket.socket, kind: type[FrontendRequest] | type[BackendRequest]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._kind = kind
        self._framer = Framer()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._closed = False
        self._reads = 0  # since others had their turn

    async def receive(self) -> Message:
        """The next message. Raises ChannelClosed at the end of the stream, PeerError for what is no message."""
        while True:
            if self._reads == _READS:
                self._reads = 0
                await asyncio.sleep(0)
            self._reads += 1
            frame = self._read()
            if isinstance(frame, Frame):
                try:
                    return decode(frame.header, frame.body, frame.fds, self._kind)
                except PeerError:
                    close_fds(frame.fds)
                    raise
            if frame is _BLOCKED:
                self._reads = 0
                await self._ready("read", self._loop.add_reader, self._loop.remove_reader)

    async def send(self, message: Message) -> None:
        """Send one message, waiting for room. Its fds stay the caller's. Raises ChannelClosed."""
        data = memoryview(encode(message))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))] if message.fds else []
        async with self._sending:
            while data:
                sent = self._write(data, rights)
                if sent is None:
                    await self._ready("write", self._loop.add_writer, self._loop.remove_writer)
                    continue
                data, rights = data[sent:], []  # the fds went with the first byte

    def close(self) -> None:
        """Close the socket and all fds of an unfinished message; who waits gets ChannelClosed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a child that was forked meanwhile may have it open yet
        self._sock.close()
        close_fds(self._framer.fds)
        self._framer.fds.clear()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(ChannelClosed("the connection was closed"))

    def _read(self) -> Frame | object | None:
        """One frame, None if more is wanted, or _BLOCKED. The 12 to 500 bytes of a message mostly come at once."""
        if self._closed:
            raise ChannelClosed("the connection was closed")
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                self._framer.wanted, socket.CMSG_SPACE(MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return _BLOCKED
        except OSError as exc:
            raise ChannelClosed(f"the connection broke: {exc.strerror}") from exc
        fds = _received_fds(ancillary)
        try:
            if flags & socket.MSG_CTRUNC:  # the kernel has closed those that did not fit
                raise PeerError(f"more than {MAX_FDS} file descriptors with one message")
            if not data:
                where = "" if self._framer.idle else " in the middle of a message"
                raise ChannelClosed(f"the peer closed the connection{where}")
        except PeerError:
            close_fds(fds)
            raise
        return self._framer.feed(data, fds)  # which holds the fds from now on

    def _write(self, data: memoryview, rights: list[tuple[int, int, array.array[int]]]) -> int | None:
        if self._closed:
            raise ChannelClosed("the connection was closed")
        try:
            return self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as exc:
            raise ChannelClosed(f"the connection broke: {exc.strerror}") from exc

    async def _ready(self, what: str, add: Callable[..., None], remove: Callable[..., object]) -> None:
        future = self._waiting[what] = self._loop.create_future()
        add(self._sock, _wake, future)
        try:
            await future
        finally:
            del self._waiting[what]
            if not self._closed:
                remove(self._sock)


_BLOCKED = object()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)
