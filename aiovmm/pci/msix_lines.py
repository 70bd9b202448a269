"""MSI-X vectors as interrupt lines: carries the pure table's effects out on the machine's MSI lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.bus import FastPage, Policy
from aiovmm.pci.msix import ENTRY_SIZE, Deliver, MsixTable, Route
from aiovmm.pci.services import LineChange, MsiLine, PciServices, Place

if TYPE_CHECKING:
    from aiovmm.runtime.plain import State

__all__ = ["MsixPendingBits", "MsixTableRegisters", "MsixVector", "MsixVectors"]


_OPEN = bytes([Policy.SHADOW_READ]) * ENTRY_SIZE
_LATCHED = Policy.SHADOW_READ | Policy.LATCH_WRITE
_WORD = bytes([_LATCHED | Policy.POSTED_DWORD | Policy.IGNORE_WRITE, *[_LATCHED] * 3])
_MASKED = _WORD * 3 + bytes([Policy.SHADOW_READ]) * 4  # the message's three words, then the vector's control


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
    """All vectors of a function.

    What is sent here goes to the machine as a message, so an open vector costs neither a descriptor nor a route, and nothing is
    asked of KVM when it is masked or opened. Only a vector that somebody else signals (another process, the host's kernel) has a
    line, from when its fd was asked for. To program one takes KVM milliseconds, so it is done off the loop:

        line cut off --opened--> joined soon: what is signalled meanwhile waits in the eventfd
        joined --masked--> cut off soon, and the guest's access waits for it

    `failed` hears that the host cannot join a line that was asked for while its vector was open; without it that is raised in
    the event loop's handler. Not after `close`: then nobody is there whose line it would be.
    """

    def __init__(
        self,
        table: MsixTable,
        services: PciServices,
        name: str,
        place: Place,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self.table = table
        self._services = services
        self._name = name
        self._place = place
        self._failed = failed
        self.open: dict[int, Callable[[], None]] = {}  # what sends the messages of vectors that are not masked
        self.fast: FastPage | None = None  # of the table, where it is on the bus
        self._lines: dict[int, MsiLine] = {}  # of those that somebody signals
        self._asked: dict[int, Route] = {}  # what each line was last to be

    def vector(self, index: int) -> MsixVector:
        """Vector `index`, which must be below the table's size."""
        return MsixVector(self, index)

    def pulse(self, index: int) -> None:
        """Trigger vector `index`."""
        send = self.open.get(index)
        if send is not None:
            send()
        else:
            self.table.trigger(index)

    def share(self, index: int) -> int | None:
        """The eventfd of vector `index`. What is signalled through it while the vector is masked waits in it."""
        line = self._lines.get(index)
        if line is None:
            line = self._lines[index] = self._services.msi_line(f"{self._name} vector {index}", self._place)
            if index in self.open:
                self._wire([self.table.route(index)], self._not_joined)
        return line.fd

    def apply(self, effects: list[Route | Deliver]) -> Awaitable[None] | None:
        """Do what the table says. The result is done when the lines are."""
        changed = []
        for effect in effects:
            if isinstance(effect, Deliver):
                self.pulse(effect.index)
                continue
            if effect.masked:
                self.open.pop(effect.index, None)
            else:
                self.open[effect.index] = self._services.message(effect.address, effect.data, self._place)
            self._let_write(effect.index)
            if effect.index in self._lines:
                changed.append(effect)
        return self._wire(changed)

    def shown(self) -> FastPage:
        """The table for the bus. The run loop serves reads, and writes of the messages of masked vectors: who opens one
        waits, and then the message is looked at."""
        if self.fast is None:
            table = self.table.table
            self.fast = FastPage(len(table), table, bytearray(_MASKED * self.table.vectors))
            for index in self.open:
                self._let_write(index)
        return self.fast

    def _let_write(self, index: int) -> None:
        if self.fast is not None:
            at = index * ENTRY_SIZE
            self.fast.policy[at : at + ENTRY_SIZE] = _OPEN if index in self.open else _MASKED

    def pending_bits(self) -> bytes:
        """The pending bit array, with what was signalled through shared fds while masked."""
        bits = bytearray(self.table.pending)
        for index, line in self._lines.items():
            if index not in self.open and line.pending:
                bits[index // 8] |= 1 << index % 8
        return bytes(bits)

    def save(self) -> State:
        """The table's, with what was signalled through shared fds while masked."""
        return {**self.table.save(), "pending": self.pending_bits()}

    def load(self, state: State) -> Awaitable[None] | None:
        """The result is done when the lines are. Raises SnapshotError."""
        return self.apply(self.table.load(state))

    def close(self) -> Awaitable[None] | None:
        """Give all lines back."""
        lines = list(self._lines.values())
        for known in (self.open, self._lines, self._asked):
            known.clear()
        self._failed = _nobody
        return self._services.off_loop(partial(_close_all, lines)) if lines else None

    def _wire(
        self, routes: list[Route], failed: Callable[[BaseException], None] | None = None
    ) -> Awaitable[None] | None:
        if not routes:
            return None
        changes = [LineChange(self._lines[r.index], r.address, r.data, r.masked) for r in routes]
        for route in routes:
            self._asked[route.index] = route
        work = partial(self._services.set_lines, changes)
        return self._services.off_loop(work, partial(self._wired, routes, failed))

    def _wired(
        self, routes: list[Route], failed: Callable[[BaseException], None] | None, error: BaseException | None
    ) -> None:
        if error is None:
            return
        if failed is not None:
            failed(error)
        elif len(routes) > 1:  # one that the host refuses keeps no other from its line
            for route in routes:
                if self._asked.get(route.index) is route:
                    self._wire([route])

    def _not_joined(self, error: BaseException) -> None:
        if self._failed is None or not isinstance(error, Exception):
            raise error
        self._failed(error)


def _nobody(_error: Exception) -> None:
    """Hears of it."""


def _close_all(lines: list[MsiLine]) -> None:
    for line in lines:
        line.close()


class MsixTableRegisters:
    """The table in a BAR. A write that may open a vector, or is of one that is open, waits."""

    def __init__(self, vectors: MsixVectors) -> None:
        self._vectors = vectors
        self.fast = vectors.shown()

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
