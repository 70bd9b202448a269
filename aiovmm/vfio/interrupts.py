"""MSI and MSI-X of a host device: its vectors signal eventfds, which are the irqfds of the guest's message lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aiovmm.pci.msix import ENTRY_SIZE, MsixTable
from aiovmm.pci.msix_lines import MsixPendingBits, MsixTableRegisters, MsixVectors
from aiovmm.pci.services import MsiLine, PciServices
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.msi import MsiCapability

__all__ = ["IrqSource", "MsiInterrupts", "MsixInterrupts"]


class IrqSource(Protocol):
    """The device; see HostDevice."""

    def set_irqs(self, kind: Irq, start: int, fds: Sequence[int]) -> None:
        """Interrupts `start` on signal these eventfds (-1: none). Raises HostError."""

    def irqs_off(self, kind: Irq) -> None:
        """No interrupt of this kind any more. Raises HostError."""


class MsiInterrupts:
    """Follows the MSI capability: lines for the vectors that are on."""

    def __init__(self, capability: MsiCapability, source: IrqSource, services: PciServices, name: str) -> None:
        self._capability = capability
        self._source = source
        self._services = services
        self._name = name
        self._lines: list[MsiLine] = []
        self._signalled = 0  # vectors that the device signals

    def update(self) -> None:
        """A register of the capability was written. Raises HostError."""
        wanted = self._capability.vectors
        if wanted != self._signalled and self._signalled:
            self._off()
        while len(self._lines) < wanted:
            self._lines.append(self._services.msi_line(f"{self._name} MSI {len(self._lines)}"))
        for vector in range(wanted):
            message = self._capability.message(vector)
            self._lines[vector].set(message.address, message.data, message.masked)
        if wanted != self._signalled:
            self._source.set_irqs(Irq.MSI, 0, [_fd(line) for line in self._lines[:wanted]])
            self._signalled = wanted

    def close(self) -> None:
        """Off, and lines given back. Raises HostError."""
        try:
            if self._signalled:
                self._off()
        finally:
            while self._lines:
                self._lines.pop().close()

    def _off(self) -> None:
        self._signalled = 0
        self._source.irqs_off(Irq.MSI)
        for line in self._lines:
            line.set(0, 0, True)


class MsixInterrupts:
    """Follows the MSI-X table. The device gets all vectors when MSI-X goes on, for not every kernel adds some later; each is
    given an eventfd when the guest first opens it."""

    def __init__(self, vectors: int, source: IrqSource, services: PciServices, name: str) -> None:
        self.vectors = MsixVectors(MsixTable(vectors), services, name)
        self._source = source
        self._on = False
        self._signalled: set[int] = set()
        self.table = _TableRegisters(self)
        self.pending = MsixPendingBits(self.vectors)

    def control(self, value: int) -> None:
        """Message control was written. Raises HostError."""
        table = self.vectors.table
        enabled = bool(value & 0x8000)
        if not enabled:
            self._off()
        effects = table.set_control(enabled=enabled, masked=bool(value & 0x4000))
        self.vectors.apply(effects)
        if enabled and not self._on:
            opened = {i for i in range(table.vectors) if not table.route(i).masked}
            fds = [self._share(i) if i in opened else -1 for i in range(table.vectors)]
            self._source.set_irqs(Irq.MSIX, 0, fds)
            self._on, self._signalled = True, opened
        self.connect(range(table.vectors))

    def connect(self, indices: Iterable[int]) -> None:
        """These vectors may have been opened: have the device signal them. Raises HostError."""
        if not self._on:
            return
        table = self.vectors.table
        for index in indices:
            if index not in self._signalled and not table.route(index).masked:
                self._source.set_irqs(Irq.MSIX, index, [self._share(index)])
                self._signalled.add(index)

    def close(self) -> None:
        """Off, and lines given back. Raises HostError."""
        try:
            self._off()
        finally:
            self.vectors.close()

    def _off(self) -> None:
        if self._on:
            self._on = False
            self._signalled = set()
            self._source.irqs_off(Irq.MSIX)

    def _share(self, index: int) -> int:
        fd = self.vectors.share(index)
        return -1 if fd is None else fd


class _TableRegisters(MsixTableRegisters):
    """The table, whose writes also reach the device's side."""

    def __init__(self, interrupts: MsixInterrupts) -> None:
        super().__init__(interrupts.vectors)
        self._interrupts = interrupts

    def write(self, offset: int, data: bytes) -> None:
        """Program or mask a vector."""
        super().write(offset, data)
        index = offset // ENTRY_SIZE
        if index < self._interrupts.vectors.table.vectors:
            self._interrupts.connect((index,))


def _fd(line: MsiLine) -> int:
    return -1 if line.fd is None else line.fd
