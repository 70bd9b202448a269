"""The program's way to the guest: asyncio streams, with no unix socket in any directory.

A connection is a socket pair, one half the device's and one half behind real asyncio streams, so that buffering, flow
control, `write_eof`, `drain` and `wait_closed` are asyncio's own, on any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from aiovmm.devices.virtio.vsock.connection import Connection
from aiovmm.devices.virtio.vsock.switch import Accepted, Switch
from aiovmm.errors import HostError, StateError, UsageError
from aiovmm.runtime.descriptors import Share
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.quota import Quota
from aiovmm.runtime.stream_socket import join_socket, let_go
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.timeouts import time_limit

__all__ = ["Streams", "Vsock", "VsockServer"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_PORT_MAX = 0xFFFFFFFE  # VMADDR_PORT_ANY is -1
_BACKLOG = 128  # connections that wait to be accepted
_RETRY_FIRST, _RETRY_LAST = 0.01, 0.25  # seconds between attempts while the guest does not listen yet


class _Half:
    """The program's half of a connection, before and after there are streams on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader: asyncio.StreamReader | None = None
        self._error: OSError | None = None
        self._untaken: Streams | None = None  # made for somebody who wanted them no more

    @property
    def is_over(self) -> bool:
        """Whether it has come to an abrupt end."""
        return self._error is not None

    def keep(self, streams: Streams) -> None:
        """For whoever asks next: what the guest has said by now is in there."""
        self._untaken = streams

    def close(self) -> None:
        """Nobody wants it."""
        if self._untaken is not None:
            self._untaken[1].transport.abort()
        self.drop()

    async def streams(self) -> Streams:
        if self._untaken is not None:
            untaken, self._untaken = self._untaken, None
            return untaken
        from aiovmm.runtime.sharing_reader import open_streams  # for who has one

        try:
            reader, writer = await open_streams(self.sock)
        except BaseException:
            self.sock.close()
            raise
        let_go(self.sock, writer.get_extra_info("socket"))  # also the guest may reset it in this very moment
        self._reader = reader
        if self._error is not None:
            reader.set_exception(self._error)
        return reader, writer

    async def protocol(self, factory: Callable[[], P]) -> P:
        """The same with a protocol of the caller's, which sees any end as `connection_lost`."""
        return await join_socket(self.sock, factory)

    def drop(self) -> None:
        """Close it, if there are no streams that have it: a task that was cancelled before it began has made none."""
        if self._reader is None:
            self.sock.close()

    def aborted(self, error: OSError) -> None:
        """An abrupt end must not look like a clean one: the reader raises `error`."""
        self._error = error
        if self._reader is not None:
            self._reader.set_exception(error)


