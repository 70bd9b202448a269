"""Requests and answers of virtio-rtc (VIRTIO 1.4, 5.23; include/uapi/linux/virtio_rtc.h). Pure: a request's bytes make an
answer's.

There is one clock, number 0, UTC of the host, of which nobody knows whether it smears leap seconds. It has no alarm, and no
cross-timestamps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

__all__ = ["REQUEST_LIMIT", "Request", "Status", "answer"]

REQUEST_LIMIT = 64
"""Bytes of a request that are looked at; the longest has 16."""

_HEAD = struct.Struct("<H6x")
_CLOCK = struct.Struct("<H6x")
_CROSS = struct.Struct("<HB5x")
_CLOCKS = 1
_UTC_MAYBE_SMEARED, _SMEAR_UNSPECIFIED = 4, 0


class Request:
    """Kinds of requests."""

    READ = 0x0001
    READ_CROSS = 0x0002
    CONFIG = 0x1000
    CLOCK_CAPABILITIES = 0x1001
    CROSS_CAPABILITIES = 0x1002


class Status:
    """The first byte of an answer, of which 8 are its head."""

    OK = 0
    NOT_SUPPORTED = 2
    NO_SUCH_CLOCK = 3
    INVALID = 4
    ERROR = 5


def answer(request: bytes, room: int, clock_ns: Callable[[], int]) -> bytes:
    """The answer to `request`, in at most `room` bytes: one that does not fit becomes a head that says INVALID, or as much of
    that as fits (5.23.6.2). `clock_ns` is nanoseconds since the epoch."""
    whole = _answer(request, clock_ns)
    return whole if len(whole) <= room else _head(Status.INVALID)[:room]


def _answer(request: bytes, clock_ns: Callable[[], int]) -> bytes:
    if len(request) < _HEAD.size:
        return _head(Status.INVALID)
    (kind,) = _HEAD.unpack_from(request)
    body = request[_HEAD.size :]
    if kind == Request.CONFIG:
        return _head(Status.OK) + _CLOCK.pack(_CLOCKS)
    known = {Request.READ: _CLOCK, Request.CLOCK_CAPABILITIES: _CLOCK, Request.CROSS_CAPABILITIES: _CROSS}
    if kind not in known:
        return _head(Status.NOT_SUPPORTED)
    if len(body) < known[kind].size:
        return _head(Status.INVALID)
    if known[kind].unpack_from(body)[0] >= _CLOCKS:
        return _head(Status.NO_SUCH_CLOCK) + bytes(8)
    return _read(clock_ns()) if kind == Request.READ else _head(Status.OK) + _CAPABILITIES[kind]


_CAPABILITIES = {
    Request.CLOCK_CAPABILITIES: bytes([_UTC_MAYBE_SMEARED, _SMEAR_UNSPECIFIED, 0]).ljust(8, b"\0"),
    Request.CROSS_CAPABILITIES: bytes(8),
}


def _read(now: int) -> bytes:
    """The host may have been set to a time that the guest has no number for."""
    if not 0 <= now < 1 << 64:
        return _head(Status.ERROR) + bytes(8)
    return _head(Status.OK) + struct.pack("<Q", now)


def _head(status: int) -> bytes:
    return bytes([status]).ljust(8, b"\0")
