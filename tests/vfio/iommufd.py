"""The model of the host's iommufd: address spaces, devices' own files, who is bound and attached where.

As drivers/vfio/device_cdev.c and drivers/iommu/iommufd of Linux 6.12 do.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vfio.kernel import FakeDevice

MAJOR = 511
MSI_WINDOW = 0xFEE0_0000, 0x10_0000  # the IOMMU's own, where interrupts are written


@dataclass(eq=False)
class IommuFile:
    """What an open of /dev/iommu has made."""

    descriptors: int = 1
    spaces: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """By number: address -> (address in the process, bytes)."""
    rights: dict[tuple[int, int], int] = field(default_factory=dict)
    """(number, address) -> flags."""


@dataclass(eq=False)
class DeviceFile:
    """What an open of /dev/vfio/devices/vfioN has made."""

    device: FakeDevice
    descriptors: int = 1
    iommufd: IommuFile | None = None
    space: int | None = None


class IommufdModel:
    """`files` are all that are open."""

    def __init__(self) -> None:
        self.there = True
        self.isolated_interrupts = True
        self.held: set[int] = set()  # groups of which the host uses a device, or has an open group file
        self.lock_limit = 1 << 40
        self.iommus: list[IommuFile] = []
        self.files: list[DeviceFile] = []
        self._numbers = itertools.count(1)

    @property
    def at_rest(self) -> bool:
        return not (self.iommus or self.files)

    @property
    def spaces(self) -> list[dict[int, tuple[int, int]]]:
        """All that there are."""
        return [space for file in self.iommus for space in file.spaces.values()]

    def open_iommu(self) -> IommuFile:
        if not self.there:
            raise FileNotFoundError(errno.ENOENT, "no iommufd")
        self.iommus.append(file := IommuFile())
        return file

    def open_device(self, device: FakeDevice) -> DeviceFile:
        self.files.append(file := DeviceFile(device))
        return file

    def close(self, file: IommuFile | DeviceFile) -> None:
        """A descriptor of it."""
        file.descriptors -= 1
        if file.descriptors:
            return
        if isinstance(file, DeviceFile):
            self.files.remove(file)
            file.device.irqs.clear()
        else:
            assert not any(bound.iommufd is file for bound in self.files), "whoever is bound keeps it: not modelled"
            self.iommus.remove(file)

    # -- ioctls, by number in <linux/iommufd.h> and <linux/vfio.h>

    def iommu_ioctl(self, file: IommuFile, number: int, argument: bytearray) -> int:
        (size,) = struct.unpack_from("<I", argument)
        assert size == len(argument)
        if number == 0x81:
            _, flags, _ = struct.unpack("<III", argument)
            assert not flags
            new = next(self._numbers)
            file.spaces[new] = {}
            struct.pack_into("<I", argument, 8, new)
        elif number == 0x80:
            self._destroy(file, struct.unpack("<II", argument)[1])
        elif number == 0x85:
            self._map(file, argument)
        elif number == 0x86:
            self._unmap(file, argument)
        else:
            raise OSError(errno.ENOTTY, "no such ioctl")
        return 0

    def device_ioctl(self, file: DeviceFile, number: int, argument: bytearray, iommufd: object) -> bool:
        """Whether it was one of these; `iommufd` is the file behind the descriptor that the argument of a bind has."""
        if number == 18:
            self._bind(file, iommufd)
        elif number == 19:
            self._attach(file, struct.unpack("<III", argument)[2])
        elif number == 20:
            assert argument == struct.pack("<II", 8, 0)
            file.space = None
        else:
            if file.iommufd is None:
                raise OSError(errno.EINVAL, "it is not bound")
            return False
        return True

    def _bind(self, file: DeviceFile, iommufd: object) -> None:
        if not isinstance(iommufd, IommuFile):
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        others = [other for other in self.files if other.iommufd is not None]
        if file.iommufd is not None or any(other.device is file.device for other in others):
            raise OSError(errno.EINVAL, "bound already")
        if not self.isolated_interrupts:
            raise OSError(errno.EPERM, "interrupts are not isolated")
        group = file.device.group
        if group in self.held or any(o.device.group == group and o.iommufd is not iommufd for o in others):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        file.iommufd = iommufd
        file.device.opened += 1

    def _attach(self, file: DeviceFile, number: int) -> None:
        if file.iommufd is None:
            raise OSError(errno.EINVAL, "it is not bound")
        if number not in file.iommufd.spaces:
            raise OSError(errno.ENOENT, "no such address space")
        for other in self.files:
            if other is not file and other.device.group == file.device.group and other.space not in (None, number):
                raise OSError(errno.EINVAL, "a group has one address space")
        file.space = number

    def _destroy(self, file: IommuFile, number: int) -> None:
        if number not in file.spaces:
            raise OSError(errno.ENOENT, "no such object")
        if any(attached.space == number for attached in self.files):
            raise OSError(errno.EBUSY, "a device is attached")
        del file.spaces[number]

    def _map(self, file: IommuFile, argument: bytearray) -> None:
        _, flags, number, reserved, vaddr, size, iova = struct.unpack("<IIIIQQQ", argument)
        assert flags & 1, "at an address of our choice"
        assert flags & 6, "neither read nor written"
        assert not flags & ~7
        assert not reserved
        space = file.spaces[number]
        if any(iova < at + n and at < iova + size for at, (_, n) in space.items()):
            raise OSError(errno.EEXIST, "mapped already")
        if iova < sum(MSI_WINDOW) and MSI_WINDOW[0] < iova + size:
            raise OSError(errno.EINVAL, "reserved")
        if sum(n for each in self.spaces for _, n in each.values()) + size > self.lock_limit:
            raise OSError(errno.ENOMEM, "locked memory")
        space[iova] = (vaddr, size)
        file.rights[number, iova] = flags

    def _unmap(self, file: IommuFile, argument: bytearray) -> None:
        _, number, iova, length = struct.unpack("<IIQQ", argument)
        if iova not in file.spaces[number]:
            raise OSError(errno.ENOENT, "nothing is mapped there")
        assert file.spaces[number].pop(iova)[1] == length, "no range is split"
