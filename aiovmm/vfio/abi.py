"""Numbers and structures of VFIO's ioctls, as <linux/vfio.h> defines them (API version 0, type 1 IOMMU). Pure."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "API_VERSION",
    "TYPE1V2_IOMMU",
    "DeviceInfo",
    "Irq",
    "IrqInfo",
    "Region",
    "RegionInfo",
    "Request",
    "device_info",
    "dma_map",
    "dma_unmap",
    "group_status",
    "irq_eventfds",
    "irq_info",
    "irq_off",
    "irq_unmask",
    "irq_unmask_by",
    "parse_region_info",
    "region_info",
]

API_VERSION = 0
TYPE1V2_IOMMU = 3
_BASE = ord(";") << 8 | 100  # _IO(VFIO_TYPE, VFIO_BASE + n)


class Request(enum.IntEnum):
    """ioctl requests. Those from 12 on mean one thing to a container and another to a device."""

    GET_API_VERSION = _BASE + 0
    CHECK_EXTENSION = _BASE + 1
    SET_IOMMU = _BASE + 2
    GROUP_GET_STATUS = _BASE + 3
    GROUP_SET_CONTAINER = _BASE + 4
    GROUP_UNSET_CONTAINER = _BASE + 5
    GROUP_GET_DEVICE_FD = _BASE + 6
    DEVICE_GET_INFO = _BASE + 7
    DEVICE_GET_REGION_INFO = _BASE + 8
    DEVICE_GET_IRQ_INFO = _BASE + 9
    DEVICE_SET_IRQS = _BASE + 10
    DEVICE_RESET = _BASE + 11
    IOMMU_MAP_DMA = _BASE + 13
    IOMMU_UNMAP_DMA = _BASE + 14


class Region(enum.IntEnum):
    """Regions of a PCI device; 0 to 5 are its BARs."""

    ROM = 6
    CONFIG = 7


class Irq(enum.IntEnum):
    """Kinds of interrupt of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


GROUP_VIABLE = 1
_DEVICE_RESETS, _DEVICE_PCI = 1, 2
_REGION_MMAP, _REGION_CAPS = 4, 8
_CAP_SPARSE_MMAP = 1
_IRQ_NORESIZE = 8
DMA_READ, DMA_WRITE = 1, 2
_SET_NONE, _SET_EVENTFD, _SET_UNMASK, _SET_TRIGGER = 1 << 0, 1 << 2, 1 << 4, 1 << 5

_GROUP = struct.Struct("<II")  # argsz, flags
_DEVICE = struct.Struct("<IIIII")  # argsz, flags, num_regions, num_irqs, cap_offset
_REGION = struct.Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
_IRQ = struct.Struct("<IIII")  # argsz, flags, index, count
_IRQ_SET = struct.Struct("<IIIII")  # argsz, flags, index, start, count; data follow
_MAP = struct.Struct("<IIQQQ")  # argsz, flags, vaddr, iova, size
_UNMAP = struct.Struct("<IIQQ")  # argsz, flags, iova, size
_CAP_HEADER = struct.Struct("<HHI")  # id, version, next
_AREA = struct.Struct("<QQ")


@dataclass(frozen=True)
class DeviceInfo:
    """struct vfio_device_info."""

    is_pci: bool
    can_reset: bool
    regions: int
    irqs: int


@dataclass(frozen=True)
class RegionInfo:
    """struct vfio_region_info: `size` bytes at `offset` of the device's file; `areas` (offset, size) of it can be mapped."""

    index: int
    size: int
    offset: int
    areas: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class IrqInfo:
    """struct vfio_irq_info."""

    index: int
    count: int
    fixed: bool  # vectors cannot be added once it is on


def group_status() -> bytearray:
    """Argument of GROUP_GET_STATUS; flags come back in the second word."""
    return bytearray(_GROUP.pack(_GROUP.size, 0))


def device_info() -> bytearray:
    """Argument of DEVICE_GET_INFO."""
    return bytearray(_DEVICE.pack(_DEVICE.size, 0, 0, 0, 0))


def parse_device_info(reply: bytes | bytearray) -> DeviceInfo:
    """What DEVICE_GET_INFO answered."""
    _, flags, regions, irqs, _ = _DEVICE.unpack_from(reply)
    return DeviceInfo(bool(flags & _DEVICE_PCI), bool(flags & _DEVICE_RESETS), regions, irqs)


