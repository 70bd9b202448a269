"""KVM's in-kernel devices: made by type, set up by attributes, in groups. vCPUs have such attributes as well."""

from __future__ import annotations

import enum
import os
from typing import Any

from aiovmm.kvm.ioctl import call, try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.forks import keep_private, let_go

__all__ = ["DeviceType", "KvmDevice", "get_attribute", "has_attribute", "is_there", "set_attribute"]

_TEST = 1  # KVM_CREATE_DEVICE_TEST


class DeviceType(enum.IntEnum):
    """KVM_DEV_TYPE_ARM_*."""

    VGIC_V2 = 5
    VGIC_V3 = 7
    VGIC_ITS = 8


def is_there(vm: VmFd, type_: DeviceType) -> bool:
    """Whether this host's KVM has such devices."""
    return try_call(vm.fd, lib.KVM_CREATE_DEVICE, ffi.new("struct kvm_create_device *", (type_, 0, _TEST))) >= 0


def set_attribute(fd: int, group: int, attribute: int, value: Any, operation: str) -> None:
    """Set an attribute of a device or vCPU. `value` is a cdata pointer, or None for one that is a command. Raises KvmError."""
    address = 0 if value is None else owners.address(value)
    argument = ffi.new("struct kvm_device_attr *", (0, group, attribute, address))
    call(fd, lib.KVM_SET_DEVICE_ATTR, argument, operation)


def get_attribute(fd: int, group: int, attribute: int, value: Any, operation: str) -> None:
    """Read an attribute into what the cdata pointer `value` points at. Raises KvmError."""
    argument = ffi.new("struct kvm_device_attr *", (0, group, attribute, owners.address(value)))
    call(fd, lib.KVM_GET_DEVICE_ATTR, argument, operation)


def has_attribute(fd: int, group: int, attribute: int) -> bool:
    """Whether a device or vCPU has it."""
    argument = ffi.new("struct kvm_device_attr *", (0, group, attribute, 0))
    return try_call(fd, lib.KVM_HAS_DEVICE_ATTR, argument) >= 0


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
