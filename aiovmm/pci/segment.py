"""One PCI segment: bus 0 with a host bridge and 31 slots, its ECAM, and the BARs of its functions on the VM's bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from aiovmm.bus import FastPage, Policy, Range, Space
from aiovmm.errors import UsageError
from aiovmm.pci.aperture import Aperture, BarId, Placement
from aiovmm.pci.bar import BARS_END, FIRST_BAR, Bar, BarKind
from aiovmm.pci.config_space import CAPABILITIES_END, COMMAND, SIZE, overlaps
from aiovmm.pci.function import PciFunction, together
from aiovmm.pci.host_bridge import host_bridge
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.services import PciServices

if TYPE_CHECKING:
    from aiovmm.runtime.plain import State

__all__ = ["SLOTS", "PciSegment"]

SLOTS = 32
_SLOT_SHIFT = 15  # ECAM address: bus 27:20, device 19:15, function 14:12 (PCI Express Base 4.0, 7.2.2)


class PciSegment:
    """Slots, addresses and configuration accesses of one segment. Slot 0 holds the host bridge, unless it is `bare`: then it is
    there for who asks for it by its number."""

    def __init__(self, plan: SegmentPlan, services: PciServices, *, bare: bool = False) -> None:
        self.plan = plan
        self.aperture = Aperture(plan)
        self._services = services
        self._slots: dict[int, PciFunction] = {}
        self._reserved: set[int] = set()
        self._shunned: set[int] = set()
        self._ecam: dict[int, Range] = {}
        self._mapped: dict[BarId, list[Range]] = {}  # what each BAR has on the bus
        self._last: dict[BarId, tuple[PciFunction, Bar, int]] = {}  # where each answers, or last did
        self._awaited: dict[int, Callable[[], None]] = {}  # by slot: who waits for the guest to look at it
        self.bare = True
        if not bare:
            self.add(host_bridge(), slot=0)
            self.bare = False

    def add(self, function: PciFunction, slot: int | None = None) -> int:
        """Plug `function` in (the first free slot, or `slot`), give its BARs addresses. Its slot number; UsageError."""
        slot = self.free_slot(slot)
        try:
            self._assign(slot, function)
        except UsageError:
            self._release(slot, function)
            raise
        self._slots[slot] = function
        function.place.segment, function.place.slot = self.plan.number, slot
        self._ecam[slot] = self._services.bus.add(self._ecam_range(slot, function))
        return slot

    def free_slot(self, slot: int | None = None) -> int:
        """`slot`, or the first one, if nothing is in it. Raises UsageError."""
        if slot is None:
            slot = next((slot for slot in self._empty if slot not in self._shunned), None)
            slot = next(self._empty, None) if slot is None else slot
            if slot is None:
                raise UsageError(f"PCI segment {self.plan.number} is full: {SLOTS} slots")
        if slot == 0 and not self.bare:
            raise UsageError(
                f"PCI segment {self.plan.number}: slot 0 has the host bridge, where no device has it from the start"
            )
        if not 0 <= slot < SLOTS or slot in self._slots:
            raise UsageError(f"PCI segment {self.plan.number}: slot {slot} is taken or does not exist")
        return slot

    @property
    def _empty(self) -> Iterator[int]:
        """Slots that may be given to who asks for none."""
        return (slot for slot in range(1, SLOTS) if slot not in self._slots and slot not in self._reserved)

    async def remove(self, slot: int) -> None:
        """Unplug what is in `slot`: the guest sees it no more, then it is closed. Raises UsageError if it is empty."""
        function = self._slots.pop(slot, None)
        if function is None:
            raise UsageError(f"PCI segment {self.plan.number} has nothing in slot {slot}")
        self._awaited.pop(slot, None)
        waits: list[Awaitable[None]] = []
        with self._services.bus.batch():
            self._services.bus.remove(self._ecam.pop(slot))
            for bar in function.bars:
                key = BarId(slot, bar.index)
                changes = self.aperture.claim(key, bar.space, None, bar.size)
                waits += self._place(changes, gone={slot: function})
                self._last.pop(key, None)
        self._release(
            slot, function
        )  # at once: whoever comes into the slot meanwhile has addresses under the same names
        try:
            if (pending := together(*waits)) is not None:
                await pending
        finally:
            await function.close()

    async def close(self) -> None:
        """Unplug everything. Idempotent. Functions end side by side: one that is slow (a back end that does not answer) takes no
        more time than the slowest, and one that fails leaves no other open."""
        slots = sorted(self._slots, reverse=True)
        if len(slots) == 1:  # the bridge, of a guest without devices: no task for that
            await self.remove(slots[0])
            return
        for outcome in await asyncio.gather(*(self.remove(slot) for slot in slots), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def reserve(self, slot: int) -> None:
        """Keep `slot` for one who asks for it by its number."""
        self._reserved.add(slot)

    def shun(self, slot: int) -> None:
        """Give `slot`, which is empty, to nobody who has not asked for it by its number, as long as others are free."""
        self._shunned.add(slot)

    def welcome(self, slot: int) -> None:
        """Shun it no more. Idempotent."""
        self._shunned.discard(slot)

    def when_looked_at(self, slot: int, callback: Callable[[], None]) -> None:
        """Call it once the guest has changed the configuration space of what is in `slot`, as all systems do that take a
        function up: to learn how large its BARs are, at least."""
        self._awaited[slot] = callback

    def function(self, slot: int) -> PciFunction | None:
        """What is in `slot`."""
        return self._slots.get(slot)

    @property
    def functions(self) -> dict[int, PciFunction]:
        """Slot -> function, the host bridge included."""
        return dict(self._slots)

    def read_config(self, slot: int, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """A configuration read; ones where there is no function. See BusDevice.read for the result."""
        function = self._slots.get(slot)
        return b"\xff" * size if function is None else function.read_config(offset, size)

    def write_config(self, slot: int, offset: int, data: bytes) -> Awaitable[None] | None:
        """A configuration write, BARs moved as it says. See BusDevice.write for the result."""
        function = self._slots.get(slot)
        if function is None:
            return None
        if self._awaited and (looked := self._awaited.pop(slot, None)) is not None:
            looked()
        result = function.write_config(offset, data)
        if overlaps(offset, len(data), COMMAND, 2) or overlaps(offset, len(data), FIRST_BAR, BARS_END - FIRST_BAR):
            return together(result, *self._move_bars(slot, function))
        return result

    def save(self) -> State:
        """All functions by their slots, and who has which addresses. They are suspended. Raises SnapshotError."""
        from aiovmm.pci.saved import save_segment

        return save_segment(self._slots, self.aperture)

    async def load(self, state: State) -> None:
        """Into functions that have been plugged in as they were. Done when their BARs are where they were. Raises
        SnapshotError."""
        from aiovmm.pci.saved import has_function, load_functions, read_claims

        if not self.bare and not has_function(state, 0, self.plan.number):  # whose device had gone again
            self.bare = True
            del self._slots[0]
            self._services.bus.remove(self._ecam.pop(0))
        await load_functions(state, self._slots, self.plan.number)
        claims, served = read_claims(state, self._slots)
        with self._services.bus.batch():
            waits = self._place(self.aperture.load(claims, served))
        if (pending := together(*waits)) is not None:
            await pending

    def _ecam_range(self, slot: int, function: PciFunction) -> Range:
        """A page on the bus: the run loop answers reads from the configuration bytes, save where reading does something, and
        in the extended space, of which Linux looks at one word, the host bridge's."""
        fast = FastPage(
            SIZE, function.config.data, _ecam_policy(tuple(function.live_registers), function.still_registers)
        )
        base = self.plan.ecam_base + (slot << _SLOT_SHIFT)
        return Range(Space.MMIO, base, SIZE, _EcamPage(self, slot), f"ecam {function.name}", fast)

    def _assign(self, slot: int, function: PciFunction) -> None:
        for bar in function.bars:
            address = self.aperture.allocate(
                BarId(slot, bar.index), bar.space, bar.size, bar.alignment, wide=bar.kind is BarKind.MEM64
            )
            bar.assign(function.config, address)

    def _release(self, slot: int, function: PciFunction) -> None:
        for bar in function.bars:
            self.aperture.forget(BarId(slot, bar.index))

    def _move_bars(self, slot: int, function: PciFunction) -> list[Awaitable[None]]:
        waits: list[Awaitable[None]] = []
        with self._services.bus.batch():
            for bar in function.bars:
                at = bar.decoded(function.config)
                waits += self._place(self.aperture.claim(BarId(slot, bar.index), bar.space, at, bar.size))
        return waits

    def _place(self, changes: list[Placement], gone: dict[int, PciFunction] | None = None) -> list[Awaitable[None]]:
        """Carry them out; what is still to be waited for."""
        waits: list[Awaitable[None] | None] = []
        for change in changes:
            function = (gone or {}).get(change.owner.slot) or self._slots[change.owner.slot]
            bar = next(b for b in function.bars if b.index == change.owner.bar)
            if change.base is None:
                waits.append(function.bar_moved(bar, None))
                self._unmap(change.owner)
            elif self._map(change.owner, function, bar, change.base):
                waits += self._displace(change.owner, bar, change.base)
                self._last[change.owner] = function, bar, change.base
                waits.append(function.bar_moved(bar, change.base))
        return [wait for wait in waits if wait is not None]

    def _displace(self, owner: BarId, bar: Bar, base: int) -> list[Awaitable[None] | None]:
        """Whoever last answered where `bar` does now, and does no more, leaves nothing of itself there."""
        waits = []
        for key, (function, other, last) in list(self._last.items()):
            if key != owner and other.space == bar.space and last < base + bar.size and base < last + other.size:
                del self._last[key]
                waits.append(function.bar_displaced(other))
        return waits

    def _map(self, key: BarId, function: PciFunction, bar: Bar, base: int) -> bool:
        """Put the BAR's regions on the bus; False, and none of them there, if something that is no BAR is in the way."""
        mapped = self._mapped.setdefault(key, [])
        for region in function.regions:
            if region.bar != bar.index:
                continue
            rng = Range(bar.space, base + region.offset, region.size, region.device, region.name, region.fast)
            try:
                mapped.append(self._services.bus.add(rng))
            except UsageError:  # the machine put it into our window without reserving it: the guest's BAR loses
                self._unmap(key)
                return False
        return True

    def _unmap(self, key: BarId) -> None:
        for rng in self._mapped.pop(key, []):
            self._services.bus.remove(rng)


@lru_cache(maxsize=64)
def _ecam_policy(live: tuple[tuple[int, int], ...], still: bytes | None) -> bytes:
    """Of a page whose reads do something in `live` registers only (offset, size). One for all functions of the process that have
    the same."""
    policy = bytearray([Policy.SHADOW_READ]) * CAPABILITIES_END + bytes([Policy.SYNC]) * (SIZE - CAPABILITIES_END)
    for at, dropped in enumerate(still or b""):
        policy[at] |= dropped
    for offset, size in live:
        policy[offset : offset + size] = bytes([Policy.SYNC]) * size
    return bytes(policy)


class _EcamPage:
    """Configuration space of one slot on the bus."""

    def __init__(self, segment: PciSegment, slot: int) -> None:
        self._segment = segment
        self._slot = slot

    def read(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """Only registers whose reads do something come here; see FastPage."""
        return self._segment.read_config(self._slot, offset, size)

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """A configuration write."""
        return self._segment.write_config(self._slot, offset, data)
