"""KVM's VFIO device: tells KVM which devices of the host a VM has, by the files of their IOMMU groups or of their own, so that
both keep caches coherent and know of each other's end.

Linux, Documentation/virt/kvm/devices/vfio.rst.
"""

from __future__ import annotations

import os

from aiovmm.kvm.ioctl import call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, owners

__all__ = ["KvmVfio"]

_CREATE_DEVICE = 0xC00C_AEE0  # _IOWR(KVMIO, 0xe0, struct kvm_create_device)
_SET_DEVICE_ATTR = 0x4018_AEE1  # _IOW(KVMIO, 0xe1, struct kvm_device_attr)
_TYPE_VFIO = 4
_FILE, _FILE_ADD, _FILE_DEL = 1, 1, 2  # before Linux 6.6, which knew groups alone, KVM_DEV_VFIO_GROUP


class KvmVfio:
    """One a VM. Closed before the VM; the files may live on. Linux before 6.4 makes no second one, even if the first was
    closed."""

    def __init__(self, vm: VmFd) -> None:
        """Make it. Raises KvmError."""
        device = ffi.new("uint32_t[3]", [_TYPE_VFIO, 0, 0])
        call(vm.fd, _CREATE_DEVICE, device, "creating KVM's VFIO device")
        self._fd = int(device[1])

    def add_file(self, fd: int) -> None:
        """The VM has the group, or the device, whose file is `fd`. Raises KvmError."""
        self._tell(_FILE_ADD, fd, "telling KVM of a host device")

    def remove_file(self, fd: int) -> None:
        """It has it no more: KVM lets go of the file, which is open for as long as it does not. Raises KvmError."""
        self._tell(_FILE_DEL, fd, "having KVM forget a host device")

    def _tell(self, what: int, fd: int, operation: str) -> None:
        argument = ffi.new("int32_t *", fd)
        attribute = ffi.new("uint64_t[3]", [_FILE << 32, what, owners.address(argument)])
        call(self._fd, _SET_DEVICE_ATTR, attribute, operation)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
