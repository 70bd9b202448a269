"""The I/O APIC on the bus, and its pins as interrupt lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import ClassVar, Protocol

from aiovmm.bus import FastPage, Policy
from aiovmm.devices.ioapic.registers import PINS, Effect, Inject, IoApicRegisters, IoApicState
from aiovmm.errors import UsageError
from aiovmm.runtime.plain import State, once

__all__ = ["IoApic", "MsiSink", "PinLine"]

_SELECT, _WINDOW = 0x00, 0x10


class MsiSink(Protocol):
    """Where messages go: the local APICs. `vm` joins it to KVM."""

    refused: Callable[[int, int], None] | None
    """Called for a message, (address, data), that `signal` took on and no local APIC did."""

    def signal(self, address: int, data: int) -> bool:
        """Send one message-signalled interrupt. Whether a local APIC took it, or may yet."""

    def route(self, pin: int, address: int, data: int | None) -> Awaitable[None] | None:
        """Level-triggered pin `pin` (0 to 23) sends this message, so its end must be told to `IoApic.eoi`; None: no more.

        That may take a while: until the result is done, messages are held back.
        """

    def ended_in_vain(self) -> None:
        """`IoApic.eoi` was told of a vector that no pin has sent."""


class PinLine:
    """One pin, as an IrqLine and as a LevelLine."""

    def __init__(self, ioapic: IoApic, pin: int) -> None:
        self._ioapic = ioapic
        self._pin = pin

    def pulse(self) -> None:
        """One edge; lost if the pin is masked."""
        self._ioapic.pulse(self._pin)

    def set_level(self, asserted: bool) -> None:
        """Assert or release the pin."""
        self._ioapic.set_level(self._pin, asserted)


class IoApic:
    """A BusDevice of 256 bytes: IOREGSEL at 0, IOWIN at 0x10, nothing else.

    Registers are 32 bits wide and take nothing narrower (82093AA, 3.1): a write to IOWIN that is not 4 bytes at 0x10 (or 8,
    of which the first 4 count) is dropped; reads of any width see the bytes that lie there.

    IOREGSEL is a posted write: IOWIN always waits and the ring is in order, so an access to IOWIN finds the index that its vCPU
    wrote last. Guests share the pair under a lock, whose holder waits for IOWIN before it lets go.
    """

    SIZE: ClassVar[int] = 0x100
    PINS: ClassVar[int] = PINS

    def __init__(self, sink: MsiSink) -> None:
        self.fast = FastPage(self.SIZE)
        self.fast.policy[_SELECT : _SELECT + 4] = bytes([Policy.POSTED_WRITE | Policy.LAZY_WRITE] * 4)
        self._sink = sink
        sink.refused = self._refused
        self._registers = IoApicRegisters()
        self._on_end: dict[int, Callable[[], None]] = {}

    def line(self, pin: int) -> PinLine:
        """The line of pin 0 to 23. Raises UsageError for any other."""
        if not 0 <= pin < PINS:
            raise UsageError(f"the I/O APIC has pins 0 to {PINS - 1}, not {pin}")
        return PinLine(self, pin)

    def pulse(self, pin: int) -> None:
        """One edge on a pin."""
        self._do(self._registers.pulse(pin))

    def set_level(self, pin: int, asserted: bool) -> None:
        """Assert or release a pin."""
        self._do(self._registers.set_level(pin, asserted))

    def on_end(self, pin: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` at each end of an interrupt of level-triggered `pin`, before the pin's level is looked at again: the
        place for a source that is asserted until somebody has asked it anew. One a pin, or none."""
        if callback is None:
            self._on_end.pop(pin, None)
        else:
            self._on_end[pin] = callback

    def close(self) -> None:
        """Hear no more of messages that had to wait. Idempotent."""
        self._sink.refused = None

    def eoi(self, vector: int) -> None:
        """A processor has ended level-triggered interrupt `vector`."""
        pins = self._registers.in_service(vector)
        if not pins:
            self._sink.ended_in_vain()
        for pin in pins:
            if (callback := self._on_end.get(pin)) is not None:
                callback()
        self._do(self._registers.end_of_interrupt(vector))

    def hear_of_ends(self, held: Collection[int]) -> None:
        """After `load`, once the sources are loaded, too. No local APIC holds any vectors but `held`. Others were ended, which
        nobody would tell now: the machine was saved after the guest had done so and before KVM told (KVM_EXIT_IOAPIC_EOI)."""
        for vector in self._registers.awaited() - set(held):
            self.eoi(vector)

    def read(self, offset: int, size: int) -> bytes:
        """Registers as they lie in memory; zeros between them."""
        page = bytearray(self.SIZE + 8)
        page[_SELECT] = self._registers.select
        if offset < _WINDOW + 4 and offset + size > _WINDOW:
            page[_WINDOW : _WINDOW + 4] = self._registers.read().to_bytes(4, "little")
        return bytes(page[offset : offset + size])

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """IOREGSEL or IOWIN. The result is done when what was written is in force."""
        if offset == _SELECT:
            self._registers.select = data[0]
        elif offset == _WINDOW and len(data) >= 4:
            return self._do(self._registers.write(int.from_bytes(data[:4], "little")))
        return None

    def snapshot(self) -> IoApicState:
        """The state to give to `restore`."""
        return self._registers.snapshot()

    def restore(self, state: IoApicState) -> Awaitable[None] | None:
        """Go on from `state`, with the guest not running. The result is done when the routes are set anew."""
        return self._do(self._registers.restore(state))

    def save(self) -> State:
        """The registers and the pins' levels."""
        return self.snapshot().save()

    def load(self, state: State) -> Awaitable[None] | None:
        """As `restore`. Raises SnapshotError."""
        return self.restore(once(state, IoApicState.read))

    def _refused(self, address: int, data: int) -> None:
        for pin in self._registers.sending(address, data):
            self._do(self._registers.refused(pin))

    def _do(self, effects: list[Effect]) -> Awaitable[None] | None:
        """What is returned is done when all is: routes change in the order in which they were asked for."""
        pending = None
        for effect in effects:
            if isinstance(effect, Inject):
                taken = self._sink.signal(effect.address, effect.data)
                if not taken and effect.pin is not None:
                    self._do(self._registers.refused(effect.pin))
            else:
                pending = self._sink.route(effect.pin, effect.address, effect.data) or pending
        return pending
