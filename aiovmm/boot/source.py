"""Bytes of a kernel or initrd on their way into guest memory: from a file without a copy in between, or from memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from aiovmm.boot.window import FileWindow
from aiovmm.errors import HostError, ImageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["BytesSource", "FileIdentity", "FileSource", "Source", "open_regular", "read_at", "window"]


@dataclass(frozen=True)
class FileIdentity:
    """What a file's content cannot change without changing (ctime cannot be set back by a user)."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """As stat(2) told it."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Source(Protocol):
    """`size` bytes that can be read into a buffer."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read_into(self, pieces: list[tuple[int, memoryview]], *, zeroed: bool = False) -> None:
        """Fill each (offset, view). Where `zeroed` says that the views are all zero, holes of a sparse file are left alone.

        Raises ImageError if the bytes are not there any more.
        """


@dataclass(frozen=True)
class BytesSource:
    """Bytes in memory."""

    data: bytes | bytearray | memoryview

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)

    def read_into(self, pieces: list[tuple[int, memoryview]], *, zeroed: bool = False) -> None:
        """See Source."""
        for offset, view in pieces:
            view[:] = memoryview(self.data)[offset : offset + len(view)]


@dataclass(frozen=True)
class FileSource:
    """A file that was looked at when it had `identity`; it is opened only while it is read, so nothing has to be closed."""

    path: str
    identity: FileIdentity

    @classmethod
    def at(cls, path: str | os.PathLike[str], what: str = "file") -> FileSource:
        """A regular, readable file. Raises ImageError."""
        with open_regular(path, what) as fd:
            return cls(os.fspath(path), FileIdentity.of(os.fstat(fd)))

    @property
    def size(self) -> int:
        """In bytes, when it was looked at."""
        return self.identity.size

    def read_into(self, pieces: list[tuple[int, memoryview]], *, zeroed: bool = False) -> None:
        """See Source. Raises ImageError, also for a file that is another by now."""
        with open_regular(self.path) as fd:
            if FileIdentity.of(os.fstat(fd)) != self.identity:
                raise ImageError(self.path, "changed after it was examined", "load it again")
            for offset, view in pieces:
                end = offset + len(view)
                for start, stop in _data_ranges(fd, offset, end) if zeroed else [(offset, end)]:
                    _read_exactly(fd, view[start - offset : stop - offset], start, self.path)


def _data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole in [start, end); all of it where the file system knows no holes."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                return
            stop = end
        if start < end:
            yield start, stop
        start = stop


def _read_exactly(fd: int, view: memoryview, offset: int, path: str) -> None:
    done = 0
    while done < len(view):
        try:
            n = os.preadv(fd, [view[done:]], offset + done)
        except OSError as exc:  # a disk or a server that fails
            raise _unreadable(exc, path) from exc
        if n == 0:
            raise ImageError(path, f"ends at byte {offset + done}, while {offset + len(view)} were expected")
        done += n


def read_at(fd: int, offset: int, size: int, path: str) -> bytes:
    """`size` bytes at `offset` of the file `path`, fewer at its end. Raises HostError."""
    try:
        return os.pread(fd, size, offset)
    except OSError as exc:
        raise _unreadable(exc, path) from exc


def window(fd: int, size: int, path: str) -> FileWindow:
    """The first `size` bytes of the file `path`. Its parts raise HostError where the file cannot be read."""
    return FileWindow(lambda offset, length: read_at(fd, offset, length, path), size)


def _unreadable(exc: OSError, path: str) -> HostError:
    return HostError("reading a file", exc.errno or errno.EIO, "its disk or server fails", path)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], what: str = "file") -> Iterator[int]:
    """An fd of the regular file `path`, open for reading. Raises ImageError with what is wrong, HostError for the rest."""
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block us
    except FileNotFoundError as exc:
        raise ImageError(name, f"no such {what}") from exc
    except PermissionError as exc:
        raise ImageError(name, "not readable by this user", "change its mode, or copy it with sudo") from exc
    except (NotADirectoryError, IsADirectoryError) as exc:
        raise ImageError(name, f"is no {what}") from exc
    except OSError as exc:
        raise HostError(f"opening {what}", exc.errno or errno.EIO, path=name) from exc
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, f"is a directory and no {what}")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, f"is not a regular file, so no {what}")
        if status.st_size == 0:
            raise ImageError(name, "is empty")
        yield fd
    finally:
        os.close(fd)
