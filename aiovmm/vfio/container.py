"""VFIO's container: an IOMMU context of type 1, with the groups in it and the guest memory that their devices reach."""

from __future__ import annotations

import errno

from aiovmm.errors import HostError
from aiovmm.vfio import abi
from aiovmm.vfio.abi import Request
from aiovmm.vfio.limits import memlock_hint
from aiovmm.vfio.space import AddressSpace, Opened, VfioFile, call
from aiovmm.vfio.sysfs import HostFunction, not_viable
from aiovmm.vfio.system import System

__all__ = ["Container", "Group"]

_GROUP_HINTS = {
    errno.EACCES: "become a member of the group that owns it, or `chown` it; vfio needs no other privilege",
    errno.EPERM: "run as root, or as the owner of /dev/vfio files",
    errno.EBUSY: "another program, perhaps another VM, has it",
    errno.ENOENT: "`modprobe vfio-pci`; no device of the group is bound to it",
}


class Group(VfioFile):
    """An IOMMU group in a container; `fd` is its file."""

    def __init__(self, number: int, fd: int) -> None:
        super().__init__(fd)
        self.number = number
        self.users = 0


class Container(AddressSpace):
    """See the module. Opened by the first device, closed with the last."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self._system = system
        self._fd = -1
        self._groups: dict[int, Group] = {}

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those that are in it."""
        return tuple(self._groups.values())

    def open_device(self, function: HostFunction) -> Opened:
        """See AddressSpace."""
        group = self._acquire(function)
        try:
            name = bytearray(function.address.encode() + b"\0")
            hints = {errno.ENODEV: "it is not bound to vfio-pci any more", errno.EINVAL: "the group is not set up"}
            fd = self._call(Request.GROUP_GET_DEVICE_FD, name, f"opening {function.address}", hints, fd=group.fd)
        except BaseException:
            self._release(group)
            raise
        return Opened(fd, group)

    def close_device(self, opened: Opened) -> None:
        """See AddressSpace."""
        self._system.close(opened.fd)
        assert isinstance(opened.known, Group)
        self._release(opened.known)

    def _map(self, iova: int, size: int, host: int, perm: int) -> None:
        hints = {
            errno.ENOMEM: memlock_hint(size),
            errno.ENOSPC: "there are more mappings than dma_entry_limit of vfio_iommu_type1 allows",
            errno.EINVAL: "the IOMMU of the host cannot map that address: see reserved_regions of the IOMMU group",
            errno.EFAULT: "the file behind this memory cannot be locked; use one on another file system",
        }
        operation = f"letting host devices reach {size} bytes of guest memory at {iova:#x}"
        self._call(Request.IOMMU_MAP_DMA, abi.dma_map(iova, size, host, perm), operation, hints)

    def _unmap(self, iova: int, size: int) -> None:
        self._call(Request.IOMMU_UNMAP_DMA, abi.dma_unmap(iova, size), f"unmapping guest memory at {iova:#x}")

    # -- groups

    def _acquire(self, function: HostFunction) -> Group:
        group = self._groups.get(function.group)
        if group is None:
            group = self._join(function)
            self._groups[function.group] = group
        group.users += 1
        return group

    def _release(self, group: Group) -> None:
        group.users -= 1
        if group.users:
            return
        del self._groups[group.number]
        self._system.close(group.fd)
        if not self._groups:
            self._mapped.clear()
            fd, self._fd = self._fd, -1
            self._system.close(fd)

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
        return call(self._system, self._fd if fd is None else fd, request, argument, operation, hints)
