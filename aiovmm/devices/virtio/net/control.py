"""Commands of the control queue (VIRTIO 1.2 §5.1.6.5), parsed into inert requests."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ACK_ERR", "ACK_OK", "COMMAND_LIMIT", "AnnounceAck", "Command", "SetOffloads", "SetPairs", "parse_command"]

ACK_OK = b"\0"
ACK_ERR = b"\1"
COMMAND_LIMIT = 4096  # bytes of a command at most; those we know have 10

_MQ = (4, 0)  # VIRTIO_NET_CTRL_MQ, _VQ_PAIRS_SET
_OFFLOADS = (5, 0)  # VIRTIO_NET_CTRL_GUEST_OFFLOADS, _SET
_ANNOUNCE = (3, 0)  # VIRTIO_NET_CTRL_ANNOUNCE, _ACK


@dataclass(frozen=True)
class SetPairs:
    """Use the first `pairs` queue pairs."""

    pairs: int


@dataclass(frozen=True)
class SetOffloads:
    """Take packets with these offloads, as feature bits."""

    features: int


@dataclass(frozen=True)
class AnnounceAck:
    """The driver has announced itself to the network."""


Command = SetPairs | SetOffloads | AnnounceAck


def parse_command(data: bytes) -> Command | None:
    """The command in the readable part of a chain; None for what is unknown or has the wrong size, to be answered by ACK_ERR."""
    kind, body = tuple(data[:2]), data[2:]
    if kind == _MQ and len(body) == 2:
        return SetPairs(struct.unpack("<H", body)[0])
    if kind == _OFFLOADS and len(body) == 8:
        return SetOffloads(struct.unpack("<Q", body)[0])
    if kind == _ANNOUNCE and not body:
        return AnnounceAck()
    return None
