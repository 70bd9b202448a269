"""The power button of an arm64 machine: a key at line 3 of a PL061 on the bus, with a level-triggered interrupt."""

from __future__ import annotations

from typing import ClassVar

from aiovmm.devices.pl061.key import PATIENCE, Key, KeyState
from aiovmm.devices.pl061.lines import DATA_END, GPIOIC, Pl061, Pl061State
from aiovmm.devices.primecell import SIZE, fast_page, read_registers, write_registers
from aiovmm.devices.timer import CallLater, Timer
from aiovmm.irq import LevelLine
from aiovmm.runtime.plain import Fields, State

__all__ = ["POWER_KEY", "Pl061Gpio"]

POWER_KEY = 3
"""Its line."""
_POWER = 1 << POWER_KEY
_PART, _REVISION = 0x061, 1
_REGISTERS = 0x424


class Pl061Gpio:
    """A BusDevice of a page. Lines other than POWER_KEY are low from outside."""

    SIZE: ClassVar[int] = SIZE

    def __init__(self, irq: LevelLine, call_later: CallLater) -> None:
        self.fast = fast_page(_PART, _REVISION, _REGISTERS)
        self._irq = irq
        self._call_later: CallLater | None = call_later
        self._timer: Timer | None = None
        self._timed = KeyState.UP  # what the timer is for
        self._level = False
        self._lines = Pl061()
        self._key = Key()

    def press_power_button(self) -> None:
        """Ask the guest to shut down. Idempotent until the guest has noticed."""
        self._key.press()
        self._settle()

    def read(self, offset: int, size: int) -> bytes:
        """Registers from `offset` on."""
        value = read_registers(self._read, offset, size)
        self._settle()
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Registers from `offset` on."""
        write_registers(self._write, offset, data)
        self._settle()

    def snapshot(self) -> tuple[Pl061State, KeyState]:
        """The state to give to `restore`."""
        return self._lines.snapshot(), self._key.state

    def restore(self, state: tuple[Pl061State, KeyState]) -> None:
        """Go on from `state`, with the guest not running."""
        lines, key = state
        self._lines.restore(lines)
        self._key.restore(key)
        self._settle()

    def save(self) -> State:
        """The lines, and how far the key's press is."""
        return {"lines": self._lines.snapshot().save(), "key": self._key.state.value, "waits": self._key.waits}

    def load(self, state: State) -> None:
        """What the key waits for begins anew, with `unsuspend`. Raises SnapshotError."""
        fields = Fields(state, "GPIO")
        lines = Pl061State.read(fields.state("lines"))
        key, waits = fields.number("key", 0, max(k.value for k in KeyState)), fields.flag("waits")
        fields.end()
        self._lines.restore(lines)
        self._key.restore(KeyState(key))
        self._key.waits = waits
        self._stop_timer()
        self._set_level()

    def unsuspend(self) -> None:
        """The vCPUs can take interrupts."""
        self._settle()

    def close(self) -> None:
        """Forget the timer, and set none again. Idempotent."""
        self._call_later = None
        self._stop_timer()

    def _read(self, offset: int) -> int:
        value = self._lines.read(offset)
        if offset < DATA_END and offset >> 2 & _POWER & ~self._lines.direction:
            self._key.looked(bool(self._lines.enable & _POWER))
        return value

    def _write(self, offset: int, value: int, mask: int) -> None:
        self._lines.write(offset, value, mask)
        if offset == GPIOIC and value & self._lines.enable & _POWER:
            self._key.acknowledged()

    def _settle(self) -> None:
        """The key's level, the interrupt's, and the timer for the key's next step."""
        self._lines.drive(_POWER if self._key.down else 0)
        self._set_level()
        if not self._key.waits or self._timed is not self._key.state:
            self._stop_timer()
        if self._key.waits and self._timer is None and self._call_later is not None:
            self._timed = self._key.state
            self._timer = self._call_later(PATIENCE, self._over)

    def _set_level(self) -> None:
        if self._lines.interrupt != self._level:
            self._level = not self._level
            self._irq.set_level(self._level)

    def _over(self) -> None:
        self._timer = None
        self._key.over()
        self._settle()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
