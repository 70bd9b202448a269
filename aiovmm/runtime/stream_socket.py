"""A connected socket, joined to a protocol on whichever event loop runs."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATH_LIMIT", "join_socket", "let_go", "socket_path"]

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
