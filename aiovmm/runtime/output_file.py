"""Files that are written for a person: a console's output, events, a log, an initramfs. None of them may be something else to
somebody.

- A new one is its owner's alone (mode 0600): what a guest prints may hold secrets. One that is there keeps its mode.
- The last name of the path is not followed if it is a symbolic link: in a directory that others write to, it would lead where
  they want. What lies below /dev and /proc is (/dev/stderr, /dev/fd/3).
- A file that somebody has locked, as every disk image of a running VM is, is refused before a byte of it is gone, and the file is
  locked as long as it is written.
- What is no file (a FIFO, a terminal, the pipe or socket behind /dev/stdout) makes nobody wait: its descriptor does not block,
  and a FIFO needs no reader to be opened: one may come, go, and come again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime import ofdlock

__all__ = ["is_stream", "open_output_file"]

_IN_USE = (errno.EAGAIN, errno.EACCES)
_SYSTEM = ("/dev/", "/proc/")
_STANDARD = {"/dev/stdin": "0", "/dev/stdout": "1", "/dev/stderr": "2"}


def open_output_file(
    path: str | os.PathLike[str],
    option: str,
    doing: str,
    *,
    append: bool = False,
    mode: int = 0o600,
    follow: bool = False,
    streams: bool = True,
) -> int:
    """A descriptor of the file or device `path`, emptied unless `append`, made if need be; or of a stream (`is_stream`), which
    does not block, where `streams` are taken. `option` and `doing` are for errors; `mode` and `follow` (links) for what is no
    output of a guest's. May block, where it is a file. Raises ConfigError for what must not be written, HostError for what the
    host refuses."""
    name = os.path.abspath(path)
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not block us
    flags |= (os.O_APPEND if append else 0) | (0 if follow or name.startswith(_SYSTEM) else os.O_NOFOLLOW)
    try:
        fd = _open(name, path, flags, mode)
    except OSError as exc:
        if exc.errno == errno.ELOOP and os.path.islink(path):
            raise ConfigError(
                option, f"{path} is a symbolic link", f"give the file itself: {os.path.realpath(path)}"
            ) from exc
        if exc.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
            raise ConfigError(option, f"{path} is a FIFO that nobody reads", "start its reader before") from exc
        if exc.errno == errno.ENXIO and stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigError(option, f"{path} is a socket, which cannot be opened", "give a file or a FIFO") from exc
        raise HostError(doing, exc.errno or 0, path=str(path)) from exc
    try:
        if not streams and is_stream(fd):
            raise ConfigError(option, f"{path} is no file", "give one that is, or a name that is not there yet")
        _claim(fd, str(path), option, doing, append=append)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_stream(fd: int) -> bool:
    """Whether it is a pipe, FIFO, socket or terminal, whose other side may be slow, or gone."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _open(name: str, path: str | os.PathLike[str], flags: int, mode: int) -> int:
    if _is_fifo(name):
        try:
            return os.open(path, flags | os.O_RDWR)  # to be there between one reader and the next
        except PermissionError:  # it may be written, and not read
            return os.open(path, flags | os.O_WRONLY)
    try:
        return os.open(path, flags | os.O_WRONLY, mode)
    except OSError as exc:
        if exc.errno == errno.ENXIO and (fd := _own_descriptor(name)) is not None:
            return os.dup(fd)  # a socket's, which is not opened again
        raise


def _is_fifo(name: str) -> bool:
    """One with a name of its own, unlike a pipe that is found by a descriptor."""
    try:
        return stat.S_ISFIFO(os.stat(os.path.realpath(name)).st_mode)
    except OSError:
        return False


def _own_descriptor(name: str) -> int | None:
    """Of this process, for writing, if the path says one."""
    directory, number = os.path.split(name)
    if name in _STANDARD:
        directory, number = "/proc/self/fd", _STANDARD[name]
    if not re.fullmatch(r"\d{1,9}", number, re.ASCII) or os.path.realpath(directory) != f"/proc/{os.getpid()}/fd":
        return None
    return int(number) if fcntl.fcntl(int(number), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY else None


def _claim(fd: int, path: str, option: str, doing: str, *, append: bool) -> None:
    mode = os.fstat(fd).st_mode
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
    if not is_stream(fd):
        os.set_blocking(fd, True)
