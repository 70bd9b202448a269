"""The framing of the command channel: self-synchronising frames over a byte stream.

The stream is a virtio-serial port. Either side may vanish in the middle of a frame and another may take its place, so a
receiver must find the next frame whatever came before. As in HDLC (RFC 1662, section 4) a flag byte stands before and
after each frame, never occurs inside one (it is escaped), and a checksum rejects what was cut:

    FLAG escape(kind:u8 body crc32:u32le) FLAG

This file runs on both sides, so it uses the standard library alone.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

FLAG = b"\x7e"
_ESCAPE = b"\x7d"
_ESCAPED_FLAG = b"\x7d\x5e"
_ESCAPED_ESCAPE = b"\x7d\x5d"

MAX_BODY = 256 * 1024
_MAX_ON_WIRE = 2 * (1 + MAX_BODY + 4)


class Kind(enum.IntEnum):
    """What a frame says. JSON bodies are described in messages.py."""

    HELLO = 1  # both ways, JSON: opens a session; whatever ran before is killed
    EXEC = 2  # to the host, JSON Request: run a command
    STDIN = 3  # to the host: bytes for the command; an empty body closes its standard input
    RESIZE = 4  # to the host, JSON [rows, columns]
    SIGNAL = 5  # to the host, JSON number: signal the command's process group
    STDOUT = 6  # from the host: bytes the command wrote
    STDERR = 7
    EXIT = 8  # from the host, JSON Result: the command ended
    REFUSED = 9  # from the host, text: the command could not be started
    ALIVE = 10  # from the host, empty: nothing to say, but alive


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    body: bytes = b""


def encode(frame: Frame) -> bytes:
    """The bytes of one frame. ValueError if the body has more than MAX_BODY bytes."""
    if len(frame.body) > MAX_BODY:
        raise ValueError(f"a frame holds {MAX_BODY} bytes at most, not {len(frame.body)}")
    content = bytes((frame.kind,)) + frame.body
    content += struct.pack("<I", zlib.crc32(content))
    escaped = content.replace(_ESCAPE, _ESCAPED_ESCAPE).replace(FLAG, _ESCAPED_FLAG)
    return FLAG + escaped + FLAG


def split(kind: Kind, data: bytes | memoryview) -> list[Frame]:
    """Frames of `kind` that carry `data`; none for no data."""
    return [Frame(kind, bytes(data[at : at + MAX_BODY])) for at in range(0, len(data), MAX_BODY)]


class Decoder:
    """Turns the bytes that arrive, in pieces of any size, into frames; damaged ones are counted and dropped."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        frames = []
        *ended, rest = data.split(FLAG)
        for piece in ended:
            frames += self._finish(piece)
        self._keep(rest)
        return frames

    def _finish(self, piece: bytes) -> list[Frame]:
        self._keep(piece)
        content = bytes(self._pending)
        self._pending.clear()
        if not content:  # between two flags that belong to different frames
            return []
        frame = _parse(content)
        if frame is None:
            self.damaged += 1
            return []
        return [frame]

    def _keep(self, piece: bytes) -> None:
        if len(self._pending) + len(piece) > _MAX_ON_WIRE:
            # Longer than any frame: keep one byte, so that it is rejected when its flag comes.
            self._pending[:] = _ESCAPE
        else:
            self._pending += piece


def _parse(escaped: bytes) -> Frame | None:
    if escaped.count(_ESCAPE) != escaped.count(_ESCAPED_FLAG) + escaped.count(_ESCAPED_ESCAPE):
        return None  # cut within an escape
    content = escaped.replace(_ESCAPED_FLAG, FLAG).replace(_ESCAPED_ESCAPE, _ESCAPE)
    if len(content) < 5 or struct.pack("<I", zlib.crc32(content[:-4])) != content[-4:]:
        return None
    try:
        return Frame(Kind(content[0]), content[1:-4])
    except ValueError:
        return None
