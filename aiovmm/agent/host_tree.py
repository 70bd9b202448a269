"""Trees on the host: written as a guest sends them, read as one is sent there. All of it blocks; it is called in
threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from aiovmm.agent.tree import (
    DEPTH_MAX,
    END,
    UP,
    Content,
    ContentEnd,
    Directory,
    End,
    File,
    LeftOut,
    Link,
    Record,
    TreeReader,
    Up,
    content,
    content_end,
    record,
    stays_inside,
)
from aiovmm.errors import HostError, UsageError

__all__ = ["COPY_LIMIT", "Copied", "TreeWriter", "read_tree"]

COPY_LIMIT = 64 << 30
"""Bytes that `copy_out` takes: what a guest sends is the host's disk, and of what is sparse there, all."""

_ENTRY = 4096  # bytes of the limit for a file, directory or link, whatever is in it
_NO_ENTRY = (ContentEnd, Up, End)
_TOLD = 4 << 20  # characters of what was left out
_PIECE = (256 << 10) - 4  # with the word before it whole frames
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FILE = "what is there is a device, a pipe or a socket, which is not replaced: give another name"
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_INTO = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Copied:
    """What was copied: `files` of them with `size` bytes in all. `left_out`: what was not, by its path below what was
    copied, and why: devices, sockets and pipes, links that lead out of it, what could not be read; `untold`: how many more, when
    these are some megabytes of text."""

    files: int = 0
    size: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    untold: int = 0
    _told: int = field(default=0, repr=False, compare=False)

    def leave_out(self, path: bytes, why: str) -> None:
        """One more, of which there may be no end."""
        text = os.fsdecode(path)
        self._told += len(text) + len(why)
        if self._told > _TOLD:
            self.untold += 1
        else:
            self.left_out.append((text, why))


@dataclass
class _Level:
    """A directory that one is in."""

    fd: int
    name: bytes
    mode: int
    mtime: int
    made: bool  # by this copy; one that was there stays as it was, for whom its owner has it


