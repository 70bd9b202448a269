"""Doorbells: a guest's write that KVM turns into an eventfd signal, without leaving the kernel."""

from __future__ import annotations

import errno

from aiovmm.bus import Space
from aiovmm.kvm.ioctl import call
from aiovmm.native import ffi, lib

__all__ = ["Ioeventfd"]

_HINTS = {
    errno.EEXIST: "another doorbell has this address (and data)",
    errno.ENOSPC: "KVM has no room for another doorbell in this VM",
    errno.EINVAL: "a doorbell is 1, 2, 4 or 8 bytes wide (0: any, without a data match)",
}


class Ioeventfd:
    """A write of `size` bytes at `address` (of exactly `datamatch`, if given) signals `fd`, which stays the caller's."""

    def __init__(
        self, vm_fd: int, space: Space, address: int, size: int, fd: int, datamatch: int | None = None
    ) -> None:
        """Register it. Raises KvmError."""
        self._vm_fd = vm_fd
        self._where = f"{size} bytes at {space.name} {address:#x}"
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if space is Space.PIO else 0
        if datamatch is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        fields = {"addr": address, "len": size, "fd": fd, "flags": flags, "datamatch": datamatch or 0}
        self._arg = ffi.new("struct kvm_ioeventfd *", fields)
        call(vm_fd, lib.KVM_IOEVENTFD, self._arg, f"binding a doorbell of {self._where}", _HINTS)
        self._open = True

    def close(self) -> None:
        """Unregister. Idempotent; before the eventfd and the VM are closed. Raises KvmError."""
        if not self._open:
            return
        self._open = False
        self._arg.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        call(self._vm_fd, lib.KVM_IOEVENTFD, self._arg, f"unbinding the doorbell of {self._where}", _HINTS)
