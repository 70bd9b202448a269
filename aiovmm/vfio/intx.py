"""INTx of a host device: a level-triggered interrupt, by way of the event loop.

The host's kernel masks the device's interrupt when it signals it, for nobody there can quiet the device (Linux,
drivers/vfio/pci/vfio_pci_intrs.c). The guest can, and says when it has by ending the interrupt:

    eventfd signalled ──► line asserted ──► guest's handler ──► end of interrupt ──► line released, unmasked in the kernel
            ▲                                                                                          │
            └───────────────────────── device still asserts its pin ──────────────────────────────────┘

With the I/O APIC in this process KVM cannot close that circle itself (KVM_IRQFD_FLAG_RESAMPLE needs the one in the kernel),
and an irqfd would pass by the pin's mask. MSI and MSI-X do not come this way; a driver that has a choice takes them.

The guest's INTx disable bit is carried out by the host's kernel, which sees it in the command register (vfio_pci_config.c); it
masks, and when the bit is cleared signals what is pending. So a signal that comes while it is set is an old one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from aiovmm.errors import HostError
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.services import VfioServices

__all__ = ["IntxInterrupt", "IntxSource"]


class IntxSource(Protocol):
    """The device; see HostDevice."""

    def set_irqs(self, kind: Irq, start: int, fds: Sequence[int]) -> None:
        """The interrupt signals this eventfd. Raises HostError."""

    def irqs_off(self, kind: Irq) -> None:
        """No interrupt any more. Raises HostError."""

    def unmask_irq(self, kind: Irq) -> None:
        """Signal again. Raises HostError."""


class IntxInterrupt:
    """Off at first. `on_error` hears what the host refuses when the guest ends an interrupt."""

    def __init__(self, source: IntxSource, services: VfioServices, on_error: Callable[[HostError], None]) -> None:
        self._source = source
        self._on_error = on_error
        self._line = services.intx_line(self._ended)
        self._fd = -1
        self._disabled = False

    @property
    def gsi(self) -> int:
        """What the pin is wired to."""
        return self._line.gsi

    def turn_on(self) -> None:
        """From now on. Idempotent. Raises HostError."""
        if self._fd >= 0:
            return
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._fd, self._signalled)
        try:
            self._source.set_irqs(Irq.INTX, 0, [self._fd])
        except BaseException:
            self._drop()
            raise

    def turn_off(self) -> None:
        """For the time that messages are on: a function has one or the other. Idempotent. Raises HostError."""
        if self._fd < 0:
            return
        try:
            self._source.irqs_off(Irq.INTX)
        finally:
            self._drop()

    def disable(self, disabled: bool) -> None:
        """The INTx disable bit of the command register, which the device has been told already."""
        self._disabled = disabled
        if disabled:
            self._line.set_level(False)

    def close(self) -> None:
        """Off, and the line given back. Idempotent. Raises HostError."""
        try:
            self.turn_off()
        finally:
            self._line.close()

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._line.set_level(False)

    def _signalled(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:  # an event loop may call once more for what has been read
            return
        if not self._disabled:
            self._line.set_level(True)

    def _ended(self) -> None:
        """The line is released. If the device has not been quieted the kernel signals at once."""
        try:
            if self._fd >= 0:
                self._source.unmask_irq(Irq.INTX)
        except HostError as exc:
            self._on_error(exc)
