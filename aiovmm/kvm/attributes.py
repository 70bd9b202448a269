"""Attributes of what KVM made: of devices, and of vCPUs, in groups (Documentation/virt/kvm/devices)."""

from __future__ import annotations

from typing import Any

from aiovmm.kvm.ioctl import call, try_call
from aiovmm.native import ffi, lib, owners

__all__ = ["get_attribute", "has_attribute", "set_attribute"]


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
