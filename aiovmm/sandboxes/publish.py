"""Ports of the host's loopback that are a sandbox's: taken before anything is made for the guest, so that a busy one is told at
once and nobody else takes a free one meanwhile. Who connects before the guest is ready waits until it is."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime.arguments import a_list, whole

__all__ = ["ADDRESS", "Held", "Pairs", "held", "pairs"]

ADDRESS = "127.0.0.1"
_BACKLOG = 100  # connections that wait for the guest
_HINTS = {
    errno.EADDRINUSE: "something else listens there: publish another port, or 0 for any that is free",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start are root's: publish a higher one, or 0 for any",
}
_LIKE = "{8080: 80}, or pairs: [(8080, 80), (0, 443)]"

Pairs = tuple[tuple[int, int], ...]
"""Ports of the host, 0 for any, and the guest's."""
Held = Sequence[tuple[socket.socket, int]]
"""What listens at the host, and the guest's port."""


def pairs(publish: Mapping[int, int] | Sequence[tuple[int, int]] | None) -> Pairs:
    """Known to be ports. Raises ConfigError, UsageError."""
    given = (
        ()
        if publish is None
        else publish.items()
        if isinstance(publish, Mapping)
        else a_list(publish, "publish", _LIKE)
    )
    found = tuple(_pair(one) for one in given)
    taken = [host for host, _ in found if host]
    if twice := next((host for host in taken if taken.count(host) > 1), None):
        raise ConfigError(
            "publish", f"the host's port {twice} is given twice", "one of the host's leads to one of the guest's"
        )
    return found


def _pair(one: object) -> tuple[int, int]:
    if not isinstance(one, tuple | list) or len(one) != 2:
        raise ConfigError("publish", f"{one!r} is no pair of ports", f"say {_LIKE}")
    host, guest = one
    return whole(host, "publish: the host's port", 0, 65535), whole(guest, "publish: the guest's port", 1, 65535)


@contextmanager
def held(ports: Pairs) -> Iterator[Held]:
    """All of them, listening; what nobody has taken over by the end is closed. Raises HostError, which names the port."""
    with ExitStack() as stack:
        yield [(stack.enter_context(_listener(host)), guest) for host, guest in ports]


def _listener(port: int) -> socket.socket:
    """It listens at once: a port that is only bound, others can listen at that are bound to it, too."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its last user's connections may be dying yet
        listener.bind((ADDRESS, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        number = exc.errno or errno.EADDRNOTAVAIL
        raise HostError("publish", number, _HINTS.get(number, ""), f"{ADDRESS}:{port}") from exc
    return listener
