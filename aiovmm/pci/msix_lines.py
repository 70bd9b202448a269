"""MSI-X vectors as interrupt lines: carries the pure table's effects out on the machine's MSI lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiovmm.bus import FastPage, Policy
from aiovmm.pci.msix import Deliver, MsixTable, Route
from aiovmm.pci.services import LineChange, MsiLine, PciServices

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
    """All vectors of a function. A line is made when its vector is first opened, or when its fd is asked for.

    To program a line takes KVM milliseconds, so it is done off the loop, and only where it has to be: a masked vector's line
    stays as it is unless somebody signals it behind our back, since nothing of ours goes through it.

        masked --opened, line has the message already--------------------> open
        masked --opened--> opening, triggers are held --line programmed--> open, what was held is sent
    """

    def __init__(self, table: MsixTable, services: PciServices, name: str) -> None:
        self.table = table
        self._services = services
        self._name = name
        self.open: dict[int, Callable[[], None]] = {}  # `pulse` of the lines whose vectors are not masked
        self._opening: dict[int, Route] = {}
        self._held: set[int] = set()  # of those that are opening: triggered meanwhile
        self._lines: dict[int, MsiLine] = {}
        self._asked: dict[int, Route] = {}  # what each line was last to be
        self._wired: dict[int, Route] = {}  # and is, if it is that
        self._shared: set[int] = set()  # vectors that somebody signals through the fd

    def vector(self, index: int) -> MsixVector:
        """Vector `index`, which must be below the table's size."""
        return MsixVector(self, index)

    def pulse(self, index: int) -> None:
        """Trigger vector `index`."""
        send = self.open.get(index)
        if send is not None:
            send()
        elif index in self._opening:
            self._held.add(index)
        else:  # pending; without an effect if the host could not make a line, which was an error when the guest opened it
            self.table.trigger(index)

    def share(self, index: int) -> int | None:
        """The eventfd of vector `index`. What is signalled through it while the vector is masked waits in it, so a line that has
        stayed as it was when the vector was masked is not given out: another takes its place, which nothing is joined to yet."""
        if index not in self._shared:
            if index in self._asked and index not in self.open and index not in self._opening:
                del self._asked[index]
                self._wired.pop(index, None)
                self._services.off_loop(self._lines.pop(index).close)
            self._shared.add(index)
        return self._line(index).fd

    def apply(self, effects: list[Route | Deliver]) -> Awaitable[None] | None:
        """Do what the table says. The result is done when the lines are."""
        changed = []
        for effect in effects:
            if isinstance(effect, Deliver):
                self.pulse(effect.index)
            elif self._program(effect):
                changed.append(effect)
        return self._wire(changed)

    def pending_bits(self) -> bytes:
        """The pending bit array, with what was signalled through shared fds while masked."""
        bits = bytearray(self.table.pending)
        for index in self._shared:
            if self._lines[index].pending:
                bits[index // 8] |= 1 << index % 8
        return bytes(bits)

    def close(self) -> Awaitable[None] | None:
        """Give all lines back."""
        lines = list(self._lines.values())
        for known in (self.open, self._opening, self._held, self._lines, self._asked, self._wired, self._shared):
            known.clear()
        return self._services.off_loop(partial(_close_all, lines)) if lines else None

    def _line(self, index: int) -> MsiLine:
        line = self._lines.get(index)
        if line is None:
            line = self._lines[index] = self._services.msi_line(f"{self._name} vector {index}")
        return line

    def _program(self, route: Route) -> bool:
        """A vector was masked, opened, or changed. Whether its line has to be programmed for that."""
        index = route.index
        self.open.pop(index, None)
        self._opening.pop(index, None)
        if route.masked:
            if index in self._held:  # too late for it
                self._held.discard(index)
                self.table.trigger(index)
            return index in self._shared
        line = self._line(index)
        if self._wired.get(index) == route:
            self.open[index] = line.pulse
            return False
        self._opening[index] = route
        return True

    def _wire(self, routes: list[Route]) -> Awaitable[None] | None:
        if not routes:
            return None
        changes = [LineChange(self._lines[r.index], r.address, r.data, r.masked) for r in routes]
        for route in routes:
            self._asked[route.index] = route
            self._wired.pop(route.index, None)
        return self._services.off_loop(partial(self._services.set_lines, changes), partial(self._wired_up, routes))

    def _wired_up(self, routes: list[Route], error: BaseException | None) -> None:
        if error is not None and len(routes) > 1:  # one that the host refuses keeps no other from its line
            for route in routes:
                if self._asked.get(route.index) is route:
                    self._wire([route])
            return
        for route in routes:
            index = route.index
            if error is None and self._asked.get(index) is route:
                self._wired[index] = route
            if self._opening.get(index) is not route:  # masked or changed again since
                continue
            del self._opening[index]
            if error is None:
                self.open[index] = self._lines[index].pulse
            if index in self._held:
                self._held.discard(index)
                self.pulse(index)


def _close_all(lines: list[MsiLine]) -> None:
    for line in lines:
        line.close()


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

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Program or mask a vector. The result is done when its line is."""
        return self._vectors.apply(self._vectors.table.write_table(offset, data))


class MsixPendingBits:
    """The pending bit array in a BAR: read only."""

    def __init__(self, vectors: MsixVectors) -> None:
        self._vectors = vectors

    def read(self, offset: int, size: int) -> bytes:
        """Bits of the masked vectors that wait."""
        return self._vectors.pending_bits()[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Dropped: software cannot write pending bits (PCI 3.0, 6.8.2.10)."""
