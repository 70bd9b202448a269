"""Frames: two sizes, a message as JSON, and bytes that belong to it. Pure. No frame can make more of itself than plain data.

u32 size of the message | u32 size of the data | message, a JSON object with `op` | data
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from aiovmm.errors import PeerError, UsageError
from aiovmm.runtime.plain import State

__all__ = ["MOST_DATA", "MOST_MESSAGE", "Decoder", "encode"]

MOST_MESSAGE = 4 << 20
"""Bytes: a configuration is the largest of them."""
MOST_DATA = 64 << 10
"""Bytes: a piece of what a console has said."""
_HEAD = struct.Struct("<II")


def encode(message: State, data: bytes = b"") -> bytes:
    """One frame. Raises UsageError if it is larger than the other end takes."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MOST_MESSAGE or len(data) > MOST_DATA:
        raise UsageError(
            f"{len(text)} bytes of {message.get('op')!r} with {len(data)} of data are too much for a worker"
        )
    return b"".join((_HEAD.pack(len(text), len(data)), text, data))


class Decoder:
    """What has come, in pieces of any size, as messages with their data."""

    def __init__(self) -> None:
        self._buffer = bytearray()

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
        if size > MOST_MESSAGE or data_size > MOST_DATA:
            raise PeerError(f"a frame of {size} and {data_size} bytes: at most {MOST_MESSAGE} and {MOST_DATA} may be")
        end = _HEAD.size + size
        if len(self._buffer) < end + data_size:
            return None
        message, data = _message(self._buffer[_HEAD.size : end]), bytes(self._buffer[end : end + data_size])
        del self._buffer[: end + data_size]
        return message, data


def _message(text: bytearray) -> State:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise PeerError(f"a frame without a JSON text: {exc}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise PeerError("a frame whose message is no object with an `op`")
    return message
