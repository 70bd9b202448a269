"""A file, or a directory with all below it, as a stream of records: what guest/pack.c sends and guest/unpack.c takes. Pure.

A record is u8 type, u8 zero, u16 size of the name, u32 mode, u64 modification time in ns, and the name, which is that
of an entry of the directory one is in: D enters one, U leaves it, E ends all. Behind F (a file) comes its content, in
pieces of u32 size and bytes, then u32 zero and u32 errno; behind L (a link) u16 size and target; X was left out.

Names come from a guest. One that is no plain name is a PeerError, so that no sequence of records leads out of where it
is unpacked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from aiovmm.agent.wire import errno_of
from aiovmm.errors import PeerError

__all__ = [
    "DEPTH_MAX",
    "END",
    "UP",
    "Content",
    "ContentEnd",
    "Directory",
    "End",
    "File",
    "LeftOut",
    "Link",
    "Record",
    "TreeReader",
    "Up",
    "content",
    "content_end",
    "is_plain",
    "record",
    "stays_inside",
]

DEPTH_MAX = 128
_HEADER = struct.Struct("<BBHIQ")
_PIECE_MAX = 1 << 20
_NAME_MAX = 255
_TARGET_MAX = 4095


@dataclass(frozen=True, slots=True)
class Directory:
    """Enter it. `mode` has no bits but rwxrwxrwx; `mtime` in ns."""

    name: bytes
    mode: int
    mtime: int


@dataclass(frozen=True, slots=True)
class File:
    """Its content follows."""

    name: bytes
    mode: int
    mtime: int


@dataclass(frozen=True, slots=True)
class Content:
    """Some of the file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ContentEnd:
    """`error`: an errno, if it could not be read to its end."""

    error: int


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    name: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Not copied: `error` is an errno, or 0 for what is neither a file, a directory nor a link."""

    name: bytes
    error: int


@dataclass(frozen=True, slots=True)
class Up:
    """Leave the directory."""


@dataclass(frozen=True, slots=True)
class End:
    """That was all."""


Record = Directory | File | Content | ContentEnd | Link | LeftOut | Up | End


class TreeReader:
    """Takes bytes as they come, gives records, in an order that makes sense. Keeps less than a record."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._depth = 0
        self._in_file = False
        self._left = 0  # bytes of a piece of it that have not come
        self.ended = False
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Record]:
        """Raises PeerError; nothing is to be fed after that."""
        self._data += data
        at = 0
        while not self.ended:
            found = self._content(at) if self._in_file else self._record(at)
            if found is None:
                break
            item, at = found
            self._apply(item)
            yield item
        del self._data[:at]
        if self.ended and self._data:
            raise PeerError("the agent in the guest goes on after the end of a tree")

    def _apply(self, item: Record) -> None:
        if isinstance(item, ContentEnd):
            self._in_file = False
        elif isinstance(item, File):
            self._in_file = True
        elif isinstance(item, Directory):
            self._depth += 1
        elif isinstance(item, Up):
            self._depth -= 1
        self.ended = isinstance(item, End)
        self._begun = True

    def _content(self, at: int) -> tuple[Record, int] | None:
        """What there is of a piece, and not all of it: a file's content is kept nowhere."""
        if self._left:
            left = self._left
        elif len(self._data) < at + 8:  # as much as comes in any case: the end of it, or some of a piece
            return None
        else:
            left, error = struct.unpack_from("<II", self._data, at)
            if left == 0:
                return ContentEnd(errno_of(error)), at + 8
            if left > _PIECE_MAX:
                raise PeerError(f"the agent in the guest sent {left} bytes of a file at once")
            at += 4
        part = min(left, len(self._data) - at)
        if part == 0:
            return None
        self._left = left - part
        return Content(bytes(memoryview(self._data)[at : at + part])), at + part

    def _record(self, at: int) -> tuple[Record, int] | None:
        if len(self._data) < at + 16:
            return None
        kind, _, size, mode, mtime = _HEADER.unpack_from(self._data, at)
        if size > _NAME_MAX:
            raise PeerError(f"the agent in the guest sent a name of {size} bytes")
        at += 16
        if len(self._data) < at + size:
            return None
        name = bytes(self._data[at : at + size])
        at += size
        if kind in b"UE":
            self._check_end(kind)
            return (Up() if kind == b"U"[0] else End()), at
        self._check_name(name)
        if kind == b"L"[0]:
            return self._link(name, at)
        if kind == b"X"[0]:
            return LeftOut(name, errno_of(mode)), at
        if kind == b"F"[0]:
            return File(name, mode & 0o777, mtime), at
        if kind != b"D"[0]:
            raise PeerError(f"the agent in the guest sent a record of type {kind}")
        if self._depth > DEPTH_MAX:
            raise PeerError("the agent in the guest sent a tree that is too deep")
        return Directory(name, mode & 0o777, mtime), at

    def _link(self, name: bytes, at: int) -> tuple[Record, int] | None:
        if len(self._data) < at + 2:
            return None
        (size,) = struct.unpack_from("<H", self._data, at)
        if size > _TARGET_MAX:
            raise PeerError(f"the agent in the guest sent a link's target of {size} bytes")
        if len(self._data) < at + 2 + size:
            return None
        return Link(name, bytes(self._data[at + 2 : at + 2 + size])), at + 2 + size

    def _check_end(self, kind: int) -> None:
        if (kind == b"U"[0]) != (self._depth > 0):
            raise PeerError("the agent in the guest leaves a directory that it is not in, or ends within one")

    def _check_name(self, name: bytes) -> None:
        """Of an entry of a directory; what was asked for itself needs no name, and is one thing."""
        if self._depth == 0:
            if self._begun:
                raise PeerError("the agent in the guest sent more than was asked for")
        elif not is_plain(name):
            raise PeerError(f"the agent in the guest sent {name!r}, which is no name of a file")


def is_plain(name: bytes) -> bool:
    """Whether it can be that of an entry of a directory, which leads nowhere but there."""
    return bool(name) and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def record(kind: bytes, name: bytes = b"", mode: int = 0, mtime: int = 0) -> bytes:
    """One for the agent."""
    return _HEADER.pack(kind[0], 0, len(name), mode & 0o777, max(mtime, 0)) + name


def content(data: bytes) -> bytes:
    """A piece of a file, not empty."""
    return struct.pack("<I", len(data)) + data


def content_end() -> bytes:
    """Of a file."""
    return bytes(8)


UP, END = record(b"U"), record(b"E")


def stays_inside(target: bytes, depth: int) -> bool:
    """Whether a link in a directory `depth` levels below the top of a tree leads to something in the tree, whatever
    other such links are on its way: it goes up only at its beginning, and not above the top."""
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    plain = b".." not in parts[ups:] and b"\0" not in target
    return bool(target) and not target.startswith(b"/") and plain and ups <= depth
