"""The I/O APIC as a pure state machine: register accesses, pin levels and end-of-interrupt go in, messages come out.

Theory of operation. A level-triggered pin delivers when it is asserted, unmasked and Remote IRR is clear; delivery sets Remote
IRR ("when the local APIC accepts", 3.2.4, bit 14), the end of the interrupt clears it and looks at the pin again. A message
that no local APIC took leaves it clear, for no end will come: the pin delivers again when its entry is written, or at the end
of another interrupt of that vector. An edge-triggered pin delivers at the rising edge. An edge on a masked pin is lost, not
kept: the data sheet says so (3.2.4, bit 16), KVM's own I/O APIC gives no such edge at unmasking either, and Linux knows it (it
leaves an edge pin unmasked when a driver disables it, and resends in software). A kept one would go off in the face of whoever
next uses the pin. Polarity is stored and has no effect: pins here are logical.

Delivery Status is always idle, for a message is never held up on its way.

Routes. The local APICs tell the monitor of the end of an interrupt only if the routing table of the machine's interrupt
controller has that vector as level-triggered. So such an entry has a `Route`, which comes before its first message, and stays
when the entry is masked while an interrupt of it is in service. Edge-triggered entries need none.

Source: Intel 82093AA I/O APIC data sheet (290566-001, May 1996), section 3; the sections above are its.
"""

from __future__ import annotations

from aiovmm.devices.ioapic.entry import (
    LEVEL_TRIGGERED,
    MASKED,
    READ_ONLY,
    REMOTE_IRR,
    RESET,
    WRITABLE,
    message_address,
    message_data,
    vector_of,
)
from aiovmm.errors import SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["PINS", "Effect", "Inject", "IoApicRegisters", "IoApicState", "Route"]

PINS = 24
VERSION = (PINS - 1) << 16 | 0x11  # 82093AA; from 0x20 on there would be an EOI register

_ID, _VERSION, _ARBITRATION, _TABLE = 0, 1, 2, 0x10
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Inject:
    """Send a message to the local APICs. `pin` is level-triggered: if none of them takes it, `refused` has to know."""

    address: int
    data: int
    pin: int | None = None


@dataclass(frozen=True)
class Route:
    """The message of level-triggered pin `pin` is now this; `data` None: the pin needs no route any more."""

    pin: int
    address: int = 0
    data: int | None = None


Effect = Inject | Route

_NO_ROUTES = tuple(Route(pin) for pin in range(PINS))


@dataclass(frozen=True)
class IoApicState:
    """All that an I/O APIC remembers."""

    identity: int = 0
    select: int = 0
    levels: int = 0  # a bit a pin
    entries: tuple[int, ...] = (RESET,) * PINS

    def save(self) -> State:
        """As plain data."""
        return {
            "identity": self.identity,
            "select": self.select,
            "levels": self.levels,
            "entries": list(self.entries),
        }

    @classmethod
    def read(cls, state: State) -> IoApicState:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "I/O APIC")
        identity, select = fields.number("identity", 0, 0x0F), fields.number("select", 0, 0xFF)
        levels, entries = fields.number("levels", 0, (1 << PINS) - 1), fields.numbers("entries", PINS)
        fields.end()
        for pin, entry in enumerate(entries):
            if entry & ~(WRITABLE | REMOTE_IRR) or (entry & REMOTE_IRR and not entry & LEVEL_TRIGGERED):
                raise SnapshotError(f"I/O APIC: no guest can give pin {pin} the entry {entry:#x}")
        return cls(identity, select, levels, tuple(entries))


