"""Lines to the interrupt controller (SPIs), level-triggered, and how the end of their interrupts is told.

A level is set by a call. KVM lowers the line by itself when the guest ends an interrupt whose end somebody wants to be told of
(a resampling irqfd), and then tells; so who still asserts it raises it again.
"""

from __future__ import annotations

import os

from aiovmm.errors import KvmError
from aiovmm.kvm.aarch64.gic import FIRST_SPI
from aiovmm.kvm.ioctl import call, error
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib

__all__ = ["EndOfInterrupt", "SpiLine"]

_SPI_TYPE = 1 << 24  # KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT


class SpiLine:
    """SPI `number` as an irq.LevelLine."""

    def __init__(self, vm: VmFd, number: int) -> None:
        self._vm = vm
        self._irq = _SPI_TYPE | FIRST_SPI + number
        self._level = False

    def set_level(self, asserted: bool) -> None:
        """Assert or release the line. Nothing happens once the VM is closed. Raises KvmError."""
        if asserted == self._level or self._vm.closed:
            return
        self._level = asserted
        argument = ffi.new("struct kvm_irq_level *", (self._irq, asserted))
        call(self._vm.fd, lib.KVM_IRQ_LINE, argument, "setting the level of an interrupt line")


class EndOfInterrupt:
    """Tells by an eventfd, `fd`, that the guest has ended an interrupt of SPI `number`, which is thereby lowered.

    An irqfd for each, whose trigger is `trigger` (another process's or a host device's) or one that nobody signals. The route
    of the GSI, set_pin(number, 0, number), must be there. Making and closing one take KVM milliseconds. Raises KvmError.
    """

    def __init__(self, vm: VmFd, number: int, *, trigger: int | None = None, fd: int | None = None) -> None:
        self._vm = vm
        self._number = number
        self._own: list[int] = []
        self._trigger = self._fd = -1
        try:
            self._trigger = self._eventfd() if trigger is None else trigger
            self._fd = self._eventfd() if fd is None else fd
            self._set(lib.KVM_IRQFD_FLAG_RESAMPLE)
        except BaseException:
            self.drop()
            raise

    @property
    def fd(self) -> int:
        """Readable when it has; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Have KVM forget it. Idempotent."""
        if self._fd < 0:
            return
        try:
            if not self._vm.closed:
                self._set(lib.KVM_IRQFD_FLAG_RESAMPLE | lib.KVM_IRQFD_FLAG_DEASSIGN)
        finally:
            self.drop()

    def drop(self) -> None:
        """Close the descriptors that are its own; KVM forgets it with the VM. Idempotent."""
        self._fd = self._trigger = -1
        while self._own:
            os.close(self._own.pop())

    def _eventfd(self) -> int:
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as exc:
            raise _no_eventfd(exc) from exc
        self._own.append(fd)
        return fd

    def _set(self, flags: int) -> None:
        fields = {"fd": self._trigger, "gsi": self._number, "flags": flags, "resamplefd": self._fd}
        argument = ffi.new("struct kvm_irqfd *", fields)
        call(self._vm.fd, lib.KVM_IRQFD, argument, f"asking for the end of interrupts of SPI {self._number}")


def _no_eventfd(exc: OSError) -> KvmError:
    return error("making the eventfd of an interrupt line", exc.errno or 0)
