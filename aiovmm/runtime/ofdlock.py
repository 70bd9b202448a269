"""Open-file-description locks (fcntl(2), Linux 3.15) on files, whole or their first bytes.

They end with the last descriptor of the open file, hold between two VMs of one process as between processes, and collide with
the byte locks by which QEMU guards its images. A forked child has descriptors of the same open file, so
a lock is given back in words.
"""

from __future__ import annotations

import fcntl
import struct
from contextlib import suppress

__all__ = ["lock", "unlock"]

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, len, pid


def lock(fd: int, *, shared: bool, size: int = 0) -> None:
    """Lock the file behind `fd`, or its first `size` bytes; it must be open for writing unless `shared`. Does not wait. Raises
    OSError."""
    _set(fd, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, size)


def unlock(fd: int) -> None:
    """Give it back, whoever else has descriptors of this open file."""
    with suppress(OSError):
        _set(fd, fcntl.F_UNLCK)


def _set(fd: int, kind: int, size: int = 0) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, 0, size, 0))
