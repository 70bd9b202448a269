"""MSI-X vectors as interrupt lines: carries the pure table's effects out on the machine's MSI lines."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.bus import FastPage, Policy
from aiovmm.pci.msix import Deliver, MsixTable, Route
from aiovmm.pci.services import MsiLine, PciServices

__all__ = ["MsixPendingBits", "MsixTableRegisters", "MsixVector", "MsixVectors"]


class MsixVector:
    """One vector as an IrqLine. `fd`, once asked for, may be signalled by others instead of `pulse()`."""

    def __init__(self, owner: MsixVectors, index: int) -> None:
        self._owner = owner
        self._index = index

    def pulse(self) -> None:
        """Send the message, or set the pending bit while masked."""
        self._owner.pulse(self._index)

    @property
    def fd(self) -> int | None:
        """An eventfd that does the same. Raises HostError if none can be made."""
        return self._owner.share(self._index)


class MsixVectors:
    """All vectors of a function. A line is made when its vector is first opened, or when its fd is asked for."""

    def __init__(self, table: MsixTable, services: PciServices, name: str) -> None:
        self.table = table
        self._services = services
        self._name = name
        self.open: dict[int, Callable[[], None]] = {}  # `pulse` of the lines whose vectors are not masked
        self._lines: dict[int, MsiLine] = {}
        self._shared: set[int] = set()  # vectors that somebody signals through the fd, behind our back

    def vector(self, index: int) -> MsixVector:
        """Vector `index`, which must be below the table's size."""
        return MsixVector(self, index)

    def pulse(self, index: int) -> None:
        """Trigger vector `index`."""
        send = self.open.get(index)
        if send is not None:
            send()
        else:  # pending; without an effect if the host could not make a line, which was an error when the guest opened it
            self.table.trigger(index)

    def share(self, index: int) -> int | None:
        """The eventfd of vector `index`."""
        if index not in self._lines:
            self._program(self.table.route(index))
        self._shared.add(index)
        return self._lines[index].fd

    def apply(self, effects: list[Route | Deliver]) -> None:
        """Do what the table says."""
        for effect in effects:
            if isinstance(effect, Route):
                self._program(effect)
            else:
                self._lines[effect.index].pulse()

    def pending_bits(self) -> bytes:
        """The pending bit array, with what was signalled through shared fds while masked."""
        bits = bytearray(self.table.pending)
        for index in self._shared:
            if self._lines[index].pending:
                bits[index // 8] |= 1 << index % 8
        return bytes(bits)

    def close(self) -> None:
        """Give all lines back."""
        for line in self._lines.values():
            line.close()
        self.open.clear()
        self._lines.clear()
        self._shared.clear()

    def _program(self, route: Route) -> None:
        line = self._lines.get(route.index)
        if line is None:
            line = self._lines[route.index] = self._services.msi_line(f"{self._name} vector {route.index}")
        self.open.pop(route.index, None)
        line.set(route.address, route.data, route.masked)
        if not route.masked:
            self.open[route.index] = line.pulse


class MsixTableRegisters:
    """The table in a BAR. Reads are served by the run loop; a write may open a vector, so it waits."""

    def __init__(self, vectors: MsixVectors) -> None:
        self._vectors = vectors
        table = vectors.table.table
        self.fast = FastPage(len(table), table)
        self.fast.policy[:] = bytes([Policy.SHADOW_READ]) * len(table)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of the table's bytes."""
        return bytes(self._vectors.table.table[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Program or mask a vector."""
        self._vectors.apply(self._vectors.table.write_table(offset, data))


class MsixPendingBits:
    """The pending bit array in a BAR: read only."""

    def __init__(self, vectors: MsixVectors) -> None:
        self._vectors = vectors

    def read(self, offset: int, size: int) -> bytes:
        """Bits of the masked vectors that wait."""
        return self._vectors.pending_bits()[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Dropped: software cannot write pending bits (PCI 3.0, 6.8.2.10)."""
