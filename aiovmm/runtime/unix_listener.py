"""Unix sockets to listen at: there when they can be connected to, for their owner alone, and never in the place of somebody's.

A socket's name comes with `bind`, and who connects before `listen` is refused; one who waits for the name would be, now and then.
And a second program that starts just then would take the name for one that was left behind, and remove it. So the socket is
bound to another name in the same directory, and gets its own when it listens.

The directory may be where storage stands still, which then is its guest's affair alone: on an event loop names are made and
removed by threads (`listen_in_thread`, `SocketName.removed`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime import crew
from aiovmm.runtime.stream_socket import PATH_LIMIT
from aiovmm.runtime.tasks import opened_in_thread
from aiovmm.runtime.worker import Worker

__all__ = ["PATH_LIMIT", "SocketName", "listen_at", "listen_in_thread"]

_PATIENCE = 2.0  # seconds for storage to remove a name


def listen_at(path: Path, *, option: str, operation: str, backlog: int = 128) -> socket.socket:
    """A non-blocking socket that listens at `path` with mode 0600. One that a process which is gone has left there is replaced.

    Raises ConfigError, which names `option`, for a path that is too long or is no socket; HostError, which names `operation`,
    for what the host refuses: EADDRINUSE if another process listens there.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise ConfigError(option, f"{path} is longer than the {PATH_LIMIT} bytes a socket's path may have")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path, option)
        _listen(listener, path, backlog)
    except OSError as exc:
        listener.close()
        hint = "another process listens there" if exc.errno in (errno.EADDRINUSE, errno.EEXIST) else ""
        number = errno.EADDRINUSE if exc.errno == errno.EEXIST else exc.errno or 0
        raise HostError(operation, number, hint, str(path)) from exc
    except BaseException:
        listener.close()
        raise
    return listener


async def listen_in_thread(
    path: Path, *, option: str, operation: str, backlog: int = 128
) -> tuple[socket.socket, SocketName]:
    """The same, and its name."""

    def listen() -> tuple[socket.socket, SocketName]:
        return listen_at(path, option=option, operation=operation, backlog=backlog), SocketName(path)

    return await opened_in_thread("unix socket", _undone, listen)


def _undone(made: tuple[socket.socket, SocketName]) -> None:
    listener, name = made
    listener.close()
    name.remove()


class SocketName:
    """Of a socket that was just made at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = _identity(path)

    def remove(self) -> None:
        """If it is still that one's. Idempotent. Who may not, as another user than the one that listened, leaves it: whoever
        listens there next replaces it."""
        made, self._made = self._made, None
        if made is not None and _identity(self._path) == made:
            with suppress(OSError):
                self._path.unlink()

    def remove_soon(self) -> None:
        """The same by a thread, which nobody waits for."""
        try:
            crew.run("unix socket", self._removing)
        except RuntimeError:  # the host has no room for a thread: slow is better than never
            self.remove()

    def _removing(self) -> Callable[[], None]:
        self.remove()
        return _nothing

    async def removed(self) -> None:
        """The same by a thread, which is waited for, but not for storage that does not answer."""
        if self._made is not None:
            await asyncio.wait([Worker("unix socket").submit(self.remove)], timeout=_PATIENCE)


def _nothing() -> None:
    return


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen(listener: socket.socket, path: Path, backlog: int) -> None:
    first = path.with_name(f".{os.urandom(4).hex()}")
    if len(os.fsencode(first)) > PATH_LIMIT:
        first = path
    listener.bind(os.fspath(first))
    try:
        os.chmod(first, 0o600)  # before listen: nobody can have connected yet
        listener.listen(backlog)
        if first is not path:
            _name(first, path)
    except BaseException:
        first.unlink(missing_ok=True)
        raise
    if first is not path:
        first.unlink(missing_ok=True)


def _name(first: Path, path: Path) -> None:
    """Give the socket its own name, unless somebody has come first."""
    try:
        os.link(first, path)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):  # a file system without links
            raise
        os.rename(first, path)


def _remove_stale(path: Path, option: str) -> None:
    """Remove a socket file that a process which is gone has left."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(option, f"{path} exists and is not a socket", "remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(os.fspath(path))
    if code != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)
