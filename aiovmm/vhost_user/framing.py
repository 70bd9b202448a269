"""Bytes and fds of a stream socket in, frames out: a pure machine that never asks for more than the message it is in.

A reader that takes at most `wanted` bytes a time never reads across two messages, so the fds that it meets are those of
the message being read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiovmm.errors import PeerError
from aiovmm.vhost_user.messages import HEADER_SIZE, Header
from aiovmm.vhost_user.protocol import MAX_FDS

__all__ = ["Frame", "Framer"]


@dataclass(frozen=True)
class Frame:
    """One whole message, its payload not looked at yet."""

    header: Header
    body: bytes
    fds: tuple[int, ...]


class Framer:
    """See the module. `fds` holds those of the unfinished message: whoever drops the framer closes them."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._buffer = bytearray()
        self._header: Header | None = None

    @property
    def wanted(self) -> int:
        """Bytes that are missing to the end of the header, or then of the message."""
        total = HEADER_SIZE + (self._header.size if self._header is not None else 0)
        return total - len(self._buffer)

    @property
    def idle(self) -> bool:
        """Between two messages."""
        return not self._buffer

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Frame | None:
        """Take at most `wanted` bytes; the frame that they complete. Raises PeerError, holding the fds."""
        self.fds.extend(fds)
        if len(self.fds) > MAX_FDS:
            raise PeerError(f"{len(self.fds)} file descriptors with one message, at most {MAX_FDS} are sensible")
        if len(data) > self.wanted:
            raise PeerError("more bytes than the message has")
        self._buffer += data
        if self.wanted:
            return None
        if self._header is None:
            self._header = Header.unpack(bytes(self._buffer))
            if self.wanted:
                return None
        frame = Frame(self._header, bytes(self._buffer[HEADER_SIZE:]), tuple(self.fds))
        self._buffer.clear()
        self.fds.clear()
        self._header = None
        return frame
