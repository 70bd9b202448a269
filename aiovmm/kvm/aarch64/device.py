"""KVM's in-kernel devices: made by type, set up by attributes, in groups."""

from __future__ import annotations

import enum
import os
from typing import Any

from aiovmm.kvm.attributes import get_attribute, set_attribute
from aiovmm.kvm.ioctl import call, try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib
from aiovmm.runtime.forks import keep_private, let_go

__all__ = ["DeviceType", "KvmDevice", "is_there"]

_TEST = 1  # KVM_CREATE_DEVICE_TEST


class DeviceType(enum.IntEnum):
    """KVM_DEV_TYPE_ARM_*."""

    VGIC_V2 = 5
    VGIC_V3 = 7
    VGIC_ITS = 8


def is_there(vm: VmFd, type_: DeviceType) -> bool:
    """Whether this host's KVM has such devices."""
    return try_call(vm.fd, lib.KVM_CREATE_DEVICE, ffi.new("struct kvm_create_device *", (type_, 0, _TEST))) >= 0


class KvmDevice:
    """One device of a VM. KVM keeps the device itself until the VM goes; `close` gives back what it is set up and read by."""

    def __init__(self, vm: VmFd, type_: DeviceType, name: str, hints: dict[int, str] | None = None) -> None:
        """Make it; `name` is for errors. Raises KvmError."""
        argument = ffi.new("struct kvm_create_device *", (type_, 0, 0))
        call(vm.fd, lib.KVM_CREATE_DEVICE, argument, f"creating the {name}", hints)
        self._fd = keep_private(int(argument.fd))
        self._name = name

    def set(self, group: int, attribute: int, value: Any, what: str) -> None:
        """Set an attribute. Raises KvmError."""
        set_attribute(self._fd, group, attribute, value, f"{what} of the {self._name}")

    def get(self, group: int, attribute: int, value: Any, what: str) -> None:
        """Read an attribute into what `value` points at. Raises KvmError."""
        get_attribute(self._fd, group, attribute, value, f"{what} of the {self._name}")

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(let_go(fd))
