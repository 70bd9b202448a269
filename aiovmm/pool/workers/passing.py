"""Sockets that go with requests: over a socket of their own, since what carries frames has no place for descriptors.

They go from the pool to a worker alone. The pool makes a pair and keeps one half: what it uses is its own, whatever a worker that
a guest has taken over does to the other half.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct

from aiovmm.errors import HostError, PeerError

__all__ = ["accept", "hand_over", "pair"]

_ID = struct.Struct("<Q")
_MOST = 4  # descriptors in a message: one is right, and more are to be seen, and closed


def pair() -> tuple[socket.socket, socket.socket]:
    """The pool's end and the worker's. A message is whole, or is not there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def hand_over(over: socket.socket, id_: int, sock: socket.socket) -> None:
    """Send `sock`, before the request `id_` that it belongs to. Raises HostError."""
    try:
        socket.send_fds(over, [_ID.pack(id_)], [sock.fileno()])
    except OSError as exc:  # EAGAIN: a worker takes them as it hears of the requests
        raise HostError("give a socket to a worker", exc.errno or 0, "try again: it has many to take") from exc


def accept(over: socket.socket, id_: int) -> socket.socket:
    """The one that belongs to the request `id_`, which has come. Raises HostError where there is no descriptor to be had for it,
    PeerError if that is not what is there."""
    room = array.array("i").itemsize * _MOST
    try:
        data, ancillary, flags, _ = over.recvmsg(_ID.size, socket.CMSG_SPACE(room), socket.MSG_CMSG_CLOEXEC)
    except OSError as exc:
        raise PeerError(f"request {id_} came without its socket: {os.strerror(exc.errno or errno.EIO)}") from exc
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if data == _ID.pack(id_) and not fds and flags & socket.MSG_CTRUNC:  # the kernel had none left, and has closed it
        raise HostError("take a socket", errno.EMFILE, "raise the limit of open files: `ulimit -n`")
    if data != _ID.pack(id_) or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise PeerError(f"request {id_} came with {len(fds)} descriptors of another")
    return socket.socket(fileno=fds[0])
