"""vhost-user messages, of either side, in any pieces: a message or a PeerError; and what a series of them makes of a server."""

from __future__ import annotations

import struct

from aiovmm.errors import PeerError
from aiovmm.vhost_user.framing import Framer
from aiovmm.vhost_user.messages import decode, encode
from aiovmm.vhost_user.protocol import BackendRequest, FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.server_state import ServerState
from tests.fuzz.source import Source, refused

_OFFERED, _ALL = 1 << 32 | 1 << 30 | 1 << 28, sum(ProtocolFeature)
_CHANNELS: tuple[type[FrontendRequest] | type[BackendRequest], ...] = (FrontendRequest, BackendRequest)
_HEADER = struct.Struct("<III")


def _seed(*requests: tuple[int, bytes]) -> bytes:
    return b"\0" + b"".join(b"\xff\0" + _HEADER.pack(number, 1, len(body)) + body for number, body in requests)


SEEDS = [
    _seed((1, b""), (2, struct.pack("<Q", 1 << 30 | 1 << 32)), (15, b""), (16, struct.pack("<Q", 0xFFF)), (3, b"")),
    _seed((8, struct.pack("<II", 0, 8)), (10, struct.pack("<II", 0, 0)), (18, struct.pack("<II", 0, 1))),
    _seed((9, struct.pack("<IIQQQQ", 0, 0, 4096, 8192, 12288, 0)), (11, struct.pack("<II", 0, 0))),
    _seed((5, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 20, 0, 0))),
    b"\1" + _seed((2, b""))[1:],
]


def run(data: bytes) -> None:
    source = Source(data)
    kind = source.one(_CHANNELS)
    framer, state = Framer(), ServerState(_OFFERED, ProtocolFeature(_ALL), (256, 256))
    with refused(PeerError):
        while source:
            piece, fds = source.take(min(framer.wanted, 1 + source.below(256))), source.below(8)
            frame = framer.feed(piece, range(100, 100 + fds if fds < 3 else 100))
            if frame is None:
                continue
            message = decode(frame.header, frame.body, frame.fds, kind)
            assert decode(frame.header, encode(message)[12:], frame.fds, kind) == message
            if kind is FrontendRequest and not message.is_reply:
                state.receive(message)