class IoApicRegisters:
    """Methods return the effects that the owner carries out, in order."""

    def __init__(self) -> None:
        self._set(IoApicState())
        self._routes = list(_NO_ROUTES)

    def snapshot(self) -> IoApicState:
        """The whole state. Routes follow from it."""
        return IoApicState(self.identity, self.select, self.levels, tuple(self.entries))

    def restore(self, state: IoApicState) -> list[Effect]:
        """Put `state` in force; the effects set all routes, and nothing is delivered: the local APICs' state has that."""
        if len(state.entries) != PINS:
            raise ValueError(f"an I/O APIC has {PINS} entries, not {len(state.entries)}")
        self._set(state)
        pins = [
            pin
            for pin, entry in enumerate(self.entries)
            if entry & LEVEL_TRIGGERED or self._routes[pin] is not _NO_ROUTES[pin]
        ]
        return [effect for pin in pins for effect in self._route(pin)]

    def _set(self, state: IoApicState) -> None:
        self.identity, self.select, self.levels = state.identity, state.select, state.levels
        self.entries = list(state.entries)

    # -- registers

    def read(self) -> int:
        """Read IOWIN: 32 bits of the register that `select` names; reserved ones read as 0."""
        if self.select in (_ID, _ARBITRATION):
            return self.identity << 24  # the arbitration ID is loaded with the APIC's (3.2.3)
        if self.select == _VERSION:
            return VERSION
        pin, high = divmod(self.select - _TABLE, 2)
        if not 0 <= pin < PINS:
            return 0
        return self.entries[pin] >> 32 if high else self.entries[pin] & _LOW

    def write(self, value: int) -> list[Effect]:
        """Write IOWIN. Reserved and read-only registers ignore it."""
        if self.select == _ID:
            self.identity = value >> 24 & 0x0F
            return []
        pin, high = divmod(self.select - _TABLE, 2)
        if not 0 <= pin < PINS:
            return []
        before = self.entries[pin]
        written = value << 32 | before & _LOW if high else before >> 32 << 32 | value
        entry = written & WRITABLE | before & READ_ONLY
        if not entry & LEVEL_TRIGGERED:
            entry &= ~REMOTE_IRR  # undefined for edges; Linux makes an entry edge-triggered for a moment to clear it
        self.entries[pin] = entry
        return self._route(pin) + self._deliver_level(pin)

    # -- pins

    def set_level(self, pin: int, asserted: bool) -> list[Effect]:
        """Pin 0 to 23 is asserted or released."""
        bit = 1 << pin
        rising = asserted and not self.levels & bit
        self.levels = self.levels | bit if asserted else self.levels & ~bit
        if not rising:
            return []
        if self.entries[pin] & LEVEL_TRIGGERED:
            return self._deliver_level(pin)
        return self._deliver_edge(pin)

    def pulse(self, pin: int) -> list[Effect]:
        """An edge on a pin whose level is not kept. On a level-triggered pin it counts as asserted for that instant."""
        if not self.entries[pin] & LEVEL_TRIGGERED:
            return self._deliver_edge(pin)
        bit = 1 << pin
        held = self.levels & bit
        self.levels |= bit
        effects = self._deliver_level(pin)
        self.levels = self.levels & ~bit | held
        return effects

    def awaited(self) -> set[int]:
        """Vectors of level-triggered interrupts that were delivered and are not ended."""
        return {vector_of(entry) for entry in self.entries if entry & REMOTE_IRR}

    def in_service(self, vector: int) -> list[int]:
        """Pins whose level-triggered interrupt `vector` was delivered and is not ended."""
        return [p for p, entry in enumerate(self.entries) if entry & REMOTE_IRR and vector_of(entry) == vector]

    def end_of_interrupt(self, vector: int) -> list[Effect]:
        """A processor has ended level-triggered interrupt `vector`; all entries with it hear of it."""
        effects: list[Effect] = []
        for pin, entry in enumerate(self.entries):
            if entry & LEVEL_TRIGGERED and vector_of(entry) == vector:
                self.entries[pin] = entry & ~REMOTE_IRR
                effects += self._route(pin) + self._deliver_level(pin)
        return effects

    def sending(self, address: int, data: int) -> list[int]:
        """Level-triggered pins that have sent this message, whose end has not come."""
        message = address, data
        return [
            p for p, e in enumerate(self.entries) if e & REMOTE_IRR and (message_address(e), message_data(e)) == message
        ]

    def refused(self, pin: int) -> list[Effect]:
        """No local APIC took the last message of level-triggered `pin`."""
        self.entries[pin] &= ~REMOTE_IRR
        return self._route(pin)

    # -- inside

    def _deliver_edge(self, pin: int) -> list[Effect]:
        entry = self.entries[pin]
        return [] if entry & MASKED else [Inject(message_address(entry), message_data(entry))]

    def _deliver_level(self, pin: int) -> list[Effect]:
        entry = self.entries[pin]
        ready = entry & (LEVEL_TRIGGERED | MASKED | REMOTE_IRR) == LEVEL_TRIGGERED
        if not ready or not self.levels >> pin & 1:
            return []
        self.entries[pin] = entry | REMOTE_IRR
        return [Inject(message_address(entry), message_data(entry), pin)]

    def _route(self, pin: int) -> list[Effect]:
        entry = self.entries[pin]
        route = _NO_ROUTES[pin]
        if entry & LEVEL_TRIGGERED and (not entry & MASKED or entry & REMOTE_IRR):
            route = Route(pin, message_address(entry), message_data(entry))
        known = self._routes[pin]
        if route is known or route == known:  # mostly there is none
            return []
        self._routes[pin] = route
        return [route]
