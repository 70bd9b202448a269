"""The packets of virtio-vsock on the rings (VIRTIO 1.2 §5.10.6): a header of 44 bytes, for RW followed by the payload."""

from __future__ import annotations

import enum
import functools
import struct
from typing import NamedTuple

__all__ = [
    "CREDIT_AT",
    "HEADER_SIZE",
    "HOST_CID",
    "LENGTH_AT",
    "MASK32",
    "OP_AT",
    "SHUTDOWN_BOTH",
    "SHUTDOWN_RECEIVE",
    "SHUTDOWN_SEND",
    "STREAM",
    "TRANSPORT_RESET",
    "Header",
    "Op",
    "pack_header",
    "parse_headers",
]

HOST_CID = 2  # VMADDR_CID_HOST, §5.10.4
STREAM = 1  # VIRTIO_VSOCK_TYPE_STREAM, §5.10.6
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # flags of SHUTDOWN, §5.10.6.5: its sender receives, or sends, no more
SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND
TRANSPORT_RESET = struct.pack("<I", 0)  # struct virtio_vsock_event, §5.10.6.7
MASK32 = 0xFFFFFFFF
"""As a length: a packet of the guest that claims more payload than its chain has. No credit is so large."""

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = _HEADER.size
pack_header = _HEADER.pack
"""The 44 bytes of a header from its fields, in the order of `Header`'s."""
LENGTH_AT, OP_AT, CREDIT_AT = 24, 30, 40  # offsets of `len`, `op` and `fwd_cnt`


class Op(enum.IntEnum):
    """`op`, §5.10.6."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """`struct virtio_vsock_hdr`. `length` counts the payload's bytes; `buf_alloc` and `fwd_cnt` are the sender's credit."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int = 0
    type: int = STREAM
    op: int = 0
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    def pack(self) -> bytes:
        """Its 44 bytes."""
        return _HEADER.pack(*self)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Header:
        """From the first 44 bytes of `data`. Any content parses; what it means is checked by who acts on it."""
        return cls._make(_HEADER.unpack_from(data))


def parse_headers(data: bytes | bytearray | memoryview) -> list[Header]:
    """Headers that stand one after another, without payloads."""
    return list(map(_NEW, _HEADER.iter_unpack(data)))


_NEW = functools.partial(tuple.__new__, Header)  # as Header._make, without a call for each
