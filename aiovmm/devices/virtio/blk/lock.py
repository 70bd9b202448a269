"""Locks on disk images: a writer has an image alone, readers share it.

Open-file-description locks (fcntl(2), Linux 3.15) on the whole file: they end with the descriptor, hold between two VMs of one
process as between processes, and collide with the byte locks by which QEMU guards its images.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from aiovmm.errors import HostError

__all__ = ["lock_image"]

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, len, pid
_IN_USE = (errno.EAGAIN, errno.EACCES)


def lock_image(fd: int, path: str, *, shared: bool, reader: str = "readonly=on") -> None:
    """Lock the file behind `fd`, which must be open for writing unless `shared`. Does not wait. `reader` is the option that
    makes it shared. Raises HostError."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, 0, 0, 0))
    except OSError as exc:
        number = exc.errno or errno.EIO
        hint = "the file system does not support locks: put the image on another one"
        if number in _IN_USE and shared:
            hint = "another program writes to this image; stop it, or give each guest a copy"
        elif number in _IN_USE:
            hint = f"another VM or program uses this image; stop it, give each guest a copy, or let all of them say {reader}"
        raise HostError("locking the disk image", number, hint, path) from exc