class TreeWriter:
    """Writes what comes to `path`, whose directory is there. Below it everything is made relative to the directory that
    it is in, which is never reached by a link; files are new ones, in the place of files and links that were there. Owners
    are not kept, and of modes the permissions; a directory that was there keeps its own. `limit`: bytes of all files, of which
    each entry counts as 4096 more."""

    def __init__(self, path: str, limit: int = COPY_LIMIT) -> None:
        self._path = os.fsencode(path)
        self._limit = self._room = limit
        self._reader = TreeReader()
        self._levels: list[_Level] = []
        self._file = -1
        self._file_of: File | None = None
        self.copied = Copied()

    @property
    def ended(self) -> bool:
        """All has come."""
        return self._reader.ended

    def feed(self, data: bytes) -> None:
        """Raises PeerError, HostError, UsageError if it is more than may be."""
        for item in self._reader.feed(data):
            try:
                self._take(item)
            except OSError as exc:
                if isinstance(exc, HostError):
                    raise
                where = os.fsdecode(self._where(getattr(item, "name", b"")))
                raise HostError("copying out of the guest", exc.errno or 0, path=where) from exc

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        while self._levels:
            os.close(self._levels.pop().fd)

    def _take(self, item: Record) -> None:
        if not isinstance(item, _NO_ENTRY):
            self._room -= len(item.data) if isinstance(item, Content) else _ENTRY
        if self._room < 0:
            raise UsageError(
                f"what is copied out of the guest is more than {self._limit} bytes: `limit` says how many may be"
            )
        if isinstance(item, Content):
            self._write(item.data)
        elif isinstance(item, File):
            self._begin(item)
        elif isinstance(item, ContentEnd):
            self._finish(item)
        elif isinstance(item, Directory):
            self._enter(item)
        elif isinstance(item, Up):
            self._leave()
        elif isinstance(item, Link):
            self._link(item)
        elif isinstance(item, LeftOut):
            self._leave_out(item.name, os.strerror(item.error) if item.error else "no file, directory or link")

    def _at(self, name: bytes) -> tuple[bytes, int | None]:
        return (name, self._levels[-1].fd) if self._levels else (self._path, None)

    def _where(self, name: bytes) -> bytes:
        return b"/".join([self._path, *(level.name for level in self._levels[1:]), *([name] if self._levels else [])])

    def _leave_out(self, name: bytes, why: str) -> None:
        path = b"/".join([*(level.name for level in self._levels[1:]), name])
        self.copied.leave_out(path, why)

    def _remove(self, name: bytes, directory: int | None) -> None:
        with suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=directory, follow_symlinks=not self._levels).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):  # nobody means to lose /dev/null
                path = os.fsdecode(self._where(name if self._levels else b""))
                raise HostError("copying out of the guest", errno.EEXIST, _NO_FILE, path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    def _begin(self, item: File) -> None:
        name, directory = self._at(item.name)
        self._remove(name, directory)
        self._file = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        self._file_of = item

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self.copied.size += len(data)

    def _finish(self, item: ContentEnd) -> None:
        file, self._file = self._file, -1
        assert self._file_of is not None
        try:
            os.fchmod(file, self._file_of.mode)
            os.utime(file, ns=(self._file_of.mtime, self._file_of.mtime))
        finally:
            os.close(file)
        self.copied.files += 1
        if item.error:
            self._leave_out(self._file_of.name, f"its end could not be read: {os.strerror(item.error)}")

    def _enter(self, item: Directory) -> None:
        name, directory = self._at(item.name)
        made = False
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
            made = True
        fd = os.open(name, _INTO if self._levels else _INTO & ~os.O_NOFOLLOW, dir_fd=directory)
        self._levels.append(_Level(fd, item.name, item.mode, item.mtime, made))

    def _leave(self) -> None:
        level = self._levels.pop()
        try:
            if level.made:
                os.fchmod(level.fd, level.mode | stat.S_IRWXU)  # its owner can always remove it again
                os.utime(level.fd, ns=(level.mtime, level.mtime))
        finally:
            os.close(level.fd)

    def _link(self, item: Link) -> None:
        if not stays_inside(item.target, len(self._levels) - 1):
            self._leave_out(item.name, f"a link that leads out, to {os.fsdecode(item.target)}")
            return
        name, directory = self._at(item.name)
        self._remove(name, directory)
        os.symlink(item.target, name, dir_fd=directory)


def read_tree(path: str, copied: Copied) -> Iterator[bytes]:
    """`path` and all below it for a guest. A link that is `path` itself is followed. What is below is opened relative to the
    directory that it is in, and never by a link: a guest that shares the directory may put one there meanwhile, or a pipe. Raises
    HostError."""
    top = os.fsencode(path)
    try:
        yield from _entry(None, top, b"", top, copied, 0)
    except OSError as exc:
        name = exc.filename if exc.filename is not None else path
        raise HostError("copying into the guest", exc.errno or errno.EIO, path=os.fsdecode(name)) from exc
    yield END


def _entry(
    directory: int | None, path: bytes, name: bytes, where: bytes, copied: Copied, depth: int
) -> Iterator[bytes]:
    """`path` is relative to `directory`, `where` in messages."""
    with _named(where):
        found = os.stat(path, dir_fd=directory, follow_symlinks=not depth)
        mode, fd = found.st_mode, -1
        if stat.S_ISLNK(mode):
            target = os.readlink(path, dir_fd=directory)
        elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            fd = os.open(path, _READ | (os.O_NOFOLLOW if depth else 0), dir_fd=directory)
    try:
        if depth > DEPTH_MAX:
            _leave_out(copied, where, depth, os.strerror(errno.ELOOP))
        elif stat.S_ISLNK(mode):
            yield record(b"L", name) + len(target).to_bytes(2, "little") + target
        elif fd < 0 or stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(mode):
            _leave_out(copied, where, depth, "no file, directory or link")
        elif stat.S_ISDIR(mode):
            yield record(b"D", name, mode, found.st_mtime_ns)
            for entry in map(os.fsencode, os.listdir(fd)):
                yield from _entry(fd, entry, entry, where + b"/" + entry, copied, depth + 1)
            yield UP
        else:
            yield record(b"F", name, mode, found.st_mtime_ns)
            yield from _content(fd, copied)
    finally:
        if fd >= 0:
            os.close(fd)


def _leave_out(copied: Copied, where: bytes, depth: int, why: str) -> None:
    """By the last `depth` names of its path."""
    copied.leave_out(b"/".join(where.split(b"/")[-depth:]) if depth else b"", why)


@contextmanager
def _named(where: bytes) -> Iterator[None]:
    """An error is of this file, whatever it was opened by."""
    try:
        yield
    except OSError as exc:
        exc.filename = where
        raise


def _content(fd: int, copied: Copied) -> Iterator[bytes]:
    while data := os.read(fd, _PIECE):
        copied.size += len(data)
        yield content(data)
    copied.files += 1
    yield content_end()
