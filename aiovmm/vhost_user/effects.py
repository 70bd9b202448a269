"""What a back end's shell has to do for a front end's message, as inert values, in order."""

from __future__ import annotations

from dataclasses import dataclass

from aiovmm.vhost_user.payloads import InflightArea, Payload, Region
from aiovmm.vhost_user.protocol import FrontendRequest

__all__ = [
    "Acknowledge",
    "Effect",
    "GiveBackChannel",
    "MakeInflight",
    "MapInflight",
    "MapMemory",
    "ReadConfig",
    "Reply",
    "ReportBase",
    "ResetDevice",
    "RingFd",
    "UpdateRings",
    "WriteConfig",
]


@dataclass(frozen=True)
class Reply:
    """Answer with this."""

    payload: Payload


@dataclass(frozen=True)
class Acknowledge:
    """The request asked how it went: answer 0 once the effects before this one are done."""


@dataclass(frozen=True)
class MapMemory:
    """Map the regions; fd i of the message is region i's."""

    regions: tuple[Region, ...]


@dataclass(frozen=True)
class RingFd:
    """The eventfd of a ring, the message's fd or none: `kind` is its request."""

    kind: FrontendRequest
    index: int
    present: bool


@dataclass(frozen=True)
class UpdateRings:
    """Serve exactly the rings that are live now."""


@dataclass(frozen=True)
class ReportBase:
    """The ring has been stopped: answer GET_VRING_BASE with its position."""

    index: int


@dataclass(frozen=True)
class ReadConfig:
    """Answer with `size` bytes of the configuration."""

    offset: int
    size: int


@dataclass(frozen=True)
class WriteConfig:
    """The driver writes its configuration."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class MakeInflight:
    """Make a record of requests in flight and answer with it and its fd."""

    queues: int
    queue_size: int


@dataclass(frozen=True)
class MapInflight:
    """Use the record in the message's fd."""

    area: InflightArea


@dataclass(frozen=True)
class GiveBackChannel:
    """The message's fd is the socket for our own requests."""


@dataclass(frozen=True)
class ResetDevice:
    """The driver has reset the device: no ring is live any more."""


Effect = (
    Reply
    | Acknowledge
    | MapMemory
    | RingFd
    | UpdateRings
    | ReportBase
    | ReadConfig
    | WriteConfig
    | MakeInflight
    | MapInflight
    | GiveBackChannel
    | ResetDevice
)
