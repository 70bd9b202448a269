"""MSI and MSI-X of a host device: its vectors signal eventfds, which are the irqfds of the guest's message lines."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

from aiovmm.pci.function import together
from aiovmm.pci.msix import ENTRY_SIZE, MsixTable
from aiovmm.pci.msix_lines import MsixPendingBits, MsixTableRegisters, MsixVectors
from aiovmm.pci.services import LineChange, MsiLine, PciServices, Place
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.calls import DeviceCalls
from aiovmm.vfio.msi import MsiCapability

__all__ = ["MsiInterrupts", "MsixInterrupts"]


class MsiInterrupts:
    """Follows the MSI capability: lines for the vectors that are on."""

    def __init__(
        self, capability: MsiCapability, calls: DeviceCalls, services: PciServices, name: str, place: Place
    ) -> None:
        self._capability = capability
        self._calls = calls
        self._services = services
        self._name = name
        self._place = place
        self._lines: list[MsiLine] = []
        self._signalled = 0  # vectors that the device signals

    def update(self) -> None:
        """A register of the capability was written. Raises HostError."""
        wanted = self._capability.vectors
        if wanted != self._signalled and self._signalled:
            self._off()
        while len(self._lines) < wanted:
            self._lines.append(self._services.msi_line(f"{self._name} MSI {len(self._lines)}", self._place))
        messages = [self._capability.message(vector) for vector in range(wanted)]
        self._calls.set_lines(
            [LineChange(line, m.address, m.data, m.masked) for line, m in zip(self._lines, messages, strict=False)]
        )
        if wanted != self._signalled:
            self._calls.turn_on(Irq.MSI, [_fd(line) for line in self._lines[:wanted]])
            self._signalled = wanted

    def close(self) -> None:
        """Off, and lines given back."""
        if self._signalled:
            self._off()
        self._calls.close_lines(self._lines)
        self._lines = []

    def _off(self) -> None:
        self._signalled = 0
        self._calls.turn_off(Irq.MSI)
        self._calls.set_lines([LineChange(line, 0, 0, True) for line in self._lines])


class MsixInterrupts:
    """Follows the MSI-X table. The device gets all vectors when MSI-X goes on, for not every kernel adds some later; each is
    given an eventfd when the guest first opens it."""

    def __init__(self, vectors: int, calls: DeviceCalls, services: PciServices, name: str, place: Place) -> None:
        self.vectors = MsixVectors(MsixTable(vectors), services, name, place, lambda error: calls.failed(error))
        self._calls = calls
        self._on = False
        self._signalled: set[int] = set()
        self.table = _TableRegisters(self)
        self.pending = MsixPendingBits(self.vectors)

    def control(self, value: int) -> Awaitable[None] | None:
        """Message control was written. The result is done when lines and device are. Raises HostError."""
        table = self.vectors.table
        enabled = bool(value & 0x8000)
        if not enabled:
            self._off()
        effects = table.set_control(enabled=enabled, masked=bool(value & 0x4000))
        lines = self.vectors.apply(effects)
        if enabled and not self._on:
            opened = {i for i in range(table.vectors) if not table.route(i).masked}
            fds = [self._share(i) if i in opened else -1 for i in range(table.vectors)]
            self._calls.turn_on(Irq.MSIX, fds)
            self._on, self._signalled = True, opened
        return together(lines, self.connect(range(table.vectors)))

    def connect(self, indices: Iterable[int]) -> Awaitable[None] | None:
        """These vectors may have been opened: have the device signal them. Done as `control`. Raises HostError."""
        if not self._on:
            return self._calls.asked()
        table = self.vectors.table
        for index in indices:
            if index not in self._signalled and not table.route(index).masked:
                self._calls.connect(Irq.MSIX, index, self._share(index))
                self._signalled.add(index)
        return self._calls.asked()

    def close(self) -> None:
        """Off, and lines given back."""
        self._off()
        self.vectors.close()

    def _off(self) -> None:
        if self._on:
            self._on = False
            self._signalled = set()
            self._calls.turn_off(Irq.MSIX)

    def _share(self, index: int) -> int:
        fd = self.vectors.share(index)
        return -1 if fd is None else fd


class _TableRegisters(MsixTableRegisters):
    """The table, whose writes also reach the device's side."""

    def __init__(self, interrupts: MsixInterrupts) -> None:
        super().__init__(interrupts.vectors)
        self._interrupts = interrupts

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Program or mask a vector. The result is done when its line is, and the device signals it."""
        lines = super().write(offset, data)
        index = offset // ENTRY_SIZE
        if index < self._interrupts.vectors.table.vectors:
            return together(lines, self._interrupts.connect((index,)))
        return lines


def _fd(line: MsiLine) -> int:
    return -1 if line.fd is None else line.fd
