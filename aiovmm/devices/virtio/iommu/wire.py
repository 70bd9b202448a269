"""Requests, answers, events and configuration on the wire (VIRTIO 1.2 §5.13). Pure."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

__all__ = [
    "ATTACH_BYPASS",
    "BYPASS_CONFIG",
    "BYPASS_OFFSET",
    "FAULT_SIZE",
    "INPUT_RANGE",
    "MAP_READ",
    "MAP_UNMAP",
    "MAP_WRITE",
    "PROBE",
    "REQUEST_SIZE",
    "TAIL_SIZE",
    "Attach",
    "Detach",
    "FaultReason",
    "Malformed",
    "Map",
    "Probe",
    "Request",
    "Status",
    "Unmap",
    "config_space",
    "fault_event",
    "msi_region",
    "parse",
    "tail",
]

INPUT_RANGE, MAP_UNMAP, PROBE, BYPASS_CONFIG = 1 << 0, 1 << 2, 1 << 4, 1 << 6  # feature bits, §5.13.3

TAIL_SIZE = 4
REQUEST_SIZE = 72  # of the longest request's device-readable part
FAULT_SIZE = 24
BYPASS_OFFSET = 36  # of `bypass` in the configuration, the only field that drivers write
ATTACH_BYPASS = 1
MAP_READ, MAP_WRITE = 1, 2
_FAULT_ADDRESS = 1 << 8
_PROBE_RESV_MEM, _RESV_MSI = 1, 1


class Status(enum.IntEnum):
    """The last word on a request (§5.13.6.1)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    DEVERR = 3
    INVAL = 4
    RANGE = 5
    NOENT = 6
    FAULT = 7
    NOMEM = 8


class FaultReason(enum.IntEnum):
    """Why an access was not translated (§5.13.6.8)."""

    UNKNOWN = 0
    DOMAIN = 1
    MAPPING = 2


class Malformed(ValueError):
    """A request that is shorter than its type says."""


@dataclass(frozen=True)
class Attach:
    """Put `endpoint` into `domain`, which begins to exist with its first endpoint."""

    domain: int
    endpoint: int
    flags: int
    reserved: bytes


@dataclass(frozen=True)
class Detach:
    """Take `endpoint` out of `domain`, which ends to exist with its last endpoint."""

    domain: int
    endpoint: int
    reserved: bytes


@dataclass(frozen=True)
class Map:
    """Let [start, end] of a domain be [physical, ...]. Ends are included, here and everywhere in the protocol."""

    domain: int
    start: int
    end: int
    physical: int
    flags: int


@dataclass(frozen=True)
class Unmap:
    """Take away the mappings in [start, end]."""

    domain: int
    start: int
    end: int
    reserved: bytes


@dataclass(frozen=True)
class Probe:
    """Ask for the properties of an endpoint."""

    endpoint: int


Request = Attach | Detach | Map | Unmap | Probe

_LAYOUTS: dict[int, tuple[struct.Struct, type[Request]]] = {
    1: (struct.Struct("<4xIII4s"), Attach),
    2: (struct.Struct("<4xII8s"), Detach),
    3: (struct.Struct("<4xIQQQI"), Map),
    4: (struct.Struct("<4xIQQ4s"), Unmap),
    5: (struct.Struct("<4xI64x"), Probe),
}


def parse(data: bytes) -> Request | None:
    """The device-readable part of a request; None for a type that is not known. Raises Malformed."""
    layout = _LAYOUTS.get(data[0]) if data else None
    if layout is None:
        if len(data) < 4:
            raise Malformed("a request begins with 4 bytes")
        return None
    fields, kind = layout
    if len(data) < fields.size:
        raise Malformed(f"{len(data)} bytes are no {kind.__name__}, which has {fields.size}")
    return kind(*fields.unpack_from(data))


def tail(status: Status) -> bytes:
    """`struct virtio_iommu_req_tail`."""
    return struct.pack("<B3x", status)


def msi_region(start: int, end: int) -> bytes:
    """The property that says that writes to [start, end] are messages and not translated (§5.13.6.7.1)."""
    return struct.pack("<HHB3xQQ", _PROBE_RESV_MEM, 20, _RESV_MSI, start, end)


def fault_event(reason: FaultReason, endpoint: int, address: int, access: int) -> bytes:
    """`struct virtio_iommu_fault`; `access` is MAP_READ or MAP_WRITE where it is known, else 0."""
    return struct.pack("<B3xII4xQ", reason, access | _FAULT_ADDRESS, endpoint, address)


def config_space(page_size_mask: int, input_end: int, probe_size: int, bypass: bool) -> bytes:
    """`struct virtio_iommu_config` (§5.13.4), with input addresses from 0 and all domain numbers."""
    return struct.pack("<QQQIIIB3x", page_size_mask, 0, input_end, 0, 0xFFFF_FFFF, probe_size, bypass)
