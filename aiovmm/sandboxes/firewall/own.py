"""Which addresses are this host's own, as its kernel says, by rtnetlink. Sources: rtnetlink(7), linux/rtnetlink.h.

It is not enough to ask which address the kernel would speak from (connect, getsockname): to the second address of an interface
it speaks from the first, and to one of a local route from any.
"""

from __future__ import annotations

import socket
import struct

__all__ = ["is_own"]

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # family, bits of the target, of the source, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NEW_ROUTE, _GET_ROUTE, _REQUEST, _TARGET = 24, 26, 1, 1
_UNICAST = 1  # the type of a way to somebody else; others are local, anycast, broadcast
_ANSWER = 4096  # bytes


def is_own(address: bytes) -> bool:
    """Whether what is sent there stays on this host. Where the kernel does not say, for there is no way to it, or no descriptor
    left to ask with, it may be so. Nothing is sent."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    route = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _TARGET) + address
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.setblocking(False)  # it has answered when the question is sent
            sock.sendto(_HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, 1, 0) + body, (0, 0))
            answer = sock.recv(_ANSWER)
    except OSError:
        return True
    if len(answer) < _HEADER.size + _ROUTE.size or _HEADER.unpack_from(answer)[1] != _NEW_ROUTE:
        return True
    return bool(_ROUTE.unpack_from(answer, _HEADER.size)[7] != _UNICAST)
