"""Frames: two sizes, a message as JSON, and bytes that belong to it. Pure. No frame can make more of itself than plain data.

u32 size of the message | u32 size of the data | message, a JSON object with `op` | data
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from aiovmm.errors import PeerError, UsageError
from aiovmm.runtime.plain import State

__all__ = ["FROM_POOL", "FROM_WORKER", "MOST_DATA", "Bound", "Decoder", "encode", "fits"]


class Bound(NamedTuple):
    """What a message may be at most: bytes of text, and values in it, counted by the marks before them."""

    size: int
    parts: int


FROM_POOL = Bound(4 << 20, 1 << 20)
"""A configuration is the largest of them."""
FROM_WORKER = Bound(256 << 10, 16 << 10)
"""Which may be a guest's by then: it is understood on the pool's loop, in 2 ms at most (4 MiB of lists would be 400). A
configuration that is told back may have some 450 devices: told_config.check_told."""
MOST_DATA = 64 << 10
"""Bytes: a piece of what a console has said."""
_HEAD = struct.Struct("<II")


def encode(message: State, data: bytes = b"", bound: Bound = FROM_POOL) -> bytes:
    """One frame. Raises UsageError if it is larger than the other end takes."""
    text = _text(message)
    if not _is_within(text, bound) or len(data) > MOST_DATA:
        raise UsageError(
            f"{len(text)} bytes of {message.get('op')!r} with {len(data)} of data are too much between a pool and a worker"
        )
    return b"".join((_HEAD.pack(len(text), len(data)), text, data))


def fits(message: State, bound: Bound) -> bool:
    """Whether the other end would take it."""
    return _is_within(_text(message), bound)


def _text(message: State) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _is_within(text: bytes, bound: Bound) -> bool:
    return len(text) <= bound.size and _parts(text) <= bound.parts


class Decoder:
    """What has come, in pieces of any size, as messages with their data."""

    def __init__(self, bound: Bound = FROM_POOL) -> None:
        self._buffer = bytearray()
        self._bound = bound

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, piece: bytes) -> Iterator[tuple[State, bytes]]:
        """Whatever is complete. Raises what `take` does."""
        self.add(piece)
        while (found := self.take()) is not None:
            yield found

    def add(self, piece: bytes) -> None:
        """It has come."""
        self._buffer += piece

    def take(self) -> tuple[State, bytes] | None:
        """The next that is complete. Raises PeerError for what is no frame: nothing that follows can be made out then."""
        if len(self._buffer) < _HEAD.size:
            return None
        size, data_size = _HEAD.unpack_from(self._buffer)
        if size > self._bound.size or data_size > MOST_DATA:
            raise PeerError(
                f"a frame of {size} and {data_size} bytes: at most {self._bound.size} and {MOST_DATA} may be"
            )
        end = _HEAD.size + size
        if len(self._buffer) < end + data_size:
            return None
        message, data = self._message(self._buffer[_HEAD.size : end]), bytes(self._buffer[end : end + data_size])
        del self._buffer[: end + data_size]
        return message, data

    def _message(self, text: bytearray) -> State:
        if (count := _parts(text)) > self._bound.parts:
            raise PeerError(f"a frame with {count} values: at most {self._bound.parts} may be")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise PeerError(f"a frame without a JSON text: {exc}") from None
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            raise PeerError("a frame whose message is no object with an `op`")
        return message


def _parts(text: bytes | bytearray) -> int:
    """How many values there are at most, without a look at what they are."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
