"""Where an agent is: in a guest of ours, behind a vsock's unix socket, or at a unix socket of its own (as tests have
it)."""

from __future__ import annotations

import asyncio
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aiovmm.agent.wire import AGENT_PORT
from aiovmm.errors import HostError
from aiovmm.runtime.stream_socket import connected_to, join_socket

if TYPE_CHECKING:
    from aiovmm.agent.link import Link
    from aiovmm.lifecycle import ExitStatus

__all__ = ["HybridPlace", "Place", "UnixPlace"]

_HINT = "give the path of a running guest's vsock: aiovmm run --vsock socket=PATH ..."
_LINE = 32  # bytes of an answer to CONNECT


class Place(Protocol):
    """What an Agent has to know of it."""

    name: str
    hears_of_its_end: bool
    """Whether `status` tells of the guest's end: None means then that it has not ended."""

    async def dial(self, protocol: Callable[[], Link]) -> Link:
        """One try. Waits for the guest's driver. Raises ConnectionError if nobody listens, StateError if nobody ever
        will."""
        ...

    def stage(self) -> str:
        """How far it has come while nobody listens: driver, or agent."""
        ...

    def console_tail(self) -> bytes:
        """What the guest printed last."""
        ...

    def status(self) -> ExitStatus | None:
        """How the guest has ended, if it has."""
        ...

    def ended(self) -> Coroutine[Any, Any, object] | None:
        """To wait for that, without a reference to the VM; None where nobody will know."""
        ...


class UnixPlace:
    """An agent that listens at a unix socket."""

    hears_of_its_end = False

    def __init__(self, path: Path) -> None:
        self.name = f"the agent at {path}"
        self.path = path

    async def dial(self, protocol: Callable[[], Link]) -> Link:
        """See Place."""
        try:
            return await join_socket(connected_to(self.path), protocol)
        except FileNotFoundError as exc:
            raise ConnectionRefusedError(exc.errno, f"nobody listens at {self.path}") from exc
        except BlockingIOError as exc:
            raise _no_room(exc, self.path) from exc

    def stage(self) -> str:
        """See Place."""
        return "agent"

    def console_tail(self) -> bytes:
        """See Place."""
        return b""

    def status(self) -> ExitStatus | None:
        """See Place."""
        return None

    def ended(self) -> Coroutine[Any, Any, object] | None:
        """See Place."""
        return None


class HybridPlace(UnixPlace):
    """One in a guest whose vsock has the unix socket `path` (`aiovmm run --vsock socket=PATH`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = f"the guest at {path}"

    async def dial(self, protocol: Callable[[], Link]) -> Link:
        """See Place. Raises HostError if there is no such socket."""
        loop = asyncio.get_running_loop()
        try:
            sock = connected_to(self.path)
        except BlockingIOError as exc:
            raise _no_room(exc, self.path) from exc
        except OSError as exc:
            raise HostError("connecting to a guest's vsock", exc.errno or 0, _HINT, str(self.path)) from exc
        try:
            await _shake_hands(sock)
            _, link = await loop.create_unix_connection(protocol, sock=sock)
        except BaseException:
            sock.close()
            raise
        if not isinstance(link.socket, TransportSocket):  # uvloop's transport has the descriptor, not the socket
            sock.detach()
        return link


def _no_room(error: OSError, path: Path) -> ConnectionRefusedError:
    """Of a listener who has as many waiting as he may: he may have room later."""
    return ConnectionRefusedError(error.errno, f"others wait at {path} already")


async def _shake_hands(sock: socket.socket) -> None:
    """CONNECT, and not a byte more read than its answer. Raises ConnectionError."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"CONNECT %d\n" % AGENT_PORT)
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE:
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise ConnectionRefusedError(f"nobody listens at vsock port {AGENT_PORT} of the guest")
        line += byte
    if not line.startswith(b"OK "):
        raise ConnectionRefusedError(f"the vsock's unix socket answered {line!r}")
