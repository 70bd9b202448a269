"""A pseudo-terminal that other programs open (screen, minicom, a test): a name in /dev/pts, and a link to it if wanted.

The kernel does not tell the master's owner that somebody opens the slave; that nobody has it open is POLLHUP, which is
level-triggered. So while nobody has it open it is looked at now and then, and the loop watches it only while somebody has.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import struct
import termios
import tty
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiovmm.console.backends.base import ConsoleBackend, linger, type_in
from aiovmm.console.backends.duplex import CHUNK, GONE
from aiovmm.console.fds import OwnedFd
from aiovmm.console.race import first
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.console.view import ConsoleView
from aiovmm.errors import ConfigError, ConsoleEnded, HostError

__all__ = ["PtyBackend"]

_POLL = 0.2  # seconds between looks whether somebody has opened it
_POLL_TAKEN = 0.01  # seconds between looks whether the last output has been read


class PtyBackend(ConsoleBackend):
    """Creates a pseudo-terminal in raw mode; `name` is its path, `symlink` an optional second one, removed at the end.

    It may be opened and closed any number of times. Whoever opens it is shown the history first; while nobody has it
    open, output goes to the history alone.
    """

    def __init__(self, console: Console, *, symlink: str | os.PathLike[str] | None = None) -> None:
        super().__init__(console)
        self._symlink = Path(symlink) if symlink is not None else None
        self._linked = False
        self._master: OwnedFd | None = None
        self._view: ConsoleView | None = None
        self._unread = 0  # bytes that its reader has not taken, at the end
        self._finished = asyncio.Event()
        self.name = ""

    @property
    def place(self) -> str:
        """The path of the terminal, once it is open."""
        return self.name or "a pseudo-terminal"

    async def _open(self) -> None:
        try:
            master, slave = os.openpty()
        except OSError as exc:
            raise HostError("open a pseudo-terminal", exc.errno or 0, "see /proc/sys/kernel/pty/max") from exc
        self._master = OwnedFd(master)
        try:
            self.name = os.ttyname(slave)
            tty.setraw(slave)  # else the line discipline would echo the guest's output back as its input
        finally:
            os.close(slave)
        if self._symlink is not None:
            self._link(self._symlink)

    async def _run(self) -> AttachEnd:
        end = asyncio.ensure_future(self._until_over())
        try:
            while await self._opened(end):
                await self._serve()
        finally:
            end.cancel()
            await asyncio.wait([end])
        return AttachEnd.GUEST_ENDED if self._console.closed else AttachEnd.DETACHED

    async def _opened(self, end: asyncio.Future[Any]) -> bool:
        """Wait until somebody has it open: True; False if it is over (which `end` tells) and nobody is to be served."""
        while True:
            events = self._events()
            if not events & select.POLLHUP:
                return not self._over() or self._view is None
            if events & select.POLLIN:  # somebody opened it, wrote and closed it again meanwhile
                await self._take()
            elif self._over():
                return False
            else:
                await asyncio.wait([end], timeout=_POLL)

    def _events(self) -> int:
        assert self._master is not None
        poller = select.poll()
        poller.register(self._master.fileno(), select.POLLIN)
        return dict(poller.poll(0)).get(self._master.fileno(), 0)

    def _is_closed(self) -> bool:
        return bool(self._events() & select.POLLHUP)

    async def _until_over(self) -> None:
        await first(self._console.wait_closed(), self._finished.wait())

    def _over(self) -> bool:
        return self._console.closed or self._finished.is_set()

    async def _serve(self) -> None:
        """One time that it is open."""
        assert self._master is not None
        self._view = self._console.view()
        if self._finished.is_set():
            self._view.close()
        termios.tcflush(self._master.fileno(), termios.TCOFLUSH)  # what the one before did not read
        if await first(self._show(self._view), self._take()) is AttachEnd.TERMINAL_CLOSED:
            tty.setraw(self._master.fileno(), termios.TCSANOW)  # whatever the one who closed it has set
            self._view = None

    async def _show(self, view: ConsoleView) -> AttachEnd:
        assert self._master is not None
        try:
            while data := await view.read():
                await self._master.write(data)
        except OSError as exc:
            if exc.errno not in GONE:
                raise
            return AttachEnd.TERMINAL_CLOSED
        await self._taken()
        return AttachEnd.GUEST_ENDED

    async def _take(self) -> AttachEnd:
        """Carry input until nobody has it open."""
        assert self._master is not None
        while data := await self._master.read(CHUNK):
            try:
                await type_in(self._console, data, self._is_closed)
            except ConsoleEnded:
                continue
            except ConnectionResetError:
                break
        return AttachEnd.TERMINAL_CLOSED

    async def _taken(self) -> None:
        """Wait until the reader has taken the last output: closing the master throws away what it has not. One that takes no
        more is not waited for."""
        taken = asyncio.ensure_future(self._until_taken())
        try:
            await linger([taken], self._progress)
        finally:
            taken.cancel()
            await asyncio.wait([taken])

    async def _until_taken(self) -> None:
        try:
            slave = os.open(self.name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # what it has taken cannot be seen: it has it alone (TIOCEXCL), or there are no descriptors
            await self._until_closed()
            return
        try:
            while unread := _readable(slave):
                self._unread = unread
                await asyncio.sleep(_POLL_TAKEN)
        finally:
            os.close(slave)

    async def _until_closed(self) -> None:
        while not self._is_closed():  # noqa: ASYNC110 (see the module)
            await asyncio.sleep(_POLL_TAKEN)

    def _progress(self) -> object:
        return self._view.position if self._view is not None else 0, self._unread

    def _finish(self) -> None:
        self._finished.set()
        if self._view is not None:
            self._view.close()

    def _link(self, path: Path) -> None:
        if os.path.lexists(path) and not path.is_symlink():
            raise ConfigError("pty", f"{path} exists and is not a symbolic link", "remove it, or choose another path")
        try:
            path.unlink(missing_ok=True)
            path.symlink_to(self.name)
        except OSError as exc:
            raise HostError("link to the pseudo-terminal", exc.errno or 0, path=str(path)) from exc
        self._linked = True

    async def _close(self) -> None:
        if self._linked and self._symlink is not None:
            self._linked = False
            with suppress(OSError):  # somebody was faster, or nothing is written there any more
                if os.readlink(self._symlink) == self.name:
                    self._symlink.unlink()
        if self._master is not None:
            self._master.close()
            self._master = None


def _readable(fd: int) -> int:
    """Bytes that a read of the terminal `fd` would give at once, those included that are on their way from the master: what is
    written there reaches the line discipline by a work queue of the kernel, which polling waits for (n_tty_poll)."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll(0)
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
