"""The modes of a terminal that a guest has: set while this process may set them, left alone while it may not.

A terminal belongs to one process group at a time (termios(3), "job control"). One in the background that sets its modes, or reads
from it, is stopped as a whole by SIGTTOU or SIGTTIN, and its guest and its SIGTERM with it; so here the background looks on. What
the shell does to bring it to the foreground makes no event, so `look` is called now and then, and after SIGCONT.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ModeSetter", "hung_up", "in_foreground", "raw", "raw_output", "same_terminal", "undisturbed"]

Attributes = list[Any]

_JOB_CONTROL = frozenset({signal.SIGTTIN, signal.SIGTTOU})
_GONE = (errno.EIO, errno.EBADF, errno.ENOTTY)


def in_foreground(fd: int) -> bool:
    """Whether job control lets this process use the terminal `fd`. True where there is none: another session's terminal."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def hung_up(fd: int) -> bool:
    """Whether a read that gave nothing, or EIO, said that the terminal `fd` is gone. If not, an end was typed, in line mode, or
    this process was in the background; which it need not be any more, so that is not to be asked. True of what is no terminal."""
    if not os.isatty(fd):
        return True
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


@contextmanager
def undisturbed() -> Iterator[None]:
    """No job-control stop within, in this thread: a write goes out (`stty tostop` or not), a read from the background is EIO."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_CONTROL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def same_terminal(one: int, other: int) -> bool:
    """Whether two descriptors of terminals are of the same one."""
    return os.fstat(one).st_rdev == os.fstat(other).st_rdev


class ModeSetter:
    """`change` applied to the modes of the terminal `fd` for as long as this process is in its foreground."""

    def __init__(self, fd: int, change: Callable[[Attributes], Attributes], *, flush: bool) -> None:
        """`flush`: what was typed and not read is dropped when the modes are put back, as by TCSAFLUSH."""
        self.fd = fd
        self.flush = flush
        self._change = change
        self._taken = False
        self._saved: Attributes | None = None

    def look(self, *, again: bool = False) -> bool:
        """Set the modes if the terminal has become ours (`again`: or anybody may have set them since). Whether it is ours."""
        if not in_foreground(self.fd):
            self._taken = False  # whoever took it has set it as he wants it
        elif again or not self._taken:
            self._take()
        return self._taken

    def give_back(self) -> None:
        """Put the modes back as they were, if they are ours to put back. Idempotent. Never waits: a terminal that was stopped
        would not drain (TCSADRAIN)."""
        if self._taken and self._saved is not None and in_foreground(self.fd):
            _set(self.fd, self._saved, flush=self.flush)
        self._taken = False

    def _take(self) -> None:
        """Between the look at who has the terminal and the call that sets its modes this process may be stopped (SIGSTOP), and go
        on in the background, where that call is let through: job control is kept from stopping us. So one looks again, and
        what was not ours to set is put back as it was found: at worst as it was before whoever has it now set it."""
        try:
            now = termios.tcgetattr(self.fd)
        except termios.error as exc:
            if exc.args[0] not in _GONE:
                raise
            return
        wanted = self._change(now)
        if now != wanted:  # else a shell has set it as it was when we were stopped: what was saved before is right
            _set(self.fd, wanted)
            if not in_foreground(self.fd):
                _set(self.fd, now)
                return
            self._saved = now
        self._taken = True


def _set(fd: int, attributes: Attributes, *, flush: bool = False) -> None:
    try:
        with undisturbed():  # the foreground may have been lost since it was looked at
            if flush:
                termios.tcflush(fd, termios.TCIFLUSH)
            termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as exc:
        if exc.args[0] not in _GONE:  # hung up or closed: nothing is left to set
            raise


def raw(attributes: Attributes) -> Attributes:
    """What cfmakeraw(3) does."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = attributes
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]


def raw_output(attributes: Attributes) -> Attributes:
    """For a terminal that only shows a guest: the guest ends its lines itself, and the interrupt key stays ours."""
    iflag, oflag, *rest = attributes
    return [iflag, oflag & ~termios.OPOST, *rest]
