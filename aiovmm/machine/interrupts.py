"""Where interrupts of the machine's devices meet KVM: message lines of PCI functions, and the I/O APIC's messages."""

from __future__ import annotations

import os
import select

from aiovmm.errors import KvmError
from aiovmm.kvm.routing import GsiRouting, IrqfdLine
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib

__all__ = ["IoApicSink", "KvmMsiLine"]


class KvmMsiLine:
    """A pci.services.MsiLine: an eventfd, joined to a GSI of its own while the vector is not masked.

    The eventfd is made at once, for it may be handed to another process before the guest opens the vector; the GSI and its
    irqfd come with the first unmasking, so that a guest with many idle vectors costs no routes.
    """

    def __init__(self, vm: VmFd, name: str) -> None:
        self.name = name
        self._vm = vm
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._shared = False
        self._gsi: int | None = None
        self._irqfd: IrqfdLine | None = None

    @property
    def fd(self) -> int | None:
        """The eventfd; None once closed. Who asks hands it on, so from then on others have it as well."""
        self._shared = True
        return self._fd if self._fd >= 0 else None

    @property
    def pending(self) -> bool:
        """Signalled while it was masked: the eventfd is readable, for KVM would have read it."""
        if self._fd < 0 or self._irqfd is not None:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def set(self, address: int, data: int, masked: bool) -> None:
        """Program address and data, then join the eventfd to the GSI or cut it off. Raises KvmError.

        An address that no local APIC has (bits 39:32 must be zero; KVM would refuse the whole table for it) is the guest's
        mistake: its interrupts go nowhere, as on hardware.
        """
        if self._fd < 0:
            return
        routing = self._routing
        if masked or address >> 32 & 0xFF:
            self._cut()
            return
        if self._gsi is None:
            self._gsi = routing.allocate()
        routing.set_msi(self._gsi, _for_kvm(address), data)
        routing.commit()
        if self._irqfd is None:
            self._irqfd = self._vm.irqfd(self._gsi, self._fd)

    def pulse(self) -> None:
        """Send the message; kept in the eventfd while masked."""
        if self._fd >= 0 and self._shared:  # whoever has it may have filled it, and made it blocking
            lib.avmm_event_signal(self._fd)
        elif self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        if self._fd < 0:
            return
        self._cut()
        if self._gsi is not None and not self._vm.closed:
            self._routing.release(self._gsi)
            self._gsi = None
        fd, self._fd = self._fd, -1
        os.close(fd)

    @property
    def _routing(self) -> GsiRouting:
        routing = self._vm.routing
        assert routing is not None, "the machine makes the irqchip before any device"
        return routing

    def _cut(self) -> None:
        irqfd, self._irqfd = self._irqfd, None
        if irqfd is not None and not self._vm.closed:
            irqfd.close()


class IoApicSink:
    """What the I/O APIC sends: messages at once, and routes for its level-triggered pins so that KVM tells of their EOI."""

    def __init__(self, vm: VmFd) -> None:
        self._vm = vm

    def signal(self, address: int, data: int) -> bool:
        """Deliver a message now; whether it was taken. A destination that is not there is the guest's mistake and drops it."""
        try:
            return self._vm.signal_msi(_for_kvm(address), data)
        except KvmError:
            return False  # KVM refuses a message to no processor: on hardware it would be lost on the bus as well

    def route(self, pin: int, address: int, data: int | None) -> None:
        """Route `pin` to a message, or take its route away."""
        routing = self._vm.routing
        assert routing is not None
        if data is None:
            routing.clear(pin)
        else:
            routing.set_msi(pin, _for_kvm(address), data)
        routing.commit()


def _for_kvm(address: int) -> int:
    """KVM wants bits 14:8 of the destination in bits 46:40; a guest has only 32 bits, and puts them into bits 11:5."""
    return address & ~(0x7F << 5) | (address >> 5 & 0x7F) << 40
