"""Whole messages: which payload and how many fds each request and each answer has, in two tables, checked both ways."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiovmm.errors import PeerError
from aiovmm.vhost_user.payloads import (
    ConfigSpace,
    Empty,
    InflightArea,
    MemoryTable,
    Payload,
    VringAddr,
    VringState,
    Word,
)
from aiovmm.vhost_user.protocol import (
    MAX_PAYLOAD,
    MAX_REGIONS,
    NO_FD,
    PROTOCOL_VERSION,
    BackendRequest,
    Flag,
    FrontendRequest,
)

__all__ = ["HEADER_SIZE", "Header", "Layout", "Message", "Request", "answer_layout", "decode", "encode", "layout_of"]

Request = FrontendRequest | BackendRequest
_HEADER = struct.Struct("<III")
HEADER_SIZE = _HEADER.size
_NO_FLAGS = Flag(0)


@dataclass(frozen=True)
class Header:
    """The first 12 bytes; `size` is that of the payload."""

    request: int
    flags: Flag
    size: int

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Raises PeerError for another protocol version, and for a size that no message has."""
        request, flags, size = _HEADER.unpack(data)
        if flags & Flag.VERSION != PROTOCOL_VERSION:
            raise PeerError(f"protocol version {flags & Flag.VERSION}, expected {PROTOCOL_VERSION}")
        if size > MAX_PAYLOAD:
            raise PeerError(f"message {request} announces {size} bytes, at most {MAX_PAYLOAD} are sensible")
        return cls(request, Flag(flags & 0xF), size)


@dataclass(frozen=True)
class Message:
    """One message. `fds` go with it; whoever holds the message owns them."""

    request: Request
    payload: Payload = field(default_factory=Empty)
    fds: tuple[int, ...] = ()
    flags: Flag = _NO_FLAGS

    @property
    def is_reply(self) -> bool:
        """An answer, not a request."""
        return bool(self.flags & Flag.REPLY)

    @property
    def needs_reply(self) -> bool:
        """REPLY_ACK: the sender wants to hear how it went."""
        return bool(self.flags & Flag.NEED_REPLY)


@dataclass(frozen=True)
class Layout:
    """A payload's type and how many fds may come with it."""

    payload: type[Payload] = Empty
    fds: tuple[int, ...] = (0,)


_RING_FD = Layout(Word, (0, 1))
_F = FrontendRequest
_REQUESTS: dict[FrontendRequest, Layout] = {
    _F.GET_FEATURES: Layout(),
    _F.SET_FEATURES: Layout(Word),
    _F.SET_OWNER: Layout(),
    _F.RESET_OWNER: Layout(),
    _F.SET_MEM_TABLE: Layout(MemoryTable, tuple(range(1, MAX_REGIONS + 1))),
    _F.SET_VRING_NUM: Layout(VringState),
    _F.SET_VRING_ADDR: Layout(VringAddr),
    _F.SET_VRING_BASE: Layout(VringState),
    _F.GET_VRING_BASE: Layout(VringState),
    _F.SET_VRING_KICK: _RING_FD,
    _F.SET_VRING_CALL: _RING_FD,
    _F.SET_VRING_ERR: _RING_FD,
    _F.GET_PROTOCOL_FEATURES: Layout(),
    _F.SET_PROTOCOL_FEATURES: Layout(Word),
    _F.GET_QUEUE_NUM: Layout(),
    _F.SET_VRING_ENABLE: Layout(VringState),
    _F.NET_SET_MTU: Layout(Word),
    _F.SET_BACKEND_REQ_FD: Layout(Empty, (1,)),
    _F.GET_CONFIG: Layout(ConfigSpace),
    _F.SET_CONFIG: Layout(ConfigSpace),
    _F.GET_INFLIGHT_FD: Layout(InflightArea),
    _F.SET_INFLIGHT_FD: Layout(InflightArea, (1,)),
    _F.RESET_DEVICE: Layout(),
    _F.SET_STATUS: Layout(Word),
    _F.GET_STATUS: Layout(),
}
_BACKEND_REQUESTS = {BackendRequest.CONFIG_CHANGE: Layout()}  # a table of its own: the numbers are used twice
_ANSWERS: dict[FrontendRequest, Layout] = {
    _F.GET_FEATURES: Layout(Word),
    _F.GET_PROTOCOL_FEATURES: Layout(Word),
    _F.GET_QUEUE_NUM: Layout(Word),
    _F.GET_VRING_BASE: Layout(VringState),
    _F.GET_CONFIG: Layout(ConfigSpace),
    _F.GET_INFLIGHT_FD: Layout(InflightArea, (0, 1)),
    _F.GET_STATUS: Layout(Word),
}
"""Requests that are always answered. All others are answered by a Word if NEED_REPLY asks for it: 0 is success."""

_ACK = Layout(Word)


def layout_of(request: Request) -> Layout:
    """What the request carries."""
    return _REQUESTS[request] if isinstance(request, FrontendRequest) else _BACKEND_REQUESTS[request]


def answer_layout(request: Request) -> Layout | None:
    """What its answer carries; None if there is one only on demand."""
    return _ANSWERS.get(request) if isinstance(request, FrontendRequest) else None


def encode(message: Message) -> bytes:
    """Header and payload. The fds go beside."""
    body = message.payload.pack()
    return _HEADER.pack(message.request, PROTOCOL_VERSION | message.flags, len(body)) + body


def decode(
    header: Header, body: bytes, fds: Sequence[int], kind: type[FrontendRequest] | type[BackendRequest]
) -> Message:
    """The message of a channel for requests of `kind`. Raises PeerError for all that is not exactly one; the fds stay the
    caller's then."""
    try:
        request: Request = kind(header.request)
    except ValueError:
        raise PeerError(f"unknown request {header.request}") from None
    layout = layout_of(request) if not header.flags & Flag.REPLY else answer_layout(request) or _ACK
    if len(fds) not in layout.fds:
        raise PeerError(f"{request.name} comes with {len(fds)} file descriptors")
    try:
        payload = layout.payload.unpack(body)
    except PeerError as exc:
        raise PeerError(f"{request.name}: {exc}") from None
    message = Message(request, payload, tuple(fds), header.flags & ~Flag.VERSION)
    if not message.is_reply:
        _check_fds(message)
    return message


def _check_fds(message: Message) -> None:
    """The number of fds is the one that the payload announces."""
    payload, count = message.payload, len(message.fds)
    if isinstance(payload, MemoryTable) and count != len(payload.regions):
        raise PeerError(f"a memory table of {len(payload.regions)} regions comes with {count} file descriptors")
    if layout_of(message.request) is _RING_FD and isinstance(payload, Word):
        if payload.value & ~(NO_FD | 0xFF):
            raise PeerError(f"{message.request.name} has unknown bits in {payload.value:#x}")
        if bool(payload.value & NO_FD) == bool(count):
            raise PeerError(f"{message.request.name} says otherwise about its eventfd than what it comes with")
