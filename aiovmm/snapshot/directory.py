"""A snapshot's directory.

    state.json        what the machine is and how it stands (document.py)
    memory-0123...    the RAM, one piece after the other; a sparse file in which pages of zeros are holes

A new one is written beside the old: its memory under a name of its own, then its state under another name, which takes the old
one's place by one rename; then the old memory goes. Whatever happens in between, a full disk or a SIGKILL, there is either
the old one or the new one, whole; what is left of one that was not finished goes with the next that is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from aiovmm.errors import HostError, SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State
from aiovmm.snapshot.document import LARGEST, MOST_PARTS, decode, encode, identity, parts
from aiovmm.snapshot.increment import file_size

__all__ = ["STATE", "BaseOf", "Opened", "Written", "open_snapshot"]

STATE = "state.json"
_ASIDE = "state.json.new"
_TRIES = 8
_MEMORY = re.compile(r"memory-[0-9a-f]{16}")
T = TypeVar("T")
_FORMAT, VERSION = "aiovmm snapshot", 1


@dataclass(frozen=True)
class BaseOf:
    """What an increment is over: the directory of another snapshot, as seen from its own, and that snapshot's identity."""

    path: str
    identity: str


class Written:
    """A snapshot that is being written, of a guest with `size` bytes of RAM, over the snapshot `base` or whole: `open`; `memory`
    is its memory's file, to be filled; `commit`; and in any case `close`. All in a thread."""

    def __init__(self, path: Path, size: int, base: BaseOf | None = None) -> None:
        self.memory = -1
        self._base = base
        self._path = path
        self._size = size
        self._name = f"memory-{os.urandom(8).hex()}"
        self._committed = self._made = False
        self._directory = -1

    def open(self) -> None:
        """Raises HostError, SnapshotError if somebody else writes there."""
        self._directory, self._made = _attempt(self._path, lambda: _open_directory(self._path))
        self.memory = _attempt(self._path, lambda: self._create(self._name))
        if self._base is None:
            _attempt(self._path, lambda: os.ftruncate(self.memory, self._size))

    def commit(self, state: State, pages: int, total: int, maps: str = "") -> str:
        """It is complete: `pages` of memory with that sum, those of an increment by maps with that SHA-256, and the state. It
        takes the place of the old one. Its identity. Raises HostError, SnapshotError for more state than there may be."""
        head: State = {"format": _FORMAT, "version": VERSION}
        memory: State = {"file": self._name, "size": self._size, "pages": pages, "sum": total}
        if self._base is not None:
            memory |= {"base": self._base.path, "base_sha256": self._base.identity, "maps_sha256": maps}
        document = encode({**head, "memory": memory, **state})
        if len(document) > LARGEST or parts(document) > MOST_PARTS:
            most = f"{LARGEST} bytes and {MOST_PARTS} lists and objects"
            raise SnapshotError(f"its state has {len(document)} bytes, and no snapshot may have more than {most}")
        _attempt(self._path, lambda: self._commit(document))
        self._committed = True
        for name in os.listdir(self._directory):
            if _MEMORY.fullmatch(name) and name != self._name:
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
        return identity(document)

    def _commit(self, document: bytes) -> None:
        os.fsync(self.memory)
        with suppress(FileNotFoundError):  # of one that was not finished
            os.unlink(_ASIDE, dir_fd=self._directory)
        fd = self._create(_ASIDE)
        try:
            view = memoryview(document)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(_ASIDE, STATE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)

    def _create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=self._directory)

    def close(self) -> None:
        """Idempotent. What was not committed goes, and the directory, if it was made for that."""
        if self._directory < 0:
            return
        if not self._committed:
            for name in (self._name, _ASIDE):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
            if self._made:
                with suppress(OSError):  # somebody has put something there, or something else in its place
                    self._path.rmdir()
        if self.memory >= 0:
            os.close(self.memory)
        fcntl.flock(self._directory, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open yet
        os.close(self._directory)
        self._directory = self.memory = -1


def _attempt(path: Path, call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError as exc:
        raise _failed("writing a snapshot", path, exc) from exc


def _failed(doing: str, path: Path, exc: OSError) -> HostError:
    if isinstance(exc, HostError):
        return exc
    return HostError(doing, exc.errno or errno.EIO, path=str(path))


def _open_directory(path: Path) -> tuple[int, bool]:
    """For one alone, and whether it was made. Another that failed may take along what it had made, just when it was found."""
    while True:
        made = False
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            made = True
            _sync_name(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd, made
            os.close(fd)
        except OSError as exc:
            os.close(fd)
            if not isinstance(exc, BlockingIOError):
                raise
            other = "another snapshot is being written there: give each guest a directory"
            raise SnapshotError(f"{path}: {other}") from None


def _sync_name(path: Path) -> None:
    """A new name is on the medium, where its directory may be read."""
    with suppress(PermissionError):
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


@dataclass(frozen=True)
class Opened:
    """A snapshot that was opened: what it says, and its memory's file, which is the caller's to close. `size` is the RAM's; one
    with a `base` is an increment, of which `maps` is the SHA-256 of the maps."""

    state: State
    memory: int
    pages: int
    sum: int
    size: int
    identity: str
    base: BaseOf | None = None
    maps: str = ""


def open_snapshot(path: Path, *, memory: bool = True) -> Opened:
    """The one at `path`; without its `memory`, which then need not be there (-1). In a thread. Raises SnapshotError for what is
    none, is damaged or of another version, HostError."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise _failed("opening a snapshot", path, exc) from exc
    try:
        return _open_latest(path, directory, memory)
    except SnapshotError as exc:
        raise SnapshotError(f"{path}: {exc}") from exc
    finally:
        os.close(directory)


def _open_latest(path: Path, directory: int, memory: bool) -> Opened:
    """The one that is there, if another takes its place meanwhile: then the memory of the first may be gone. One that is always
    another is none."""
    document = _read_state(path, directory)
    for more in range(_TRIES - 1, -1, -1):
        try:
            return _open(path, directory, document, memory)
        except SnapshotError:
            before, document = document, _read_state(path, directory)
            if document == before or not more:
                raise
    raise AssertionError("the last try ends it")


def _open(path: Path, directory: int, document: bytes, with_memory: bool) -> Opened:
    fields = Fields(decode(document), "snapshot")
    fields.text("format", [_FORMAT])
    version = fields.number("version")
    if version != VERSION:
        raise SnapshotError(f"it is of version {version}, and this aiovmm reads version {VERSION}: use one that fits")
    memory = fields.fields("memory")
    name = memory.text("file")
    size, pages, total = memory.number("size", 1, 1 << 52), memory.number("pages"), memory.number("sum")
    base, maps = _base_in(memory) if "base" in memory else (None, "")
    memory.end()
    if not _MEMORY.fullmatch(name):
        raise SnapshotError(f"snapshot.memory.file is {name[:40]!r}, which is no name of such a file")
    state = {
        "config": fields.state("config"),
        "architecture": fields.text("architecture"),
        "machine": fields.state("machine"),
    }
    fields.end()
    length = size if base is None else file_size(size, pages)
    fd = _open_regular(path, directory, name, length) if with_memory else -1
    return Opened(state, fd, pages, total, size, identity(document), base, maps)


def _base_in(memory: Fields) -> tuple[BaseOf, str]:
    base = memory.text("base")
    if not _can_be_named(base):
        raise SnapshotError("snapshot.memory.base is no name of a directory")
    return BaseOf(base, memory.text("base_sha256")), memory.text("maps_sha256")


def _can_be_named(path: str) -> bool:
    try:
        return bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a character, which JSON can have
        return False


def _read_state(path: Path, directory: int) -> bytes:
    fd = _open_regular(path, directory, STATE)
    with open(fd, "rb") as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, LARGEST) + 1)  # no room is made for what is not there
    if len(data) > LARGEST:
        raise SnapshotError(f"{STATE} has more than {LARGEST} bytes")
    return data


def _open_regular(path: Path, directory: int, name: str, size: int | None = None) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        raise SnapshotError(f"it has no {name}: it is no snapshot, or not a whole one") from None
    except OSError as exc:
        raise _failed("opening a snapshot", path / name, exc) from exc
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
        os.close(fd)
        raise SnapshotError(
            f"{name} has {status.st_size} bytes, not {size}: it was cut short, or is no file of a snapshot"
        )
    return fd
