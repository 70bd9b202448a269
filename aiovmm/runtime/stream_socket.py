"""A connected socket, joined to a protocol on whichever event loop runs."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATH_LIMIT", "connected_to", "join_socket", "let_go", "require_connected", "socket_path", "streams_to"]

PATH_LIMIT = 107
"""Bytes of a unix socket's path: sun_path of unix(7), less its terminating zero."""


def socket_path(path: str | os.PathLike[str]) -> str:
    """`path` to connect to. Raises OSError (ENAMETOOLONG) for one that no socket can have: uvloop would take its beginning, which
    may be another's, and asyncio says so without an errno."""
    name = os.fspath(path)
    if len(os.fsencode(name)) > PATH_LIMIT:
        raise OSError(
            errno.ENAMETOOLONG, f"a unix socket's path has at most {PATH_LIMIT} bytes: a relative one may be shorter"
        )
    return name


def require_connected(writer: asyncio.StreamWriter) -> None:
    """Before a write: of a connection that the other end has reset asyncio forgets what is written, and `drain` tells; uvloop
    raises RuntimeError, which nobody takes for that. Raises ConnectionResetError."""
    if writer.is_closing():
        raise ConnectionResetError("the connection is closed")


def connected_to(path: str | os.PathLike[str]) -> socket.socket:
    """A non-blocking socket that is connected to who listens at `path`. Raises OSError.

    It is, or not, at once: a unix socket never is on its way (unix(7)). One for which the listener has no room says EAGAIN, which
    asyncio would take for that, and then for connected: what is said there fails, with ENOTCONN."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(socket_path(path))
    except BaseException:
        sock.close()
        raise
    return sock


async def streams_to(path: str | os.PathLike[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over such a socket. Raises OSError."""
    sock = connected_to(path)
    try:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    let_go(sock, writer.get_extra_info("socket"))
    return reader, writer


P = TypeVar("P", bound=asyncio.BaseProtocol)


async def join_socket(sock: socket.socket, factory: Callable[[], P]) -> P:
    """The protocol, with a transport over `sock`, which is the transport's from now on, and closed if there is none. Raises
    OSError."""
    sock.setblocking(False)
    try:
        transport, protocol = await asyncio.get_running_loop().create_unix_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise
    let_go(sock, transport.get_extra_info("socket"))
    return protocol


def let_go(sock: socket.socket, known: object) -> None:
    """`sock` has a transport that knows the socket as `known`. uvloop's has the descriptor, not the socket: both would close it,
    and the second time it may be somebody else's."""
    if not isinstance(known, TransportSocket):
        sock.detach()
