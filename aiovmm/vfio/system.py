"""The seam to the host's kernel: opening, ioctls, mappings. Tests put a model of VFIO in its place."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Protocol

from aiovmm.native.mapping import GuestMapping, Mapping

__all__ = ["HostSystem", "System"]


class System(Protocol):
    """What VFIO is reached through. Every method raises OSError as the kernel does."""

    sysfs: Path
    """Where /sys is."""

    def open(self, path: str) -> int:
        """A file below /dev, for reading and writing."""

    def duplicate(self, fd: int) -> int:
        """A descriptor of our own of a file that somebody has opened."""

    def device_number(self, fd: int) -> tuple[int, int]:
        """(major, minor) of the device whose file it is; zeros for another file."""

    def close(self, fd: int) -> None:
        """Close a file that `open`, `duplicate` or an ioctl gave."""

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """The result; a bytearray is changed in place."""

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Store at `offset`; how many bytes were."""

    def mmap(self, fd: int, size: int, offset: int) -> Mapping:
        """A shared mapping for reading and writing."""


class HostSystem:
    """The real one."""

    sysfs = Path("/sys")

    def open(self, path: str) -> int:
        """See System."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def duplicate(self, fd: int) -> int:
        """See System."""
        return os.dup(fd)

    def device_number(self, fd: int) -> tuple[int, int]:
        """See System."""
        number = os.fstat(fd).st_rdev
        return os.major(number), os.minor(number)

    def close(self, fd: int) -> None:
        """See System."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """See System. Long ones (a reset, mapping memory) let other threads run."""
        return (
            fcntl.ioctl(fd, request, argument, True)
            if isinstance(argument, bytearray)
            else _plain(fd, request, argument)
        )

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """See System."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """See System."""
        return os.pwrite(fd, data, offset)

    def mmap(self, fd: int, size: int, offset: int) -> Mapping:
        """See System."""
        return GuestMapping(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)


def _plain(fd: int, request: int, argument: int) -> int:
    return fcntl.ioctl(fd, request, argument)
