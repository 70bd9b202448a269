"""The real-time clock of an arm64 machine: a PL031 on the bus, with a level-triggered interrupt."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.devices.pl031.clock import Pl031, Pl031State
from aiovmm.devices.primecell import SIZE, fast_page, read_registers, write_registers
from aiovmm.devices.timer import LONGEST_WAIT, CallLater, Timer
from aiovmm.irq import LevelLine
from aiovmm.runtime.plain import State, once

__all__ = ["Pl031Rtc"]

_PART, _REVISION = 0x031, 1
_REGISTERS = 0x20


class Pl031Rtc:
    """A BusDevice of a page. `time` gives the host's time in seconds since 1970 UTC."""

    SIZE: ClassVar[int] = SIZE

    def __init__(self, irq: LevelLine, time: Callable[[], float], call_later: CallLater) -> None:
        self.fast = fast_page(_PART, _REVISION, _REGISTERS)
        self._irq = irq
        self._time = time
        self._call_later: CallLater | None = call_later
        self._timer: Timer | None = None
        self._level = False
        self._clock = Pl031()

    def read(self, offset: int, size: int) -> bytes:
        """Registers from `offset` on."""
        now = self._time()
        value = read_registers(lambda at: self._clock.read(at, now), offset, size)
        self._settle(now)
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Registers from `offset` on."""
        now = self._time()
        write_registers(lambda at, value, mask: self._clock.write(at, value, now, mask), offset, data)
        self._settle(now)

    def snapshot(self) -> Pl031State:
        """The state to give to `restore`."""
        self._clock.look(self._time())
        return self._clock.snapshot()

    def restore(self, state: Pl031State) -> None:
        """Go on from `state`, with the guest not running."""
        self._clock.restore(state)
        self._look()

    def save(self) -> State:
        """The registers, and how far the guest's clock is from the host's."""
        return self.snapshot().save()

    def load(self, state: State) -> None:
        """As `restore`, but that time goes on with `unsuspend`. Raises SnapshotError."""
        self._clock.restore(once(state, Pl031State.read))
        self._set_level()
        self._stop_timer()

    def unsuspend(self) -> None:
        """The vCPUs can take interrupts."""
        self._look()

    def close(self) -> None:
        """Forget the timer, and set none again. Idempotent."""
        self._call_later = None
        self._stop_timer()

    def _look(self) -> None:
        now = self._time()
        self._clock.look(now)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """The line, and the timer for the next time that it rises by itself."""
        self._set_level()
        self._stop_timer()
        delay = self._clock.next_interrupt(now)
        if delay is not None and self._call_later is not None:
            self._timer = self._call_later(min(delay, LONGEST_WAIT), self._look)

    def _set_level(self) -> None:
        if self._clock.interrupt != self._level:
            self._level = not self._level
            self._irq.set_level(self._level)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
