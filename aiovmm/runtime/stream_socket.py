"""A connected socket, joined to a protocol on whichever event loop runs."""

from __future__ import annotations

import asyncio
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import TypeVar

__all__ = ["join_socket", "let_go"]

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
