"""Frames between the host and the agent in a guest, version 1: the same numbers as in guest/wire.h. docs/agent.md
describes them.

A frame is 12 bytes and a payload: u32 size of the payload, u32 channel, u8 kind, u8 stream, u16 zero; little endian.
The guest is hostile: a frame from it is at most DATA_MAX, and what its payload holds is checked where it is taken apart.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

from aiovmm.errors import PeerError

__all__ = [
    "AGENT_PORT",
    "CHANNELS_MAX",
    "DATA_MAX",
    "FRAME_MAX",
    "MAGIC",
    "VERSION",
    "WINDOW_MAX",
    "Frame",
    "FrameBuffer",
    "Greeting",
    "Kind",
    "Stage",
    "Stream",
    "Whom",
    "errno_of",
    "frame",
    "greeting",
    "number_of",
    "numbers_of",
    "read_greeting",
]

AGENT_PORT = 2576
"""The vsock port that the agent listens at."""
MAGIC = b"aiovmmAG"
VERSION = 1
FRAME_MAX = 256 << 10  # bytes of a payload to the agent
DATA_MAX = 64 << 10  # from it
WINDOW_MAX = 1 << 20  # bytes of a stream of input that may be under way, whatever it says
CHANNELS_MAX = 1024
_ERRNO_MAX = 4095  # of Linux: MAX_ERRNO
_BUFFER = 512 << 10
_HEADER = struct.Struct("<IIBBH")


class Kind(enum.IntEnum):
    """See guest/wire.h."""

    HELLO = 1
    START = 2
    CONNECT = 3
    LISTEN = 4
    ACCEPTED = 5
    STARTED = 6
    FAILED = 7
    DATA = 8
    EOF = 9
    CREDIT = 10
    EXIT = 11
    SIGNAL = 12
    RESIZE = 13
    CLOSE = 14
    CLOSED = 15
    CLOCK = 16
    ENTROPY = 17
    POWER = 18
    DONE = 19
    PING = 20


class Stream(enum.IntEnum):
    """Of a process, or of a connection, which has the first two."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class Whom(enum.IntEnum):
    """Who gets a signal."""

    PROCESS = 0
    GROUP = 1
    SESSION = 2


class Stage(enum.IntEnum):
    """Where a start failed."""

    RESOURCES = 1
    USER = 2
    DIRECTORY = 3
    LIMITS = 4
    TERMINAL = 5
    PROGRAM = 6
    NETWORK = 7


class Frame(NamedTuple):
    """One frame of the agent; `kind` and `stream` are whatever it said."""

    channel: int
    kind: int
    stream: int
    payload: bytes


def frame(channel: int, kind: Kind, payload: bytes | memoryview = b"", stream: int = 0) -> bytes:
    """One for the agent."""
    return b"".join((_HEADER.pack(len(payload), channel, kind, stream, 0), payload))


class FrameBuffer:
    """What has come and nobody has taken: `room` to read into, `add` for what was read, and `take` for the whole frames of it."""

    def __init__(self) -> None:
        self._data = bytearray(_BUFFER)
        self._view = memoryview(self._data)
        self._start = self._end = 0

    def room(self) -> memoryview:
        """Not empty if all whole frames have been taken: one more fits."""
        start, end = self._start, self._end
        if start:
            self._view[: end - start] = self._view[start:end]
            self._start, self._end = 0, end - start
        return self._view[self._end :]

    def add(self, size: int) -> None:
        """So many bytes have come."""
        self._end += size

    def take(self, most: int) -> list[Frame]:
        """The next whole frames, all that there are if it is fewer than `most`. Raises PeerError."""
        frames: list[Frame] = []
        view, at, end = self._view, self._start, self._end
        while end - at >= 12 and len(frames) < most:
            length, channel, kind, stream, zero = _HEADER.unpack_from(view, at)
            if length > DATA_MAX or zero:
                raise PeerError(f"the agent in the guest sent a frame of {length} bytes and kind {kind}, which is none")
            if end - at - 12 < length:
                break
            at += 12 + length
            frames.append(Frame(channel, kind, stream, bytes(view[at - length : at])))
        self._start = at
        return frames

    def filled(self, size: int) -> list[Frame]:
        """All frames that `size` more bytes have completed. Raises PeerError."""
        self.add(size)
        return self.take(self._end)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the agent says first. `window`: bytes that each process may be sent before it hears of credit. `time`: the
    guest's clock, in seconds since the epoch."""

    is_init: bool
    channels: int
    window: int
    time: float


_GREETING = struct.Struct("<8sHHIIIQII")


def read_greeting(frame: Frame) -> Greeting:
    """Raises PeerError for what is no greeting, or one of another version."""
    if frame.kind != Kind.HELLO or len(frame.payload) < _GREETING.size or frame.payload[:8] != MAGIC:
        raise PeerError("whoever answers at the agent's port in the guest is not the agent")
    _, version, flags, channels, window, _, seconds, nanoseconds, _ = _GREETING.unpack_from(frame.payload)
    if version != VERSION:
        remedy = "put the agent of this aiovmm into the guest (`aiovmm image initramfs --agent`)"
        raise PeerError(f"the agent in the guest speaks version {version} of the protocol, not {VERSION}: {remedy}")
    return Greeting(bool(flags & 1), min(channels, CHANNELS_MAX), min(window, WINDOW_MAX), seconds + nanoseconds / 1e9)


def greeting() -> bytes:
    """The answer."""
    return frame(0, Kind.HELLO, struct.pack("<8sH", MAGIC, VERSION))


def number_of(frame: Frame, *, signed: bool = False) -> int:
    """The 32 bits of a payload that is such a number. Raises PeerError."""
    if len(frame.payload) != 4:
        raise PeerError(f"the agent in the guest sent a frame of kind {frame.kind} with {len(frame.payload)} bytes")
    return int.from_bytes(frame.payload, "little", signed=signed)


def numbers_of(frame: Frame) -> tuple[int, int]:
    """Of one with two. Raises PeerError."""
    if len(frame.payload) != 8:
        raise PeerError(f"the agent in the guest sent a frame of kind {frame.kind} with {len(frame.payload)} bytes")
    return struct.unpack("<ii", frame.payload)


def errno_of(number: int) -> int:
    """A number that is to be an errno, or 0: one that is none has no words. Raises PeerError."""
    if not 0 <= number <= _ERRNO_MAX:
        raise PeerError(f"the agent in the guest sent {number} where an errno should be")
    return number
