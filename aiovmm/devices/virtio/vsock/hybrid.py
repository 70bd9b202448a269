"""The hybrid protocol: the guest's sockets at unix sockets, for host programs that know nothing of vsock.

A program connects to `path`, sends `CONNECT <port>\\n`, and gets `OK <host port>\\n` when the guest has accepted; from then on
it is the connection. Any failure closes. A guest that connects to CID 2 port N is connected to the unix socket `<path>_N`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections import deque
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from aiovmm.devices.virtio.vsock.connection import Connection
from aiovmm.devices.virtio.vsock.poller import GONE
from aiovmm.devices.virtio.vsock.switch import Accepted, Switch
from aiovmm.errors import AiovmmError, ConfigError
from aiovmm.runtime.awake import awake_later
from aiovmm.runtime.turns import next_turn
from aiovmm.runtime.unix_listener import SocketName, listen_in_thread

__all__ = ["HybridSocket"]

_LINE = re.compile(rb"CONNECT +(\d{1,10}) *\r?\n", re.IGNORECASE)
_LINE_MAX = 32  # bytes of a CONNECT line: a client that sends no newline is not waited for
_BACKLOG = 512
_ACCEPTS = 64  # at most, before others get a turn
_RETRY = 0.02  # seconds until the next try at a listener whose backlog is full
_PORTS_AT_ONCE = 8  # of which one is tried then
_PATH_MAX = 107 - len("_4294967294")  # bytes: sun_path (unix(7)) less its NUL and the longest `_<port>`
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_ROOM_PAUSE = 0.5  # seconds without accepting, when descriptors have run out


class _Waiting(NamedTuple):
    """A connection of the guest's for which a program has no room yet."""

    sock: socket.socket
    accepted: Accepted
    deadline: float


