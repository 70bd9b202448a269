"""The real-time clock on the bus: ports 0x70 (index) and 0x71 (data), and IRQ 8 where somebody keeps time for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.bus import FastPage, Policy
from aiovmm.devices.rtc.registers import CmosClock, CmosState
from aiovmm.devices.timer import LONGEST_WAIT, CallLater, Timer
from aiovmm.irq import IrqLine
from aiovmm.runtime.plain import State, once

__all__ = ["Rtc"]


class Rtc:
    """A BusDevice of 2 bytes.

    `time` gives the host's time in seconds since 1970 UTC. `irq` and `call_later` come together;
    without them flags in register C are right but nothing interrupts. `on_reset(reason)` is called when the guest asks for a
    reset.

    The index is a posted write: the data port always waits, and the ring is in order, so an access to the data port finds the
    index that its vCPU wrote last. (Two vCPUs that use the pair without a lock would have mixed up their indices anyway.)
    """

    SIZE: ClassVar[int] = 2

    def __init__(
        self,
        time: Callable[[], float],
        on_reset: Callable[[str], None],
        *,
        memory_below_4g: int = 0,
        memory_above_4g: int = 0,
        irq: IrqLine | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        self.fast = FastPage(self.SIZE)
        self.fast.policy[0] = Policy.POSTED_WRITE | Policy.LAZY_WRITE | Policy.SHADOW_READ
        self.fast.shadow[0] = 0xFF  # the index cannot be read back
        self._time = time
        self._on_reset = on_reset
        self._irq = irq
        self._call_later = call_later
        self._timer: Timer | None = None
        self._clock = CmosClock(time(), memory_below_4g, memory_above_4g)

    def read(self, offset: int, size: int) -> bytes:
        """The index port reads as ones, the data port as the register selected."""
        return bytes(self._read(i) for i in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        """Index, data, or by one 16-bit write both in turn."""
        for i, value in enumerate(data, offset):
            if i == 0:
                self._clock.select(value)
            elif i == 1:
                if self._clock.write(value, self._time()):
                    self._on_reset("CMOS shutdown status")
                self._arm()

    def snapshot(self) -> CmosState:
        """The state to give to `restore`."""
        return self._clock.snapshot()

    def restore(self, state: CmosState) -> None:
        """Go on from `state`, with the guest not running."""
        self._clock.restore(state)
        self._arm()

    def save(self) -> State:
        """The registers, and how far the guest's clock is from the host's."""
        return self.snapshot().save()

    def load(self, state: State) -> None:
        """As `restore`, but that nothing interrupts before `unsuspend`. Raises SnapshotError."""
        self._clock.restore(once(state, CmosState.read))
        self._stop_timer()

    def unsuspend(self) -> None:
        """The vCPUs can take interrupts."""
        self._arm()

    def close(self) -> None:
        """Forget the timer, and set none again. Idempotent."""
        self._call_later = None
        self._stop_timer()

    def _read(self, offset: int) -> int:
        if offset != 1:
            return 0xFF
        value = self._clock.read(self._time())
        if self._clock.index & 0x7F == 0x0C:
            self._arm()
        return value

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._stop_timer()
        if self._call_later is None or self._irq is None:
            return
        delay = self._clock.next_interrupt(self._time())
        if delay is not None:
            self._timer = self._call_later(min(delay, LONGEST_WAIT), self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._irq is not None and self._clock.interrupt(self._time()):
            self._irq.pulse()
        self._arm()  # a timer that came early tries again
