"""INTx of a host device: a level-triggered interrupt.

The host's kernel masks the device's interrupt when it signals it, for nobody there can quiet the device (Linux,
drivers/vfio/pci/vfio_pci_intrs.c). The guest can, and says when it has by ending the interrupt:

    eventfd signalled ──► line asserted ──► guest's handler ──► end of interrupt ──► line released, unmasked in the kernel
            ▲                                                                                          │
            └───────────────────────── device still asserts its pin ──────────────────────────────────┘

Where the interrupt controller is KVM's (arm64), and nobody else is on the pin, KVM closes that circle itself: an irqfd that
resamples, whose end unmasks in the kernel (pci.services.IntxCircuit). With the I/O APIC in this process it cannot, for that needs
the one in the kernel, and an irqfd would pass by the pin's mask: then it goes by way of the event loop. MSI and MSI-X do not come
this way; a driver that has a choice takes them.

The guest's INTx disable bit is carried out by the host's kernel, which sees it in the command register (vfio_pci_config.c); it
masks, and when the bit is cleared signals what is pending. So a signal that comes while it is set is an old one.
"""

from __future__ import annotations

import asyncio
import os

from aiovmm.pci.services import IntxCircuit, Place
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.calls import DeviceCalls
from aiovmm.vfio.services import VfioServices

__all__ = ["IntxInterrupt"]


class IntxInterrupt:
    """Off at first."""

    def __init__(self, calls: DeviceCalls, services: VfioServices, place: Place) -> None:
        self._calls = calls
        self._line = services.intx_line(self._ended, place)
        self._circuit: IntxCircuit | None = None
        self._fd = self._unmask_fd = -1  # the second of a circuit
        self._disabled = False

    @property
    def gsi(self) -> int:
        """What the pin is wired to."""
        return self._line.gsi

    def turn_on(self) -> None:
        """From now on. Idempotent."""
        if self._fd >= 0:
            return
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._circuit = self._circuit or self._line.circuit()
        if self._circuit is not None:
            self._unmask_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._calls.close_circuit(self._circuit, self._fd, self._unmask_fd)
            return
        asyncio.get_running_loop().add_reader(self._fd, self._signalled)
        self._calls.turn_on(Irq.INTX, [self._fd])

    def turn_off(self) -> None:
        """For the time that messages are on: a function has one or the other. Idempotent."""
        if self._fd < 0:
            return
        fds = self._fd, self._unmask_fd
        self._fd = self._unmask_fd = -1
        asyncio.get_running_loop().remove_reader(fds[0])  # which has none in a circuit
        self._calls.turn_off(Irq.INTX)
        if self._circuit is not None:
            self._calls.open_circuit(self._circuit)
        for fd in fds:
            if fd >= 0:
                self._calls.close_fd(fd)
        self._line.set_level(False)

    def disable(self, disabled: bool) -> None:
        """The INTx disable bit of the command register, which the device is told meanwhile."""
        self._disabled = disabled
        if disabled:
            self._line.set_level(False)

    def close(self) -> None:
        """Off, and the line given back. Idempotent."""
        self.turn_off()
        self._line.close()

    def _signalled(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:  # an event loop may call once more for what has been read
            return
        if not self._disabled:
            self._line.set_level(True)

    def _ended(self) -> None:
        """The line is released. If the device has not been quieted the kernel signals at once."""
        if self._fd >= 0:
            self._calls.unmask(Irq.INTX)
