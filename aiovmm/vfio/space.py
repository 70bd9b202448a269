"""What devices of the host reach of a guest's memory, and by which files of the host's: the same for both ways to the IOMMU.

`Container` goes by VFIO's container and groups, `Ioas` by iommufd and a file for each device. Either outlives the guest's
reboots. Guest memory does not: it is mapped for each machine, and unmapped before it goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.undoing import raise_last
from aiovmm.vfio import abi
from aiovmm.vfio.sysfs import HostFunction
from aiovmm.vfio.system import System

__all__ = ["AddressSpace", "Opened", "Reachable", "VfioFile", "call", "regions_of"]


class Reachable(NamedTuple):
    """`size` bytes at `host` of this process, which devices are to reach at guest-physical `gpa`."""

    gpa: int
    size: int
    host: int
    readonly: bool = False


def regions_of(memory: GuestMemory) -> list[Reachable]:
    """All of it, as it is."""
    return [Reachable(region.gpa, region.size, region.host, region.readonly) for region in memory.regions]


class VfioFile:
    """A file by which KVM knows of devices: a group's, or a device's own."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Opened(NamedTuple):
    """A device's own file, and the one by which KVM knows of it."""

    fd: int
    known: VfioFile


class AddressSpace(ABC):
    """See the module. There from its first device on, gone with the last."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, int], None] = {}

    @property
    def mapped(self) -> tuple[tuple[int, int], ...]:
        """(address, bytes) that devices can reach."""
        return tuple(self._mapped)

    @abstractmethod
    def open_device(self, function: HostFunction) -> Opened:
        """Take `function` from the host and put it in here; to be given back by `close_device`. Raises HostError with a
        remedy."""

    @abstractmethod
    def close_device(self, opened: Opened) -> None:
        """Give it back to the host; the kernel resets it."""

    def map(self, pieces: Iterable[Reachable]) -> None:
        """Let devices reach `pieces` that they do not reach yet: every page is locked. Blocks. Raises HostError; then they reach
        none of them."""
        mapped: list[tuple[int, int]] = []
        try:
            for piece in pieces:
                if (piece.gpa, piece.size) not in self._mapped:
                    perm = abi.DMA_READ | (0 if piece.readonly else abi.DMA_WRITE)
                    self.map_range(piece.gpa, piece.size, piece.host, perm)
                    mapped.append((piece.gpa, piece.size))
        except BaseException:
            with suppress(HostError):  # why they cannot be mapped is what there is to say
                self.unmap_ranges(mapped)
            raise

    def unmap_ranges(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take (address, bytes) back that were mapped as they are, all that can be. Blocks. Raises HostError."""
        errors: list[HostError] = []
        for iova, size in ranges:
            try:
                self.unmap_range(iova, size)
            except HostError as exc:
                errors.append(exc)
        raise_last(errors)

    def unmap(self) -> None:
        """Devices reach nothing any more. Idempotent. Raises HostError."""
        self.unmap_ranges(tuple(self._mapped))

    def map_range(self, iova: int, size: int, host: int, perm: int) -> None:
        """Let devices reach `size` bytes at `host` of this process at their address `iova`. Raises HostError."""
        self._map(iova, size, host, perm)
        self._mapped[iova, size] = None

    def unmap_range(self, iova: int, size: int) -> None:
        """Take a range back that was mapped as a whole; nothing if it was not. Raises HostError."""
        if (iova, size) in self._mapped:
            self._unmap(iova, size)
            del self._mapped[iova, size]

    @abstractmethod
    def _map(self, iova: int, size: int, host: int, perm: int) -> None: ...

    @abstractmethod
    def _unmap(self, iova: int, size: int) -> None: ...


def call(
    system: System,
    fd: int,
    request: int,
    argument: int | bytearray,
    operation: str,
    hints: dict[int, str] | None = None,
) -> int:
    """An ioctl. Raises HostError, which names `operation`, with the remedy that `hints` has for its errno."""
    try:
        return system.ioctl(fd, request, argument)
    except OSError as exc:
        code = exc.errno or 0
        raise HostError(operation, code, (hints or {}).get(code, "")) from exc