class Vsock:
    """Connections to the guest and from it, by port. `vm.vsock`."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._home = HomeLoop("vsock")
        self._servers: set[VsockServer] = set()
        self._closed = False
        self._ended = ""  # how the guest has

    async def connect(self, port: int, *, timeout: float | None = 10.0, wait: bool = False) -> Streams:
        """A connection to `port` of the guest, as (StreamReader, StreamWriter), in at most `timeout` seconds.

        A guest whose driver is not there yet is waited for, and with `wait` one where nobody listens yet too; else that is
        ConnectionRefusedError. Raises TimeoutError, ConnectionError, HostError (too many), StateError (closed). When the
        guest ends the connection abruptly, or reboots, the reader raises ConnectionResetError.
        """
        _check_port(port)
        self._home.check()
        delay = _RETRY_FIRST
        async with time_limit(timeout, f"a connection to vsock port {port} of the guest"):
            while True:
                await self._guest()
                try:
                    return await (await self._attempt(port)).streams()
                except (ConnectionRefusedError, ConnectionResetError):
                    if not wait:
                        raise
                await asyncio.sleep(delay)
                delay = min(2 * delay, _RETRY_LAST)

    async def attach(self, port: int, factory: Callable[[], P]) -> P:
        """As `connect`, once and without a time limit, and with an asyncio protocol that `factory` makes instead of streams."""
        _check_port(port)
        self._home.check()
        await self._guest()
        return await (await self._attempt(port)).protocol(factory)

    @property
    def live(self) -> bool:
        """Whether the guest's driver is there."""
        return self._switch.live.is_set()

    async def _guest(self) -> None:
        """Wait for the guest's driver."""
        while not (self._closed or self._ended or self._switch.live.is_set()):
            await self._switch.live.wait()
        if self._closed or self._ended:
            raise StateError(self._ended or "the vsock device is closed")

    async def join(self, port: int, sock: socket.socket) -> None:
        """As `connect`, once and without a time limit, with `sock` as the host's end: a stream socket whose peer is somebody
        else's. It is the device's from now on, and closed if there is no connection."""
        try:
            _check_port(port)
            self._home.check()
            sock.setblocking(False)
            await self._guest()
            self._draw(1)
        except BaseException:
            sock.close()
            raise
        await self._open(port, sock, lambda error: None)

    async def _attempt(self, port: int) -> _Half:
        share = self._switch.share
        self._draw(2)
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            share.give(2)
            raise HostError("vsock: making a connection", exc.errno or 0, "raise the limit of open files") from exc
        half = _Half(theirs)
        try:
            await self._open(port, ours, half.aborted)
        except BaseException:
            theirs.close()  # the device's half sees that
            raise
        finally:
            share.give()  # from here on it is the program's
        return half

    def _draw(self, count: int) -> None:
        share = self._switch.share
        if not share.take(count):
            hint = "raise the limit of open files (ulimit -n), or close connections"
            raise HostError(f"vsock: this guest has its share of {share.most} descriptors", errno.EMFILE, hint)

    async def _open(self, port: int, sock: socket.socket, aborted: Callable[[OSError], None]) -> None:
        """Until the guest has accepted `sock`, which was drawn for."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def opened(connection: Connection) -> None:
            if not answer.done():
                answer.set_result(None)

        def failed(error: OSError) -> None:
            if not answer.done():
                answer.set_exception(error)

        try:
            self._switch.connect(port, sock, opened=opened, failed=failed, aborted=aborted)
        except BaseException:
            sock.close()
            self._switch.share.give()
            raise
        await answer

    async def listen(
        self,
        port: int,
        callback: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None] | None = None,
    ) -> VsockServer:
        """Take the guest's connections to CID 2, `port`: `callback(reader, writer)` is run for each, as asyncio.start_server
        does it; without one, `accept` them. Listeners stay over reboots of the guest. Raises StateError, UsageError.

        While 128 connections wait to be accepted, or callbacks run for as many as the device may have, more are refused: a
        guest can end its connections and ask for new ones faster than the program lets go of the old."""
        _check_port(port)
        self._home.check()
        if self._closed:
            raise StateError("the vsock device is closed")
        if port in self._switch.listeners:
            raise UsageError(f"vsock port {port} is listened at already")
        limit = self._switch.muxer.limit
        backlog = min(_BACKLOG, limit) if callback is None else limit
        server = VsockServer(port, callback, self._gone, self._switch.share, self._home, backlog=backlog)
        self._switch.listeners[port] = server._offered
        self._servers.add(server)
        return server

    def open(self) -> None:
        """It belongs to the running event loop from now on."""
        self._home.check()

    def end(self, why: str) -> None:
        """There is no guest any more, and none to come: whoever waits for one, or asks for a connection, is told why."""
        self._ended = why
        live = self._switch.live
        live.set()  # wakes those who wait
        live.clear()

    def close(self) -> None:
        """End all servers. Idempotent."""
        self._closed = True
        self._switch.live.set()  # who waits for the guest hears of it
        for server in list(self._servers):
            server.close()

    def _gone(self, server: VsockServer) -> None:
        self._servers.discard(server)
        self._switch.listeners.pop(server.port, None)


class VsockServer:
    """A port that is listened at. `async with` closes it; `async for reader, writer in server` accepts."""

    def __init__(
        self,
        port: int,
        callback: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None] | None,
        gone: Callable[[VsockServer], None],
        share: Share,
        home: HomeLoop,
        *,
        backlog: int,
    ) -> None:
        self.port = port
        self._callback = callback
        self._gone = gone
        self._share = share  # the halves of those who wait, and of those who are called back
        self._home = home
        self._backlog = backlog
        self._waiting: deque[_Half] = deque()
        self._news = asyncio.Event()  # for those who accept: one waits, or the server is closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._failures = Quota()  # of callbacks, that are told

    async def accept(self) -> Streams:
        """The next connection. Raises StateError when the server is closed, or from another event loop."""
        self._home.check()
        while not self._waiting:
            if self._closed.is_set():
                raise StateError(f"vsock port {self.port} is not listened at any more")
            self._news.clear()
            await self._news.wait()
        half = self._waiting.popleft()
        making = asyncio.ensure_future(half.streams())
        try:
            streams = await finish(making)
        except BaseException:
            self._not_accepted(half, making)
            raise
        self._share.give()
        return streams

    def _not_accepted(self, half: _Half, making: asyncio.Future[Streams]) -> None:
        """The guest knows nothing of who wanted it no more: it is the next one's."""
        if making.cancelled() or making.exception() is not None:
            self._share.give()
            return
        half.keep(making.result())
        if half.is_over or self._closed.is_set():
            half.close()
            self._share.give()
        else:
            self._waiting.appendleft(half)
            self._news.set()

    def close(self) -> None:
        """Take no more connections; those there are stay. Idempotent. Raises StateError in another thread than the loop's."""
        self._home.check_thread()
        if self._closed.is_set():
            return
        self._closed.set()
        self._gone(self)
        while self._waiting:
            self._waiting.popleft().close()
            self._share.give()
        self._news.set()

    async def wait_closed(self) -> None:
        """Until it is closed and its callbacks have ended."""
        self._home.check()
        await self._closed.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await self.wait_closed()

    async def __aiter__(self) -> AsyncIterator[Streams]:
        """Connections, until it is closed."""
        with contextlib.suppress(StateError):
            while True:
                yield await self.accept()

    def _offered(self, port: int, accepted: Accepted) -> None:
        if len(self._waiting) + len(self._tasks) >= self._backlog or not self._share.take():
            accepted(None)
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # no descriptors left: the guest sees a refusal, and may try again
            self._share.give()
            accepted(None)
            return
        half = _Half(theirs)
        if self._callback is None:
            self._waiting.append(half)
            self._news.set()
            accepted(ours, lambda error: self._aborted(half, error))
            return
        accepted(ours, half.aborted)
        task = asyncio.get_running_loop().create_task(self._call(half), name=f"vsock port {self.port}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._called, half))

    def _called(self, half: _Half, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        half.drop()
        self._share.give()

    def _aborted(self, half: _Half, error: OSError) -> None:
        """Nobody needs to accept what is over: its descriptor would be the guest's to multiply."""
        half.aborted(error)
        if half in self._waiting:
            self._waiting.remove(half)
            half.close()
            self._share.give()

    async def _call(self, half: _Half) -> None:
        assert self._callback is not None
        reader, writer = await half.streams()
        try:
            result = self._callback(reader, writer)
            if result is not None:
                await result
        except Exception as exc:
            self._tell(exc, writer)
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    def _tell(self, error: Exception, writer: asyncio.StreamWriter) -> None:
        """That the handler failed, which a guest has it do as often as it likes, by resets."""
        untold = self._failures.take(time.monotonic())
        if untold is None:
            return
        more = f"; {untold} more before it were not told" if untold else ""
        message = f"the handler of vsock port {self.port} failed{more}"
        asyncio.get_running_loop().call_exception_handler(
            {"message": message, "exception": error, "transport": writer.transport}
        )


def _check_port(port: int) -> None:
    from aiovmm.runtime.arguments import whole  # for who asks

    whole(port, "vsock port", 0, _PORT_MAX)
