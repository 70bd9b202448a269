"""Numbers and structures of iommufd, and of VFIO's device files that go with it, as <linux/iommufd.h> and <linux/vfio.h> define
them (Linux 6.6). Pure."""

from __future__ import annotations

import enum
import struct

from aiovmm.vfio.abi import DMA_READ, DMA_WRITE

__all__ = [
    "IommuRequest",
    "attach",
    "bind",
    "destroy",
    "detach",
    "ioas_alloc",
    "ioas_map",
    "ioas_unmap",
    "parse_ioas_alloc",
]

_TYPE = ord(";") << 8


class IommuRequest(enum.IntEnum):
    """ioctl requests to /dev/iommu, then those to a device's file."""

    DESTROY = _TYPE | 0x80
    IOAS_ALLOC = _TYPE | 0x81
    IOAS_MAP = _TYPE | 0x85
    IOAS_UNMAP = _TYPE | 0x86
    DEVICE_BIND_IOMMUFD = _TYPE | 100 + 18
    DEVICE_ATTACH_IOMMUFD_PT = _TYPE | 100 + 19
    DEVICE_DETACH_IOMMUFD_PT = _TYPE | 100 + 20


_FIXED_IOVA, _WRITEABLE, _READABLE = 1, 2, 4

_DESTROY = struct.Struct("<II")  # size, id
_ALLOC = struct.Struct("<III")  # size, flags, out_ioas_id
_MAP = struct.Struct("<IIIIQQQ")  # size, flags, ioas_id, reserved, user_va, length, iova
_UNMAP = struct.Struct("<IIQQ")  # size, ioas_id, iova, length
_BIND = struct.Struct("<IIiI")  # argsz, flags, iommufd, out_devid
_ATTACH = struct.Struct("<III")  # argsz, flags, pt_id
_DETACH = struct.Struct("<II")  # argsz, flags


def ioas_alloc() -> bytearray:
    """Argument of IOAS_ALLOC."""
    return bytearray(_ALLOC.pack(_ALLOC.size, 0, 0))


def parse_ioas_alloc(reply: bytes | bytearray) -> int:
    """The number of the address space that IOAS_ALLOC has made."""
    return int(_ALLOC.unpack(reply)[2])


def destroy(number: int) -> bytearray:
    """Argument of DESTROY, for an address space that no device is attached to."""
    return bytearray(_DESTROY.pack(_DESTROY.size, number))


def ioas_map(ioas: int, iova: int, size: int, vaddr: int, perm: int) -> bytearray:
    """Argument of IOAS_MAP; `perm` is abi.DMA_READ, DMA_WRITE or both, as the device sees it."""
    flags = _FIXED_IOVA | (_READABLE if perm & DMA_READ else 0) | (_WRITEABLE if perm & DMA_WRITE else 0)
    return bytearray(_MAP.pack(_MAP.size, flags, ioas, 0, vaddr, size, iova))


def ioas_unmap(ioas: int, iova: int, size: int) -> bytearray:
    """Argument of IOAS_UNMAP."""
    return bytearray(_UNMAP.pack(_UNMAP.size, ioas, iova, size))


def bind(iommufd: int) -> bytearray:
    """Argument of DEVICE_BIND_IOMMUFD."""
    return bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))


def attach(ioas: int) -> bytearray:
    """Argument of DEVICE_ATTACH_IOMMUFD_PT."""
    return bytearray(_ATTACH.pack(_ATTACH.size, 0, ioas))


def detach() -> bytearray:
    """Argument of DEVICE_DETACH_IOMMUFD_PT."""
    return bytearray(_DETACH.pack(_DETACH.size, 0))
