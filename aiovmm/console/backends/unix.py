"""A unix socket at which many clients see the console and type to it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from aiovmm.console.backends.base import ConsoleBackend, linger, type_in
from aiovmm.console.backends.duplex import CHUNK
from aiovmm.console.race import first
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.console.view import ConsoleView
from aiovmm.errors import ConsoleEnded
from aiovmm.runtime.descriptors import PROCESS
from aiovmm.runtime.fair import Account
from aiovmm.runtime.stream_socket import require_connected
from aiovmm.runtime.turns import ACCOUNT, next_turn
from aiovmm.runtime.unix_listener import SocketName, listen_in_thread

__all__ = ["SocketBackend"]

_CLIENTS_MAX = 256  # all may leave in one moment, and each has a copy of what the guest prints
_CROWDED = b"aiovmm: this console has %d clients already, which is all that it takes; try again when one has left\r\n"
_FULL = b"aiovmm: this console has as many clients as this process has descriptors for; try again later\r\n"
_HALF_CLOSED_POLL = 1.0  # seconds between looks whether a client that sends no more still listens


class _Socket(Protocol):
    """What a transport is on, whichever event loop's it is."""

    def fileno(self) -> int:
        """-1 once it is closed."""


class SocketBackend(ConsoleBackend):
    """Listens at `path`, which only its owner may connect to (mode 0600) and which is removed at the end.

    Each client is shown the history, then what comes. One that is slow loses the oldest output and is told so in place;
    the others and the guest do not notice. Input of all clients is mixed, in turns. A socket file that nobody listens at is
    replaced; one in use, or any other file, is refused.
    """

    def __init__(self, console: Console, path: str | os.PathLike[str]) -> None:
        super().__init__(console)
        self._path = Path(path)
        self._server: asyncio.Server | None = None
        self._name: SocketName | None = None
        self._clients: dict[asyncio.Task[None], ConsoleView] = {}
        self._share = PROCESS.share()
        self._account, self._turn = Account(), asyncio.Lock()  # of all clients together
        self._finished = asyncio.Event()
        self._closed = False

    @property
    def place(self) -> str:
        """The path of the socket."""
        return str(self._path)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def _open(self) -> None:
        listener, self._name = await listen_in_thread(self._path, option="socket", operation="listen for the console")
        try:  # not serving yet: a cancellation must not leave the loop watching a listener that nobody closes
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, start_serving=False)
        except BaseException:
            listener.close()
            raise
        await self._server.start_serving()

    async def _run(self) -> AttachEnd:
        assert self._server is not None
        await first(self._console.wait_closed(), self._finished.wait())
        self._server.close()
        await linger(self._clients, self._progress)
        return AttachEnd.GUEST_ENDED if self._console.closed else AttachEnd.DETACHED

    def _progress(self) -> object:
        return len(self._clients), sum(view.position for view in self._clients.values())

    def _finish(self) -> None:
        self._finished.set()
        for view in self._clients.values():
            view.close()

    async def _close(self) -> None:
        self._closed = True
        if self._server is not None:
            self._server.close()
            self._server = None
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self._share.close()
        if self._name is not None:
            await self._name.removed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, in a task of its own."""
        task = asyncio.current_task()
        sock: _Socket | None = writer.get_extra_info("socket")  # uvloop names it now or, once it is closed, not at all
        if task is None or sock is None or self._closed:  # accepted just before the end, or gone already
            writer.transport.abort()
            return
        crowded = len(self._clients) >= _CLIENTS_MAX
        if crowded or not self._share.take():
            writer.write(_CROWDED % _CLIENTS_MAX if crowded else _FULL)
            writer.close()
            return
        ACCOUNT.set(self._account)
        view = self._clients[task] = self._console.view()
        if self._finished.is_set():
            view.close()
        try:
            await first(_show(view, writer), self._take(reader, sock))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the back end is being left; either way that is all for this client
        finally:
            _end(writer, sock)
            del self._clients[task]
            self._share.give()

    async def _take(self, reader: asyncio.StreamReader, sock: _Socket) -> None:
        try:
            while data := await reader.read(CHUNK):
                await type_in(self._console, data, partial(_is_gone, sock))
                async with self._turn:
                    await next_turn()
        except ConsoleEnded:
            pass  # the client is shown what is left
        while not _is_gone(sock):  # noqa: ASYNC110 (that it has closed both sides makes no event of its own)
            await asyncio.sleep(_HALF_CLOSED_POLL)


async def _show(view: ConsoleView, writer: asyncio.StreamWriter) -> None:
    while data := await view.read():
        require_connected(writer)
        writer.write(data)
        await writer.drain()
    require_connected(writer)
    writer.write_eof()  # which the client sees also if a child that was forked meanwhile has the socket open yet
    writer.close()
    await writer.wait_closed()


def _is_gone(sock: _Socket) -> bool:
    """Whether it has closed both sides (POLLHUP), or all is shown, and it is closed."""
    fd = sock.fileno()
    if fd < 0:
        return True
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def _end(writer: asyncio.StreamWriter, sock: _Socket) -> None:
    """Close the connection, also if a child that was forked meanwhile has it open yet."""
    with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)
    writer.transport.abort()
