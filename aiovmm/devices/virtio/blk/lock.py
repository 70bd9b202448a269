"""Locks on disk images: a writer has an image alone, readers share it."""

from __future__ import annotations

import errno

from aiovmm.errors import HostError
from aiovmm.runtime import ofdlock

__all__ = ["lock_image"]

_IN_USE = (errno.EAGAIN, errno.EACCES)


def lock_image(fd: int, path: str, *, shared: bool, reader: str = "readonly=on", size: int = 0) -> None:
    """Lock the file behind `fd`, or its first `size` bytes. It must be open for writing unless `shared`. Does not wait. `reader`
    is the option that makes it shared. Raises HostError."""
    try:
        ofdlock.lock(fd, shared=shared, size=size)
    except OSError as exc:
        number = exc.errno or errno.EIO
        hint = "the file system does not support locks: put the image on another one"
        if number in _IN_USE and shared:
            hint = "another program writes to this image; stop it, or give each guest a copy"
        elif number in _IN_USE:
            hint = f"another VM or program uses this image; stop it, give each guest a copy, or let all of them say {reader}"
        raise HostError("locking the image", number, hint, path) from exc
