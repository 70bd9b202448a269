"""Reads and writes that never wait, whatever the descriptor's flags say.

O_NONBLOCK belongs to the open file, and whoever shares it (a shell, the program at the other end of its own pipeline) can take it
away at any time, so each call says for itself that it does not wait.
"""

from __future__ import annotations

import errno
import os
import select

__all__ = ["read_now", "write_now"]


def read_now(fd: int, n: int) -> bytes:
    """What a read gives at once, at most `n` bytes. Raises BlockingIOError where it would wait, whatever the flags are."""
    buffer = bytearray(n)
    try:
        return bytes(buffer[: os.preadv(fd, [buffer], -1, os.RWF_NOWAIT)])
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
    _require(fd, select.POLLIN)  # a terminal: only another reader that is quicker could still make us wait
    return os.read(fd, n)


def write_now(fd: int, data: bytes | memoryview) -> int:
    """Write what fits at once; how many bytes. Raises BlockingIOError for none, whatever the flags of `fd` are."""
    try:
        return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
    _require(fd, select.POLLOUT)
    # A terminal is ready when it has room for one byte, and waits until it has taken all: so it is told, for the moment that this
    # takes, not to.
    blocking = os.get_blocking(fd)
    try:
        if blocking:
            os.set_blocking(fd, False)
        return os.write(fd, data[: select.PIPE_BUF])
    finally:
        if blocking:
            os.set_blocking(fd, True)


def _require(fd: int, events: int) -> None:
    poller = select.poll()
    poller.register(fd, events)
    if not poller.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
