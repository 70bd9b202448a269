"""Files that are written for a person: a console's output, events, an initramfs. None of them may be something else to somebody.

- A new one is its owner's alone (mode 0600): what a guest prints may hold secrets. One that is there keeps its mode.
- The last name of the path is not followed if it is a symbolic link: in a directory that others write to, it would lead where
  they want. What lies below /dev and /proc is (/dev/stderr, /dev/fd/3).
- A file that somebody has locked, as every disk image of a running VM is, is refused before a byte of it is gone, and the file is
  locked as long as it is written.
"""

from __future__ import annotations

import errno
import os
import stat

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime import ofdlock

__all__ = ["open_output_file"]

_IN_USE = (errno.EAGAIN, errno.EACCES)
_SYSTEM = ("/dev/", "/proc/")


def open_output_file(
    path: str | os.PathLike[str],
    option: str,
    doing: str,
    *,
    append: bool = False,
    mode: int = 0o600,
    follow: bool = False,
) -> int:
    """A descriptor of the regular file or device `path`, emptied unless `append`, made if need be. `option` and `doing` are for
    errors; `mode` and `follow` (links) for what is no output of a guest's. May block. Raises ConfigError for what must not be
    written, HostError for what the host refuses."""
    name = os.path.abspath(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not block us
    flags |= (os.O_APPEND if append else 0) | (0 if follow or name.startswith(_SYSTEM) else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, mode)
    except OSError as exc:
        if exc.errno == errno.ELOOP and os.path.islink(path):
            raise ConfigError(
                option, f"{path} is a symbolic link", f"give the file itself: {os.path.realpath(path)}"
            ) from exc
        if exc.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
            raise ConfigError(option, f"{path} is a FIFO, which blocks until it is read", "use socket=PATH") from exc
        raise HostError(doing, exc.errno or 0, path=str(path)) from exc
    try:
        _claim(fd, str(path), option, doing, append=append)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _claim(fd: int, path: str, option: str, doing: str, *, append: bool) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        raise ConfigError(option, f"{path} is a FIFO, which blocks until it is read", "use socket=PATH")
    if stat.S_ISBLK(mode):
        raise ConfigError(option, f"{path} is a block device", "give a file")
    if stat.S_ISREG(mode):
        try:
            ofdlock.lock(fd, shared=False)
        except OSError as exc:
            if exc.errno in _IN_USE:
                hint = "a disk image of a VM, or another one's output? give each a file of its own"
                raise ConfigError(option, f"{path} is in use by another program or device", hint) from exc
            # else its file system knows no locks: nobody can have one either
        try:
            if not append:
                os.ftruncate(fd, 0)
        except OSError as exc:
            raise HostError(doing, exc.errno or 0, path=path) from exc
    os.set_blocking(fd, True)
