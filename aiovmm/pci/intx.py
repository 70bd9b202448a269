"""INTA of a virtio function, for drivers that have no MSI-X (PCI Local Bus 3.0, 6.2.2 to 6.2.4).

    pending    status bit 3    pin
    no         0               released
    yes        1               asserted, unless the INTx disable bit of the command register is set

While MSI-X is on nothing is pending: a function has one kind of interrupt at a time (6.8.2). The wire may be shared, and its
controller releases it at each end of an interrupt; what is pending still asserts it anew.
"""

from __future__ import annotations

from aiovmm.pci.config_space import COMMAND, COMMAND_INTX_OFF, STATUS, STATUS_INTERRUPT, ConfigSpace
from aiovmm.pci.services import PciServices, Place

__all__ = ["InterruptPin"]

_INTERRUPT_LINE, _INTERRUPT_PIN = 0x3C, 0x3D
_INTA = 1


class InterruptPin:
    """The pin of the function with this configuration space. Lays out its interrupt registers."""

    def __init__(self, config: ConfigSpace, services: PciServices, place: Place) -> None:
        self._config = config
        self._line = services.intx_line(self._ended, place)
        self._pending = self._asserted = False
        config.put(_INTERRUPT_LINE, 1, self._line.gsi)  # firmware leaves it there
        config.put(_INTERRUPT_PIN, 1, _INTA)

    @property
    def gsi(self) -> int:
        """The global system interrupt that the pin is wired to."""
        return self._line.gsi

    def set_pending(self, pending: bool) -> None:
        """The function has, or has no more, a reason to interrupt. Idempotent."""
        if pending == self._pending:
            return
        self._pending = pending
        status = self._config.get(STATUS, 2) & ~STATUS_INTERRUPT
        self._config.put(STATUS, 2, status | (STATUS_INTERRUPT if pending else 0))
        self.command_written()

    def command_written(self) -> None:
        """The guest may have changed the INTx disable bit."""
        level = self._pending and not self._config.get(COMMAND, 2) & COMMAND_INTX_OFF
        if level != self._asserted:
            self._asserted = level
            self._line.set_level(level)

    def close(self) -> None:
        """Give the wire back. Idempotent."""
        self._line.close()

    def _ended(self) -> None:
        """The wire has been released."""
        self._asserted = False
        self.command_written()
