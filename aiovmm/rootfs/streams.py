"""Streams of bytes that a layer goes through: hashed as it is stored, expanded, hashed again. In parts, whatever size it expands
to; the memory that a format may want is bounded where images are built (build.py)."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import zstandard

__all__ = ["EXPANDING_ERRORS", "Hashed", "Readable", "expanded", "is_packed"]

_PART = 1 << 18
_WINDOW = 128 << 20  # bytes of the largest that `zstd --ultra --long=27` makes, which every reader takes

EXPANDING_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, gzip.BadGzipFile)
"""What the readers below raise for what is damaged; bz2's is an OSError without a number."""


class Readable(Protocol):
    """What gives up to so many bytes, and none at its end."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""


class Hashed(io.RawIOBase):
    """`source`, its first `most` bytes, and the digest of what was read of them."""

    def __init__(self, source: Readable, algorithm: str = "sha256", most: int | None = None) -> None:
        self._source = source
        self._hash = hashlib.new(algorithm)
        self._most = most
        self.taken = 0

    def readable(self) -> bool:
        """True: see io.RawIOBase."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        if size < 0:
            size = _PART
        if self._most is not None:
            size = min(size, self._most - self.taken)
        data = self._source.read(size) if size > 0 else b""
        self._hash.update(data)
        self.taken += len(data)
        return data

    def finish(self) -> str:
        """Read what is left; the digest in hexadecimal digits."""
        while self.read(_PART):
            pass
        return self._hash.hexdigest()


class _Ahead(io.RawIOBase):
    """`source`, whose `first` bytes were read already."""

    def __init__(self, first: bytes, source: Readable) -> None:
        self._first = first
        self._source = source

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        size = _PART if size < 0 else size
        data, self._first = self._first[:size], self._first[size:]
        return data or self._source.read(size)


def _zstd(source: Any) -> Readable:
    machine = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    reader: Readable = machine.stream_reader(source, read_across_frames=True)
    return reader


_FORMATS: tuple[tuple[bytes, Callable[[Any], Readable]], ...] = (
    (b"\x1f\x8b", lambda source: gzip.GzipFile(fileobj=source, mode="rb")),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"BZh", bz2.BZ2File),
)


def is_packed(first: bytes) -> bool:
    """Whether these, six at least, are the first bytes of what `expanded` expands."""
    return any(first.startswith(magic) for magic, _ in _FORMATS)


class _Metered:
    """`source`, of which each byte is told to `taken`."""

    def __init__(self, source: Readable, taken: Callable[[int], None]) -> None:
        self._source = source
        self._taken = taken

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._taken(len(data))
        return data


def expanded(source: Readable, taken: Callable[[int], None] | None = None) -> Readable:
    """What `source` gives, expanded if its first bytes are those of gzip, zstd, xz or bzip2. `taken` is told how many bytes it
    was, and raises what ends that."""
    first = b""
    while len(first) < 6 and (more := source.read(6 - len(first))):
        first += more
    whole = _Ahead(first, source)
    found = next((reader(whole) for magic, reader in _FORMATS if first.startswith(magic)), whole)
    return found if taken is None else _Metered(found, taken)
