"""Ports: of the guest at the host, and of the host in the guest. `vm.forward`.

A guest that can open connections to a port of the host's that it was given can open many, and so can who connects to a port of
the guest's: CONNECTIONS_MAX of each port at a time, and of all of them this guest's share of the process's descriptors; further
ones are closed at once, on both sides.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import SOCK_STREAM, gaierror, getaddrinfo, socket  # blocking: the loop has a getaddrinfo that is not
from typing import TYPE_CHECKING, Any

from aiovmm.agent.channel import Channel
from aiovmm.agent.errors import guest_os_error
from aiovmm.agent.process import Input, Output
from aiovmm.agent.wire import Kind, Stream
from aiovmm.errors import AiovmmError, HostError, PeerError, UsageError
from aiovmm.runtime.arguments import a_path, whole
from aiovmm.runtime.descriptors import PROCESS, Share
from aiovmm.runtime.stream_socket import require_connected, streams_to
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.unix_listener import SocketName, listen_in_thread

if TYPE_CHECKING:
    from aiovmm.agent.agent import Agent
    from aiovmm.agent.link import Link

__all__ = ["CONNECTIONS_MAX", "Forwards"]

CONNECTIONS_MAX = 256
_WINDOW = 256 << 10
_CHUNK = 64 << 10
_LOCAL, _UNIX = 0, 1
Place = int | str | Path
_Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class _Forward:
    """One of them: what it listens with, and what goes on, with a descriptor each."""

    share: Share
    server: asyncio.Server | None = None
    channel: Channel | None = None
    name: SocketName | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self._end)

    def has_room(self) -> bool:
        """For one more, which `begin` is to follow then."""
        return len(self.tasks) < CONNECTIONS_MAX and self.share.take()

    def _end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.share.give()

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        if self.channel is not None:
            self.channel.close(kill=False)
        for task in self.tasks:
            task.cancel()

    async def aclose(self) -> None:
        """The same, and what it has at the host is gone."""
        self.close()
        if self.name is not None:
            await self.name.removed()
        if self.tasks:
            await asyncio.wait(self.tasks)


class Forwards:
    """Of one guest."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        # at the same port of two addresses there may be two, and a guest may say of two that they are at one
        self._open: dict[tuple[bool, int | str], list[_Forward]] = {}
        self._share = PROCESS.share()
        agent.at_close(self.close)

    def close(self) -> None:
        """All of them. Idempotent."""
        while self._open:
            for forward in self._open.popitem()[1]:
                forward.close()
                if forward.name is not None:
                    forward.name.remove_soon()
        self._share.close()

    async def end(self, place: Place, *, back: bool = False) -> None:
        """What there is at this place, and its connections. Raises UsageError if there is nothing."""
        found = self._open.pop((back, _spelling(_checked(place, "unforward(place)"))), None)
        if found is None:
            raise UsageError(f"{place} is not forwarded")
        await asyncio.gather(*(forward.aclose() for forward in found))

    def _keep(self, forward: _Forward, place: Place, *, back: bool) -> None:
        self._open.setdefault((back, _spelling(place)), []).append(forward)

    # -- the guest's port at the host

    async def to_guest(self, guest: Place, host: Place, address: str) -> Place:
        """Listen at the host. Raises UsageError, HostError, ConfigError, StateError if nothing can be asked any more."""
        self._agent.require_open()
        guest = _checked(guest, "forward(guest)", 1)
        host = _checked(host, "forward(host)")
        return await self._begin(guest, host, lambda forward, connected: _listen(forward, host, address, connected))

    async def take(self, listener: socket, guest: int) -> Place:
        """The same at a socket that listens at a port of the host's; it is closed with the forward. Errors as above."""
        self._agent.require_open()
        return await self._begin(
            guest, 0, lambda _, connected: asyncio.start_server(connected, sock=listener, start_serving=False)
        )

    async def _begin(
        self, guest: Place, host: Place, listen: Callable[[_Forward, _Connected], Awaitable[asyncio.Server]]
    ) -> Place:
        """Returns `host`, of which 0 is the port that was taken."""
        payload, forward = _address(guest), _Forward(self._share)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(forward, payload, reader, writer)

        try:  # known before it serves: who is cancelled meanwhile leaves no listener that the loop watches for good
            forward.server = await listen(forward, connected)
            place = forward.server.sockets[0].getsockname()[1] if isinstance(host, int) else host
            await forward.server.start_serving()
            self._agent.require_open()  # whose end meanwhile has not heard of this one
        except BaseException:
            await forward.aclose()
            raise
        self._keep(forward, place, back=False)
        return place

    async def _serve(
        self, forward: _Forward, payload: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not forward.has_room():
            writer.transport.abort()
            return
        forward.begin(task)
        try:
            # the client sees a connection that was closed; a cancellation is no fault, as it is to streams of Python 3.11
            with suppress(AiovmmError, OSError, asyncio.CancelledError):
                channel = await self._agent.begin(Kind.CONNECT, payload, window=_WINDOW)
                await _join(channel, Output(channel, Stream.STDOUT, _WINDOW), reader, writer)
        finally:
            writer.transport.abort()

    # -- the host's port in the guest

    async def to_host(self, guest: Place, host: Place, address: str) -> Place:
        """Listen in the guest. Raises UsageError, GuestOSError, PeerError."""
        guest = _checked(guest, "forward(guest)")
        payload = _address(guest)
        host = _checked(host, "forward(host), where the guest's connections go,", 1)
        link = await self._agent.link()
        channel = link.begin(Kind.LISTEN, payload, window=_WINDOW)
        forward = _Forward(self._share, channel=channel)
        settled = asyncio.Event()
        channel.on_settled = channel.on_over = settled.set
        channel.on_accepted = lambda number: self._accepted(forward, link, number, host, address)
        try:  # an agent may have said that it took connections, whatever it says then
            await settled.wait()
            place = await self._listens_at(channel, guest)
        except BaseException:
            await forward.aclose()
            raise
        self._keep(forward, place, back=True)
        return place

    async def _listens_at(self, channel: Channel, guest: Place) -> Place:
        if channel.failed is not None:
            raise guest_os_error("listening in the guest", channel.failed[0], str(guest))
        if channel.started is None:
            raise await self._agent.lost("listening in the guest")
        place = guest or channel.started  # only of a port that is to be any there is something to say
        if isinstance(place, int) and not 0 < place < 1 << 16:
            raise PeerError(f"the agent in the guest listens at port {place}, which is none")
        return place

    def _accepted(self, forward: _Forward, link: Link, number: int, host: Place, address: str) -> None:
        if number < 1 << 31 or number in link.channels:
            return  # no agent does that
        channel = link.begin(Kind.ACCEPTED, b"", window=_WINDOW, number=number)
        if not forward.has_room():
            channel.close(kill=False)
            return
        output = Output(channel, Stream.STDOUT, _WINDOW)  # now: its data may be right behind
        task = asyncio.get_running_loop().create_task(
            _to_host(channel, output, host, address), name="forward to the host"
        )
        forward.begin(task)


async def _listen(forward: _Forward, host: Place, address: str, connected: _Connected) -> asyncio.Server:
    """At the host, without serving yet."""
    if not isinstance(host, int):
        listener, forward.name = await listen_in_thread(
            Path(host), option="forward(host=)", operation="forwarding: listening"
        )
        try:
            return await asyncio.start_unix_server(connected, sock=listener, start_serving=False)
        except BaseException:
            listener.close()
            raise
    try:
        return await asyncio.start_server(connected, await _resolved(address), host, start_serving=False)
    except (gaierror, UnicodeError) as exc:  # the latter: it cannot be a name
        raise UsageError(f"address {address!r} is no address of this host's: {exc}") from exc
    except OSError as exc:
        where = f"{address}:{host}"
        raise HostError("forwarding: listening", exc.errno or errno.EADDRNOTAVAIL, path=where) from exc


async def _to_host(channel: Channel, output: Output, host: Place, address: str) -> None:
    try:
        if isinstance(host, int):
            reader, writer = await _connected(await _resolved(address), host)
        else:
            reader, writer = await streams_to(host)
    except BaseException as exc:
        channel.close(kill=False)
        if isinstance(exc, OSError):
            return  # the guest sees a connection that was closed
        raise
    try:
        with suppress(OSError):
            await _join(channel, output, reader, writer)
    finally:
        writer.transport.abort()


async def _resolved(address: str) -> list[str]:
    """Addresses of a name, asked for in a thread of ours: event loops ask in their executor, which is the embedder's. Raises
    OSError."""
    found = await in_thread("forward: name", getaddrinfo, address, None, type=SOCK_STREAM)
    return list(dict.fromkeys(_spelt(sockaddr) for *_, sockaddr in found))


def _spelt(sockaddr: tuple[Any, ...]) -> str:
    """With the interface that an address of a link is of."""
    scope = f"%{sockaddr[3]}" if len(sockaddr) > 2 and sockaddr[3] and "%" not in sockaddr[0] else ""
    return f"{sockaddr[0]}{scope}"


async def _connected(addresses: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of them where somebody listens. Raises the last one's OSError."""
    for address in addresses[:-1]:
        with suppress(OSError):
            return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(addresses[-1], port)


async def _join(channel: Channel, output: Output, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Both directions, each until it ends; what breaks one ends both."""
    into, out = Input(channel), output.reader
    over = asyncio.Event()
    channel.on_over = over.set
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_to_channel(reader, into))
            group.create_task(_from_channel(out, writer))
        if not channel.over:  # the guest's end has yet to take what it was sent
            await over.wait()
    except* OSError:
        pass
    finally:
        channel.close(kill=False)


async def _to_channel(reader: asyncio.StreamReader, into: Input) -> None:
    with suppress(BrokenPipeError):  # the guest's end reads no more: what it has said before is still to be heard
        while data := await reader.read(_CHUNK):
            into.write(data)
            await into.drain()
    into.write_eof()


async def _from_channel(out: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await out.read(_CHUNK):
        require_connected(writer)
        writer.write(data)
        await writer.drain()
    require_connected(writer)
    with suppress(OSError, NotImplementedError):
        writer.write_eof()
    await writer.drain()


def _checked(place: object, what: str, least: int = 0) -> Place:
    """A port, from 1 on where it cannot be any, or the path of a unix socket. Raises UsageError."""
    if isinstance(place, int) or (
        isinstance(place, str | bytes) and place.isdigit()
    ):  # text: nobody calls a socket that
        return whole(place, what, least, 65535)
    if isinstance(place, Path):
        return place
    return a_path(place, what)


def _spelling(place: Place) -> int | str:
    """Of a path one, whether it was given as text or as a path object."""
    return place if isinstance(place, int) else os.path.normpath(place)


def _address(guest: Place) -> bytes:
    """The payload of CONNECT and LISTEN."""
    if isinstance(guest, int):
        return struct.pack("<BxHI", _LOCAL, guest, _WINDOW)
    path = os.fsencode(guest)
    if not 0 < len(path) < 108 or b"\0" in path:
        raise UsageError(f"{guest!r} is no path of a unix socket: 1 to 107 bytes")
    return struct.pack("<BxHI", _UNIX, 0, _WINDOW) + path