def region_info(index: int, size: int = _REGION.size) -> bytearray:
    """Argument of DEVICE_GET_REGION_INFO, with room for `size` bytes."""
    return bytearray(_REGION.pack(size, 0, index, 0, 0, 0).ljust(size, b"\0"))


def room_wanted(reply: bytes | bytearray) -> int:
    """The size that the answer would have had."""
    return int(_REGION.unpack_from(reply)[0])


def parse_region_info(reply: bytes | bytearray) -> RegionInfo:
    """What DEVICE_GET_REGION_INFO answered."""
    _, flags, index, cap_offset, size, offset = _REGION.unpack_from(reply)
    areas: tuple[tuple[int, int], ...] = ()
    if flags & _REGION_MMAP and size:
        areas = ((0, size),)
        if flags & _REGION_CAPS:
            areas = _sparse_areas(reply, cap_offset, areas)
    return RegionInfo(index, size, offset, areas)


def _sparse_areas(
    reply: bytes | bytearray, offset: int, default: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    for cap, at in _caps(reply, offset):
        if cap == _CAP_SPARSE_MMAP:
            count = int.from_bytes(reply[at + 8 : at + 12], "little")
            return tuple(_AREA.unpack_from(reply, at + 16 + n * _AREA.size) for n in range(count))
    return default


def _caps(reply: bytes | bytearray, offset: int) -> Iterator[tuple[int, int]]:
    while _REGION.size <= offset <= len(reply) - _CAP_HEADER.size:
        cap, _, following = _CAP_HEADER.unpack_from(reply, offset)
        yield cap, offset
        if following <= offset:  # ends the list; and the kernel lays them out in order
            return
        offset = following


def irq_info(index: int) -> bytearray:
    """Argument of DEVICE_GET_IRQ_INFO."""
    return bytearray(_IRQ.pack(_IRQ.size, 0, index, 0))


def parse_irq_info(reply: bytes | bytearray) -> IrqInfo:
    """What DEVICE_GET_IRQ_INFO answered."""
    _, flags, index, count = _IRQ.unpack_from(reply)
    return IrqInfo(index, count, bool(flags & _IRQ_NORESIZE))


def irq_eventfds(index: int, start: int, fds: Sequence[int]) -> bytearray:
    """Argument of DEVICE_SET_IRQS: interrupts `start` on of kind `index` signal `fds`; -1: nothing."""
    data = struct.pack(f"<{len(fds)}i", *fds)
    flags = _SET_EVENTFD | _SET_TRIGGER
    return bytearray(_IRQ_SET.pack(_IRQ_SET.size + len(data), flags, index, start, len(fds)) + data)


def irq_off(index: int) -> bytearray:
    """Argument of DEVICE_SET_IRQS: all interrupts of kind `index` off."""
    return bytearray(_IRQ_SET.pack(_IRQ_SET.size, _SET_NONE | _SET_TRIGGER, index, 0, 0))


def irq_unmask(index: int) -> bytearray:
    """Argument of DEVICE_SET_IRQS: let the first interrupt of kind `index`, which masks itself, signal again."""
    return bytearray(_IRQ_SET.pack(_IRQ_SET.size, _SET_NONE | _SET_UNMASK, index, 0, 1))


def irq_unmask_by(index: int, fd: int) -> bytearray:
    """Argument of DEVICE_SET_IRQS: the same whenever eventfd `fd` is signalled, until the interrupt is off."""
    return bytearray(_IRQ_SET.pack(_IRQ_SET.size + 4, _SET_EVENTFD | _SET_UNMASK, index, 0, 1) + struct.pack("<i", fd))


def dma_map(iova: int, size: int, vaddr: int, perm: int) -> bytearray:
    """Argument of IOMMU_MAP_DMA; `perm` is DMA_READ, DMA_WRITE or both, as the device sees it."""
    return bytearray(_MAP.pack(_MAP.size, perm, vaddr, iova, size))


def dma_unmap(iova: int, size: int) -> bytearray:
    """Argument of IOMMU_UNMAP_DMA."""
    return bytearray(_UNMAP.pack(_UNMAP.size, 0, iova, size))
