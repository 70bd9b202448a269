"""The library that has calls fail (fault.c): built, preloaded, and armed from within."""

from __future__ import annotations

import ctypes
import enum
import errno
import subprocess
from pathlib import Path

__all__ = ["ERRORS", "SHORT", "Kind", "arm", "build", "calls", "set_clock"]


class Kind(enum.IntEnum):
    """As in fault.c."""

    OPEN = 0
    IOCTL = 1
    MMAP = 2
    EVENTFD = 3
    EPOLL_CTL = 4
    SOCKET = 5
    ACCEPT = 6
    PREAD = 7
    PWRITE = 8
    THREAD = 9
    TIMERFD = 10
    MEMFD = 11
    TRUNCATE = 12
    URING = 13
    DUP = 14
    STACK = 15
    """Of a thread of Python's, which the system has started already."""


SHORT = 0
"""It does not fail, but transfers a part only."""
_NO_ROOM = (errno.EMFILE, errno.ENOMEM)
ERRORS: dict[Kind, tuple[int, ...]] = {
    Kind.OPEN: (errno.EMFILE, errno.EINTR, errno.EIO),
    Kind.IOCTL: (errno.ENOMEM, errno.EIO, errno.EINTR, errno.EAGAIN),
    Kind.MMAP: (errno.ENOMEM,),
    Kind.EVENTFD: _NO_ROOM,
    Kind.SOCKET: _NO_ROOM,
    Kind.ACCEPT: (errno.EMFILE, errno.EINTR),
    Kind.PREAD: (errno.EIO, errno.EINTR, errno.EAGAIN, SHORT),
    Kind.PWRITE: (errno.ENOSPC, errno.EIO, SHORT),
    Kind.THREAD: (errno.EAGAIN,),
    Kind.TIMERFD: _NO_ROOM,
    Kind.MEMFD: _NO_ROOM,
    Kind.TRUNCATE: (errno.ENOSPC,),
    Kind.URING: (errno.EPERM, errno.ENOMEM),
    Kind.DUP: (errno.EMFILE,),
    Kind.STACK: (errno.ENOMEM,),
}
"""What each may fail with; the first is the likeliest. Not EPOLL_CTL: it is event loops that call it, and libuv aborts then."""


def build(folder: Path) -> Path:
    """Compile it: what LD_PRELOAD is to name."""
    library = folder / "libfault.so"
    source = Path(__file__).with_name("fault.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
    return library


def arm(kind: int, nth: int, error: int) -> None:
    """In a process that has it: the nth call from now on fails; kind -1: none."""
    ctypes.CDLL(None).fault_arm(kind, ctypes.c_long(nth), error)


def calls() -> int:
    """Of the kind, since it was armed."""
    counted = ctypes.CDLL(None).fault_calls
    counted.restype = ctypes.c_long
    return int(counted())


def set_clock(seconds: int) -> None:
    """The host's clock is so far from what it was at first, from now on."""
    ctypes.CDLL(None).fault_set_clock(ctypes.c_long(seconds))
