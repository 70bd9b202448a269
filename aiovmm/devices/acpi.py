"""The registers of hardware-reduced ACPI: sleep and reset control, power management timer, generic event device.

The state machines are `PmCounter` and `GedEvents`; the control register has no state. The shells carry the effects out.

Sources: ACPI specification 6.4, sections 4.8.3.3 (PM timer), 4.8.3.7 (sleep control and status), 4.8.3.6 (reset register), 5.6.9
(Interrupt-signaled events: the Generic Event Device ACPI0013). Addresses, values and event bits are the reference monitor's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.irq import LevelLine
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["AcpiControl", "Ged", "GedEvent", "GedEvents", "PmCounter", "PmTimer"]

_RESET_VALUE = 0x01  # FADT RESET_VALUE
_SLEEP_ENABLE = 0x20
_SLEEP_TYPE_SHIFT, _SLEEP_TYPE_MASK, _S5 = 2, 0x07, 5

PM_TIMER_HZ = 3_579_545


class AcpiControl:
    """A BusDevice of 1 byte at port 0x600: FADT RESET_REG, SLEEP_CONTROL_REG and SLEEP_STATUS_REG in one.

    Reads as 0: WAK_STS is never set, since nothing sleeps but to end. Linux writes WAK_STS (0x80) before it sleeps; that, and
    sleep types other than S5, do nothing.
    """

    SIZE: ClassVar[int] = 1

    def __init__(self, on_reset: Callable[[str], None], on_shutdown: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._on_shutdown = on_shutdown

    def read(self, offset: int, size: int) -> bytes:
        """Sleep status."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Reset or sleep."""
        value = data[0]
        if value == _RESET_VALUE:
            self._on_reset("ACPI reset register")
        elif value & _SLEEP_ENABLE and value >> _SLEEP_TYPE_SHIFT & _SLEEP_TYPE_MASK == _S5:
            self._on_shutdown()


@dataclass()
class PmCounter:
    """The power management timer: counts PM_TIMER_HZ from `origin_ns`, by a monotonic clock in nanoseconds, and wraps."""

    bits: int = 32  # 32 if FADT TMR_VAL_EXT is set, else 24
    origin_ns: int = 0

    def value(self, now_ns: int) -> int:
        """The count at `now_ns`."""
        return (now_ns - self.origin_ns) * PM_TIMER_HZ // 1_000_000_000 & ((1 << self.bits) - 1)

    def set(self, value: int, now_ns: int) -> None:
        """Go on counting from `value` at `now_ns`."""
        self.origin_ns = now_ns - -(-value * 1_000_000_000 // PM_TIMER_HZ)


class PmTimer:
    """A BusDevice of 4 bytes at port 0x608, read-only. `clock_ns` is monotonic; `bits` is 24 or 32."""

    SIZE: ClassVar[int] = 4

    def __init__(self, clock_ns: Callable[[], int], bits: int = 32) -> None:
        self._clock_ns = clock_ns
        self._counter = PmCounter(bits, clock_ns())

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of the counter that lie there."""
        value = self._counter.value(self._clock_ns()) >> 8 * offset
        return value.to_bytes(8, "little")[:size]

    def write(self, offset: int, data: bytes) -> None:
        """Ignored."""

    def snapshot(self) -> int:
        """The count, to give to `restore`."""
        return self._counter.value(self._clock_ns())

    def restore(self, state: int) -> None:
        """Go on counting from `state`."""
        self._counter.set(state, self._clock_ns())

    def save(self) -> State:
        """The count."""
        return {"count": self.snapshot()}

    def load(self, state: State) -> None:
        """Go on counting from there. Raises SnapshotError."""
        fields = Fields(state, "PM timer")
        count = fields.number("count", 0, (1 << self._counter.bits) - 1)
        fields.end()
        self.restore(count)


class GedEvent:
    """Bits of the GED's register, as the DSDT's _EVT method takes them apart."""

    CPU = 1
    MEMORY = 2
    PCI = 4
    POWER_BUTTON = 8
    VM_GENERATION = 16


@dataclass()
class GedEvents:
    """Events that the guest has not fetched; the line is asserted while there are any."""

    pending: int = 0

    def notify(self, event: int) -> None:
        """Add an event."""
        self.pending |= event

    def fetch(self) -> int:
        """All pending events at once; none is left."""
        value, self.pending = self.pending, 0
        return value


class Ged:
    """A BusDevice of 1 byte, in port or memory space: the generic event device. Reading fetches; writes are ignored.

    The line is level-triggered: it falls when the guest has fetched all, and an event that comes after keeps its own.
    """

    SIZE: ClassVar[int] = 1

    def __init__(self, irq: LevelLine) -> None:
        self._irq = irq
        self._events = GedEvents()

    def press_power_button(self) -> None:
        """Ask the guest to shut down. Idempotent until the guest has noticed."""
        self.notify(GedEvent.POWER_BUTTON)

    def notify(self, event: int) -> None:
        """Tell the guest of an event."""
        self._events.notify(event)
        self._irq.set_level(True)

    def read(self, offset: int, size: int) -> bytes:
        """The pending events in the first byte."""
        value = self._events.fetch()
        self._irq.set_level(False)
        return value.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Ignored."""

    def snapshot(self) -> int:
        """The pending events, to give to `restore`."""
        return self._events.pending

    def restore(self, state: int) -> None:
        """Put pending events back. The level of the pin comes with the I/O APIC's own state."""
        self._events.pending = state

    def save(self) -> State:
        """The pending events."""
        return {"pending": self.snapshot()}

    def load(self, state: State) -> None:
        """As `restore`. Raises SnapshotError."""
        fields = Fields(state, "GED")
        pending = fields.number("pending", 0, 0xFF)
        fields.end()
        self.restore(pending)
