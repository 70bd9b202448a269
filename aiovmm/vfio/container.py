"""VFIO's container: the IOMMU context of one VM, with the groups in it and the guest memory that their devices reach.

It outlives the guest's reboots. Guest memory does not: it is mapped for each machine, and unmapped before it goes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import NamedTuple

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory
from aiovmm.vfio import abi
from aiovmm.vfio.abi import Request
from aiovmm.vfio.limits import memlock_hint
from aiovmm.vfio.sysfs import HostFunction, not_viable
from aiovmm.vfio.system import System

__all__ = ["Container", "Group", "Reachable", "regions_of"]

_GROUP_HINTS = {
    errno.EACCES: "become a member of the group that owns it, or `chown` it; vfio needs no other privilege",
    errno.EPERM: "run as root, or as the owner of /dev/vfio files",
    errno.EBUSY: "another program, perhaps another VM, has it",
    errno.ENOENT: "`modprobe vfio-pci`; no device of the group is bound to it",
}


class Reachable(NamedTuple):
    """`size` bytes at `host` of this process, which devices are to reach at guest-physical `gpa`."""

    gpa: int
    size: int
    host: int
    readonly: bool = False


def regions_of(memory: GuestMemory) -> list[Reachable]:
    """All of it, as it is."""
    return [Reachable(region.gpa, region.size, region.host, region.readonly) for region in memory.regions]


class Group:
    """An IOMMU group in a container; `fd` is its file."""

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        self.users = 0


class Container:
    """See the module. Opened by the first device, closed with the last."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._fd = -1
        self._groups: dict[int, Group] = {}
        self._mapped: dict[tuple[int, int], None] = {}

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those that are in it."""
        return tuple(self._groups.values())

    @property
    def mapped(self) -> tuple[tuple[int, int], ...]:
        """(address, bytes) that devices can reach."""
        return tuple(self._mapped)

    def acquire(self, function: HostFunction) -> Group:
        """The group of `function`, in this container; to be given back by `release`. Raises HostError."""
        group = self._groups.get(function.group)
        if group is None:
            group = self._join(function)
            self._groups[function.group] = group
        group.users += 1
        return group

    def release(self, group: Group) -> None:
        """Its device is closed."""
        group.users -= 1
        if group.users:
            return
        del self._groups[group.number]
        self._system.close(group.fd)
        if not self._groups:
            self._mapped.clear()
            fd, self._fd = self._fd, -1
            self._system.close(fd)

    def map(self, pieces: Iterable[Reachable]) -> None:
        """Let devices reach `pieces` that they do not reach yet: every page is locked. Blocks. Raises HostError; then they reach
        none of them."""
        mapped: list[Reachable] = []
        try:
            for piece in pieces:
                if (piece.gpa, piece.size) not in self._mapped:
                    perm = abi.DMA_READ | (0 if piece.readonly else abi.DMA_WRITE)
                    self.map_range(piece.gpa, piece.size, piece.host, perm)
                    mapped.append(piece)
        except BaseException:
            for piece in mapped:
                self.unmap_range(piece.gpa, piece.size)
            raise

    def unmap_ranges(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take (address, bytes) back that were mapped as they are. Blocks. Raises HostError."""
        for iova, size in ranges:
            self.unmap_range(iova, size)

    def unmap(self) -> None:
        """Devices reach nothing any more. Idempotent. Raises HostError."""
        for iova, size in list(self._mapped):
            self.unmap_range(iova, size)

    def unmap_range(self, iova: int, size: int) -> None:
        """Take a range back that was mapped as a whole; nothing if it was not. Raises HostError."""
        if (iova, size) in self._mapped:
            self._call(Request.IOMMU_UNMAP_DMA, abi.dma_unmap(iova, size), f"unmapping guest memory at {iova:#x}")
            del self._mapped[iova, size]

    def map_range(self, iova: int, size: int, host: int, perm: int) -> None:
        """Let devices reach `size` bytes at `host` of this process at their address `iova`. Raises HostError."""
        argument = abi.dma_map(iova, size, host, perm)
        hints = {
            errno.ENOMEM: memlock_hint(size),
            errno.ENOSPC: "there are more mappings than dma_entry_limit of vfio_iommu_type1 allows",
            errno.EINVAL: "the IOMMU of the host cannot map that address: see reserved_regions of the IOMMU group",
            errno.EFAULT: "the file behind this memory cannot be locked; use one on another file system",
        }
        self._call(
            Request.IOMMU_MAP_DMA,
            argument,
            f"letting host devices reach {size} bytes of guest memory at {iova:#x}",
            hints,
        )
        self._mapped[iova, size] = None

    def _join(self, function: HostFunction) -> Group:
        first = self._fd < 0
        if first:
            self._open()
        try:
            return self._add_group(function, first)
        except BaseException:
            if first:
                self._system.close(self._fd)
                self._fd = -1
            raise

    def _open(self) -> None:
        path = "/dev/vfio/vfio"
        try:
            self._fd = self._system.open(path)
        except OSError as exc:
            hints = {errno.ENOENT: "`modprobe vfio-pci`", errno.EACCES: f"give this user access to {path}"}
            raise HostError("opening VFIO", exc.errno or 0, hints.get(exc.errno or 0, ""), path) from exc
        try:
            version = self._call(Request.GET_API_VERSION, 0, "asking VFIO for its version")
            if version != abi.API_VERSION:
                raise HostError(f"VFIO has version {version}, not {abi.API_VERSION}", errno.ENOSYS)
            if not self._call(Request.CHECK_EXTENSION, abi.TYPE1V2_IOMMU, "asking VFIO for its IOMMU"):
                raise HostError("using VFIO with a type 1 IOMMU", errno.ENOSYS, "`modprobe vfio_iommu_type1`")
        except BaseException:
            self._system.close(self._fd)
            self._fd = -1
            raise

    def _add_group(self, function: HostFunction, first: bool) -> Group:
        path = f"/dev/vfio/{function.group}"
        try:
            fd = self._system.open(path)
        except OSError as exc:
            code = exc.errno or 0
            raise HostError(f"opening IOMMU group {function.group}", code, _GROUP_HINTS.get(code, ""), path) from exc
        try:
            self._check_viable(function, fd)
            self._attach(fd, first)
        except BaseException:
            self._system.close(fd)
            raise
        return Group(function.group, fd)

    def _check_viable(self, function: HostFunction, fd: int) -> None:
        status = abi.group_status()
        self._call(Request.GROUP_GET_STATUS, status, f"examining IOMMU group {function.group}", fd=fd)
        if not status[4] & abi.GROUP_VIABLE:
            raise not_viable(function, self._system.sysfs)

    def _attach(self, fd: int, first: bool) -> None:
        container = bytearray(self._fd.to_bytes(4, "little", signed=True))
        self._call(Request.GROUP_SET_CONTAINER, container, "putting an IOMMU group into a container", fd=fd)
        if first:
            hints = {
                errno.EPERM: "without interrupt remapping: `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`, if you "
                "trust the guest with the host's interrupts"
            }
            self._call(Request.SET_IOMMU, abi.TYPE1V2_IOMMU, "setting up the IOMMU for host devices", hints)

    def _call(
        self,
        request: Request,
        argument: int | bytearray,
        operation: str,
        hints: dict[int, str] | None = None,
        *,
        fd: int | None = None,
    ) -> int:
        try:
            return self._system.ioctl(self._fd if fd is None else fd, request, argument)
        except OSError as exc:
            code = exc.errno or 0
            raise HostError(operation, code, (hints or {}).get(code, "")) from exc
