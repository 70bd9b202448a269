"""The interrupt controller: a GICv3 in the kernel, with an Interrupt Translation Service that takes devices' messages.

Made after the vCPUs, of which each has a redistributor, and before anything that is joined to an interrupt.
"""

from __future__ import annotations

import errno

from aiovmm.kvm.aarch64.device import DeviceType, KvmDevice
from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.routing import GsiRouting
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib

__all__ = ["FIRST_SPI", "SPIS", "Gic"]

FIRST_SPI = 32
"""Interrupt ids below it are each processor's own."""
SPIS = 224
"""Lines for devices: ids 32 to 255."""

_ADDR, _NR_IRQS, _CTRL = 0, 3, 4  # KVM_DEV_ARM_VGIC_GRP_*
_DISTRIBUTOR, _REDISTRIBUTOR, _ITS = 2, 3, 4  # KVM_VGIC_V3_ADDR_TYPE_*, KVM_VGIC_ITS_ADDR_TYPE
_INIT = 0

_CAP_IRQ_ROUTING = 25
_HINTS = {
    errno.ENODEV: "this host's interrupt controller is no GICv3: guests need a host that has one, or a newer one",
    errno.EEXIST: "the VM has one already",
}


class Gic:
    """One a VM: `controller`, and its `service`. KVM keeps it until the VM goes; `close` it before that."""

    controller: KvmDevice
    service: KvmDevice

    def __init__(self, vm: VmFd, *, distributor: int, redistributors: int, its: int) -> None:
        """Put it at these addresses: 64 KiB, 128 KiB a vCPU, 128 KiB. Afterwards the VM has its `routing`, in which SPI n is
        GSI n and messages are routed from SPIS on. Raises KvmError."""
        self._devices: list[KvmDevice] = []
        try:
            self._make(vm, distributor, redistributors, its)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nothing is read or set any more. Idempotent."""
        for device in self._devices:
            device.close()

    def _make(self, vm: VmFd, distributor: int, redistributors: int, its: int) -> None:
        self.controller = gic = self._device(vm, DeviceType.VGIC_V3, "interrupt controller (GICv3)")
        gic.set(_ADDR, _DISTRIBUTOR, ffi.new("uint64_t *", distributor), "placing the distributor")
        gic.set(_ADDR, _REDISTRIBUTOR, ffi.new("uint64_t *", redistributors), "placing the redistributors")
        self.service = service = self._device(vm, DeviceType.VGIC_ITS, "interrupt translation service")
        service.set(_ADDR, _ITS, ffi.new("uint64_t *", its), "placing the registers")
        service.set(_CTRL, _INIT, None, "initialization")
        gic.set(_NR_IRQS, 0, ffi.new("uint32_t *", FIRST_SPI + SPIS), "setting the number of interrupts")
        gic.set(_CTRL, _INIT, None, "initialization")
        limit = max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, _CAP_IRQ_ROUTING), SPIS)
        vm.routing = GsiRouting(vm.fd, SPIS, limit)

    def _device(self, vm: VmFd, type_: DeviceType, name: str) -> KvmDevice:
        device = KvmDevice(vm, type_, name, _HINTS)
        self._devices.append(device)
        return device
