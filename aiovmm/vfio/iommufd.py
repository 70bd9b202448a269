"""iommufd, and the file that VFIO has for each device: the newer way to the IOMMU (Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV).

A VM has one iommufd, and in it an I/O address space (IOAS) for the devices that reach all of its memory, and one for each that is
behind the virtual IOMMU. A device is bound to the iommufd, then attached to its address space; no group's file is opened, but all
devices of an IOMMU group have to be in one address space as before. Linux, Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno

from aiovmm.errors import HostError
from aiovmm.vfio import iommufd_abi as abi
from aiovmm.vfio.iommufd_abi import IommuRequest
from aiovmm.vfio.limits import memlock_hint
from aiovmm.vfio.space import AddressSpace, Opened, VfioFile, call
from aiovmm.vfio.sysfs import HostFunction, device_file, holders, not_viable
from aiovmm.vfio.system import System

__all__ = ["Ioas", "Iommufd"]

_PATH = "/dev/iommu"
_HINTS = {
    errno.ENOENT: "`modprobe iommufd`; where the host's kernel has none (CONFIG_IOMMUFD), leave out platform.iommufd",
    errno.EACCES: f"give this user access to {_PATH}",
}
_FILE_HINTS = {
    errno.EACCES: "become a member of the group that owns it, or `chown` it; vfio needs no other privilege",
    errno.EPERM: "run as root, or as the owner of the file",
    errno.ENOENT: "the device is not bound to vfio-pci any more",
}
_TAKEN = "another program, perhaps another VM, has it"
_BIND_HINTS = {
    errno.EBUSY: _TAKEN,
    errno.EINVAL: f"{_TAKEN}; a descriptor of it can be bound once in its life",
    errno.EPERM: "without interrupt remapping: `modprobe iommufd allow_unsafe_interrupts=1`, if you trust the guest with the "
    "host's interrupts",
}


class Iommufd:
    """The iommufd of a VM; `given` is a descriptor of one, of which a copy is used. There while an address space is."""

    def __init__(self, system: System, given: int | None = None) -> None:
        self.system = system
        self.fd = -1
        self._given = given
        self._users = 0

    def new_space(self) -> int:
        """The number of a new address space; to be given back by `drop_space`. Raises HostError."""
        if self.fd < 0:
            self._open()
        try:
            argument = abi.ioas_alloc()
            hints = dict.fromkeys((errno.ENOTTY, errno.EINVAL), "that descriptor is not of /dev/iommu")
            self.call(IommuRequest.IOAS_ALLOC, argument, "making an I/O address space", hints)
        except BaseException:
            self._close_unused()
            raise
        self._users += 1
        return abi.parse_ioas_alloc(argument)

    def drop_space(self, number: int) -> None:
        """Nobody is in it any more. Raises HostError."""
        self._users -= 1
        try:
            self.call(IommuRequest.DESTROY, abi.destroy(number), "giving an I/O address space back")
        finally:
            self._close_unused()

    def call(
        self, request: IommuRequest, argument: bytearray, operation: str, hints: dict[int, str] | None = None
    ) -> None:
        """An ioctl. Raises HostError."""
        call(self.system, self.fd, request, argument, operation, hints)

    def _open(self) -> None:
        try:
            self.fd = self.system.open(_PATH) if self._given is None else self.system.duplicate(self._given)
        except OSError as exc:
            code = exc.errno or 0
            if self._given is not None:
                raise HostError(f"using descriptor {self._given} (platform.iommufd_fd)", code) from exc
            raise HostError("opening iommufd", code, _HINTS.get(code, ""), _PATH) from exc

    def _close_unused(self) -> None:
        if not self._users and self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.system.close(fd)


class Ioas(AddressSpace):
    """An address space of `iommufd`."""

    def __init__(self, iommufd: Iommufd) -> None:
        super().__init__()
        self._iommufd = iommufd
        self._system = iommufd.system
        self._number: int | None = None
        self._users = 0

    def open_device(self, function: HostFunction) -> Opened:
        """See AddressSpace."""
        fd = self._open_file(function)
        try:
            self._enter()
            try:
                self._bind(function, fd)
            except BaseException:
                self._leave()
                raise
        except BaseException:
            self._system.close(fd)
            raise
        return Opened(fd, VfioFile(fd))

    def close_device(self, opened: Opened) -> None:
        """See AddressSpace. It is detached first: who has handed its file in may keep it open."""
        try:
            self._call(opened.fd, IommuRequest.DEVICE_DETACH_IOMMUFD_PT, abi.detach(), "detaching a host device")
        finally:
            self._system.close(opened.fd)
            self._leave()

    def _map(self, iova: int, size: int, host: int, perm: int) -> None:
        hints = {
            errno.ENOMEM: memlock_hint(size),
            errno.EINVAL: "the IOMMU of the host cannot map that address: see reserved_regions of the IOMMU group",
            errno.EFAULT: "the file behind this memory cannot be locked; use one on another file system",
        }
        operation = f"letting host devices reach {size} bytes of guest memory at {iova:#x}"
        self._iommufd.call(IommuRequest.IOAS_MAP, abi.ioas_map(self._space, iova, size, host, perm), operation, hints)

    def _unmap(self, iova: int, size: int) -> None:
        argument = abi.ioas_unmap(self._space, iova, size)
        self._iommufd.call(IommuRequest.IOAS_UNMAP, argument, f"unmapping guest memory at {iova:#x}")

    @property
    def _space(self) -> int:
        assert self._number is not None, "a device is in it"
        return self._number

    def _enter(self) -> None:
        if self._number is None:
            self._number = self._iommufd.new_space()
        self._users += 1

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            number, self._number = self._space, None
            self._mapped.clear()
            self._iommufd.drop_space(number)

    def _open_file(self, function: HostFunction) -> int:
        path = "" if function.fd is not None else device_file(function, self._system.sysfs)
        try:
            return self._system.open(path) if function.fd is None else self._system.duplicate(function.fd)
        except OSError as exc:
            code = exc.errno or 0
            raise HostError(f"opening {function.address}", code, _FILE_HINTS.get(code, ""), path) from exc

    def _bind(self, function: HostFunction, fd: int) -> None:
        try:
            bound = abi.bind(self._iommufd.fd)
            self._call(fd, IommuRequest.DEVICE_BIND_IOMMUFD, bound, f"taking {function.address}", _BIND_HINTS)
        except HostError as exc:
            if exc.errno == errno.EBUSY and holders(function, self._system.sysfs):
                raise not_viable(function, self._system.sysfs) from exc
            raise
        attached = abi.attach(self._space)
        operation = f"putting {function.address} into an I/O address space"
        hints = {errno.EINVAL: "another device of its IOMMU group is in another one, perhaps another VM's"}
        self._call(fd, IommuRequest.DEVICE_ATTACH_IOMMUFD_PT, attached, operation, hints)

    def _call(
        self, fd: int, request: IommuRequest, argument: bytearray, operation: str, hints: dict[int, str] | None = None
    ) -> None:
        call(self._system, fd, request, argument, operation, hints)