class HybridSocket:
    """The listener at `path`, mode 0600, which is removed at the end. A stale file that nobody listens at is replaced.

    `timeout`: seconds for a client's whole handshake, a guest that has no driver yet included, and for a host program
    whose backlog is full. Raises ConfigError: a path so long that the unix socket of some port could have no name."""

    def __init__(self, switch: Switch, path: Path, *, timeout: float) -> None:
        if len(os.fsencode(path)) > _PATH_MAX:
            raise ConfigError("vsock.socket", f"{path} is longer than {_PATH_MAX} bytes", "choose a shorter path")
        self.path = path
        self.timeout = timeout
        self.switch = switch
        self._listener: socket.socket | None = None
        self._name: SocketName | None = None
        self._handshakes: set[_Handshake] = set()
        self._full: dict[int, deque[_Waiting]] = {}  # by port: who waits for room in the backlog of a program
        self._waits = 0  # of all
        self._again: asyncio.TimerHandle | None = None  # until one of them is tried again
        self._pause: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Listen. Raises HostError, ConfigError."""
        self._listener, self._name = await listen_in_thread(
            self.path, option="vsock.socket", operation="vsock: listening", backlog=_BACKLOG
        )
        self._watch()
        self.switch.fallback = self._connect_host

    async def close(self) -> None:
        """Idempotent. Connections that are established are the switch's."""
        self.switch.fallback = None
        if self._pause is not None:
            self._pause.cancel()
        for handshake in list(self._handshakes):
            handshake.close()
        self._give_up_waiting()
        if self._listener is not None:
            self.switch.poller.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._name is not None:
            await self._name.removed()

    # -- host to guest -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self._listener is not None
        self.switch.poller.listen(self._listener.fileno(), self._on_clients)

    def _on_clients(self, events: int) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS):
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _NO_ROOM:  # the listener stays readable: do not spin
                    self.switch.poller.forget(self._listener.fileno())
                    self._pause = asyncio.get_running_loop().call_later(_NO_ROOM_PAUSE, self._watch)
                    return
                continue  # the client went away
            if len(self._handshakes) >= self.switch.muxer.limit or not self.switch.may_open():
                client.close()
                continue
            self._handshakes.add(_Handshake(self, client))

    def done(self, handshake: _Handshake) -> None:
        """It has become a connection, or nothing."""
        self._handshakes.discard(handshake)

    # -- guest to host -------------------------------------------------------------------------------------------------

    def _connect_host(self, port: int, accepted: Accepted) -> None:
        """The guest asks for `port`."""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptors left: the guest sees a refusal, and may try again
            accepted(None)
            return
        code = errno.EAGAIN if port in self._full else self._try(sock, port)
        if code == 0:
            accepted(sock)
        elif code == errno.EAGAIN and self._waits < self.switch.muxer.limit:
            self._wait(sock, port, accepted)
        else:
            sock.close()
            accepted(None)

    def _try(self, sock: socket.socket, port: int) -> int:
        """0 or an errno, whatever port the guest names."""
        try:
            return sock.connect_ex(f"{self.path}_{port}")
        except OSError as exc:  # of the address, which is looked at first: it has no errno
            return exc.errno or errno.ENAMETOOLONG

    def _wait(self, sock: socket.socket, port: int, accepted: Accepted) -> None:
        """The backlog of the program there is full, which no event tells the end of."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        self._full.setdefault(port, deque()).append(_Waiting(sock, accepted, deadline))
        self._waits += 1
        self._look_again()

    def _look_again(self) -> None:
        if self._again is None and self._full:
            self._again = asyncio.get_running_loop().call_later(_RETRY, self._retry)

    def _retry(self) -> None:
        """Of each port the first, and who stands behind it while that gets on: a guest may have as many wait as it likes."""
        self._again = None
        for port in list(islice(self._full, _PORTS_AT_ONCE)):
            waiting = self._full.pop(port)
            for _ in range(_ACCEPTS):
                if not waiting or not self._gets_on(waiting, port):
                    break
            if waiting:
                self._full[port] = waiting  # behind the others
        self._look_again()

    def _gets_on(self, waiting: deque[_Waiting], port: int) -> bool:
        """Whether the first need not wait any more."""
        first = waiting[0]
        code = self._try(first.sock, port)
        if code == errno.EAGAIN and asyncio.get_running_loop().time() < first.deadline:
            return False
        waiting.popleft()
        self._waits -= 1
        if code:
            first.sock.close()
            first.accepted(None)
        else:
            first.accepted(first.sock)
        return True

    def _give_up_waiting(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        while self._full:
            for one in self._full.popitem()[1]:
                one.sock.close()
                one.accepted(None)
        self._waits = 0


class _Handshake:
    """One client until it is a connection: reads the CONNECT line and not a byte more, then waits for the guest."""

    def __init__(self, hybrid: HybridSocket, sock: socket.socket) -> None:
        self._hybrid = hybrid
        self._switch = hybrid.switch
        self._sock = sock
        self._fd = sock.fileno()
        self._port: int | None = None
        self._waiter: asyncio.Task[None] | None = None
        sock.setblocking(False)
        self._call_off = awake_later(hybrid.timeout, self.close)
        self._switch.poller.watch(self._fd, self._on_event)

    def close(self) -> None:
        """It came to nothing. Idempotent."""
        self._finish()
        self._switch.poller.forget(self._fd)
        if self._sock.fileno() >= 0:
            self._sock.close()
            self._switch.share.give()

    def _finish(self) -> None:
        self._call_off()
        if self._waiter is not None:
            self._waiter.cancel()
            self._waiter = None
        self._hybrid.done(self)

    def _on_event(self, events: int) -> None:
        if self._port is None:  # who has gone may have said all it had to say before
            self._read()
        elif events & GONE and self._waiter is not None and not self._left():
            self.close()

    def _left(self) -> bool:
        """Whether it has sent something to the guest."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _read(self) -> None:
        try:
            seen = self._sock.recv(_LINE_MAX, socket.MSG_PEEK)
            end = seen.find(b"\n") + 1
            if end:
                self._sock.recv(end)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        match = _LINE.fullmatch(seen[:end]) if end else None
        if match is None:
            if end or len(seen) >= _LINE_MAX or not seen:
                self.close()
            return
        self._port = int(match[1])
        if self._port > 0xFFFFFFFE:
            self.close()
        elif self._switch.live.is_set():
            self._request()
        else:
            self._waiter = asyncio.get_running_loop().create_task(self._wait_for_guest())

    async def _wait_for_guest(self) -> None:
        while not self._switch.live.is_set():
            await self._switch.live.wait()
            await next_turn()  # as many as there may be have waited for this
        self._waiter = None
        self._request()

    def _request(self) -> None:
        """Ask the guest; from here on the connection watches the socket."""
        assert self._port is not None
        self._switch.poller.forget(self._fd)
        try:
            link = self._switch.connect(self._port, self._sock, opened=self._opened, failed=self._failed)
        except AiovmmError:
            self.close()
            return
        self._call_off()
        self._call_off = awake_later(self._hybrid.timeout, link.close)
        self._hybrid.done(self)

    def _opened(self, connection: Connection) -> None:
        self._call_off()
        with contextlib.suppress(OSError):  # it has gone, as an event is about to tell
            self._sock.send(b"OK %d\n" % connection.host_port)

    def _failed(self, error: OSError) -> None:
        self._call_off()
