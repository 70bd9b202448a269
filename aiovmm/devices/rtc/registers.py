"""The MC146818 real-time clock with its 128 bytes of CMOS memory, as a pure state machine. Time is a parameter.

Theory of operation. While it runs, the clock is the host's time plus an offset; time registers are made from it when read. A
guest that sets the clock changes the offset and never the host. While it is halted (SET, or the divider held in reset) the
time registers are plain memory; when it starts again they become the new time. Flags in register C are not kept but worked
out from the time of their last reading, so nothing has to run while nobody looks; `next_interrupt` says when an owner that has an
interrupt line must look.

Daylight saving (DSE) follows dates of law long gone and is not there: its bit reads as 0, so a guest that sets it can tell.

Sources: Motorola MC146818 data sheet (ADI-856R2, 1984), "Registers"; IBM AT for the memory sizes; Linux
rtc-mc146818-lib.c and rtc-cmos.c for how they are used.
"""

from __future__ import annotations

from aiovmm.devices.rtc.calendar import clock_fields, clock_seconds, next_alarm, weekday_shift
from aiovmm.runtime.dataclass import dataclass, field_types
from aiovmm.runtime.plain import Fields, State

__all__ = ["CMOS_SIZE", "CmosClock", "CmosState"]

CMOS_SIZE = 128

_TIME = frozenset({0, 2, 4, 6, 7, 8, 9, 0x32})
_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D

_A_UIP = 0x80
_A_DEFAULT = 0x26  # 32,768 Hz time base, 1,024 Hz periodic rate: what PC firmware leaves
_B_SET, _B_PIE, _B_AIE, _B_UIE = 0x80, 0x40, 0x20, 0x10
_B_24_HOURS, _B_DSE = 0x02, 0x01
_C_IRQF, _C_PF, _C_AF, _C_UF = 0x80, 0x40, 0x20, 0x10
_D_VALID = 0x80  # RAM and time valid; bit 6 must be 0 for Linux

_UIP_SECONDS = 244e-6  # t_BUC: UIP rises this long before an update; ours takes no time
_FIRST_UPDATE = 0.5  # seconds from the release of the divider to the next update

_LONG_NS = 20_000 * 366 * 86_400 * 10**9  # further from now than any clock can be set

_RESET_INDEX = 0x8F  # shutdown status with NMI off: 0 there is how firmware of old restarted the processor


@dataclass(frozen=True)
class CmosState:
    """All that the clock remembers."""

    index: int = 0
    ram: bytes = bytes(CMOS_SIZE)
    offset: float = 0.0  # seconds; guest time less host time
    seen: float = 0.0  # guest time up to which register C has been read
    raised: bool = False  # the interrupt was given and register C not read since
    weekday: int = 0  # days that the weekday is ahead of the date's

    def save(self) -> State:
        """As plain data; times in nanoseconds."""
        return {
            "index": self.index,
            "ram": self.ram,
            "offset_ns": round(self.offset * 1e9),
            "seen_ns": round(self.seen * 1e9),
            "raised": self.raised,
            "weekday": self.weekday,
        }

    @classmethod
    def read(cls, state: State) -> CmosState:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "RTC")
        ram = bytearray(fields.data("ram", CMOS_SIZE))
        ram[_A] &= ~_A_UIP
        ram[_B] &= ~_B_DSE
        read = cls(
            index=fields.number("index", 0, 0xFF),
            ram=bytes(ram),
            offset=fields.number("offset_ns", -_LONG_NS, _LONG_NS) / 1e9,
            seen=fields.number("seen_ns", -_LONG_NS, _LONG_NS) / 1e9,
            raised=fields.flag("raised"),
            weekday=fields.number("weekday", 0, 6),
        )
        fields.end()
        return read


class CmosClock:
    """`now` is everywhere the host's time in seconds since 1970 UTC; memory sizes are in bytes."""

    def __init__(self, now: float, memory_below_4g: int = 0, memory_above_4g: int = 0) -> None:
        ram = bytearray(CMOS_SIZE)
        ram[_A], ram[_B] = _A_DEFAULT, _B_24_HOURS
        above_16m = min(max(memory_below_4g - (16 << 20), 0) >> 16, 0xFFFF)
        above_4g = min(memory_above_4g >> 16, 0xFFFFFF)
        ram[0x34:0x36] = above_16m.to_bytes(2, "little")  # 64 KiB units
        ram[0x5B:0x5E] = above_4g.to_bytes(3, "little")
        self.restore(CmosState(ram=bytes(ram), seen=now))

    def snapshot(self) -> CmosState:
        """The whole state. Restored later, the guest's clock will have gone on with the host's."""
        fields = {name: getattr(self, name) for name in field_types(CmosState)}
        return CmosState(**{**fields, "ram": bytes(self.ram)})

    def restore(self, state: CmosState) -> None:
        """Put `state` in force. Raises ValueError if its memory is not CMOS_SIZE bytes."""
        if len(state.ram) != CMOS_SIZE:
            raise ValueError(f"CMOS memory has {len(state.ram)} bytes, not {CMOS_SIZE}")
        self.index, self.ram, self.offset = state.index, bytearray(state.ram), state.offset
        self.seen, self.raised, self.weekday = state.seen, state.raised, state.weekday

    def select(self, value: int) -> None:
        """Write to port 0x70: the register index, and in bit 7 whether NMI is off."""
        self.index = value

    def read(self, now: float) -> int:
        """Read port 0x71."""
        index = self.index & 0x7F
        if index in _TIME:
            return self.ram[index] if self._halted else self._fields(now)[index]
        match index:
            case 0x0A:
                return self.ram[_A] & ~_A_UIP | (_A_UIP if self._updating(now) else 0)
            case 0x0C:
                value = self._flags(now)
                self.seen, self.raised = self._clock(now), False
                return value
            case 0x0D:
                return _D_VALID
        return self.ram[index]

    def write(self, value: int, now: float) -> bool:
        """Write to port 0x71. True: the guest asks for a reset."""
        if self.index == _RESET_INDEX and value == 0:
            return True
        index = self.index & 0x7F
        if index in _TIME:
            self._set_time(index, value, now)
        elif index in (_A, _B):
            self._control(index, value, now)
        elif index not in (_C, _D):
            self.ram[index] = value
        return False

    def next_interrupt(self, now: float) -> float | None:
        """Seconds from `now` to the next enabled interrupt, 0 if it is due, None if none will come without the guest's doing."""
        enabled = self.ram[_B]
        self._heed_step(now)
        if self.raised or self._halted:
            return None
        events = []
        if enabled & _B_UIE:
            events.append(self.seen // 1 + 1)
        if enabled & _B_PIE and (period := self._period()):
            events.append((self.seen // period + 1) * period)
        if enabled & _B_AIE and (alarm := next_alarm(self.seen, self.ram, enabled)) is not None:
            events.append(alarm)
        return max(min(events) - self._clock(now), 0.0) if events else None

    def interrupt(self, now: float) -> bool:
        """Whether the interrupt line rises at `now`; it stays up until the guest reads register C."""
        if self.raised or not self._flags(now) & _C_IRQF:
            return False
        self.raised = True
        return True

    @property
    def _halted(self) -> bool:
        return bool(self.ram[_B] & _B_SET) or self._divider_held

    @property
    def _divider_held(self) -> bool:
        return self.ram[_A] & 0x60 == 0x60  # DV 11x

    def _clock(self, now: float) -> float:
        return now + self.offset

    def _heed_step(self, now: float) -> None:
        """The host's clock may have been set back: what was seen of the time then is to come again."""
        self.seen = min(self.seen, self._clock(now))

    def _updating(self, now: float) -> bool:
        return not self._halted and self._clock(now) % 1.0 >= 1.0 - _UIP_SECONDS

    def _period(self) -> float:
        rate = self.ram[_A] & 0x0F
        if rate in (1, 2):  # table 5: with the 32,768 Hz base these are 256 and 128 Hz
            rate += 7
        return float(1 << rate - 1) / 32768 if rate else 0.0

    def _flags(self, now: float) -> int:
        if self._halted:
            return 0
        self._heed_step(now)
        clock, flags = self._clock(now), 0
        period = self._period()
        if clock // 1 > self.seen // 1:
            flags |= _C_UF
        if period and clock // period > self.seen // period:
            flags |= _C_PF
        alarm = next_alarm(self.seen, self.ram, self.ram[_B])
        if alarm is not None and clock >= alarm:
            flags |= _C_AF
        return flags | (_C_IRQF if flags & self.ram[_B] else 0)

    def _set_time(self, index: int, value: int, now: float) -> None:
        if self._halted:
            self.ram[index] = value
            return
        self._latch(now)
        self.ram[index] = value
        self._start(now)

    def _control(self, index: int, value: int, now: float) -> None:
        was_halted, was_held = self._halted, self._divider_held
        if not was_halted:
            self._latch(now)
        if index == _A:
            value &= ~_A_UIP
        else:
            value &= ~(_B_DSE | (_B_UIE if value & _B_SET else 0))  # the data sheet's "SET ... clears UIE"
        self.ram[index] = value
        if was_held and not self._divider_held:
            self.offset = _FIRST_UPDATE - now  # the divider starts from here
        if was_halted and not self._halted:
            self._start(now)

    def _fields(self, now: float) -> dict[int, int]:
        return clock_fields(self._clock(now), self.ram[_B], self.weekday)

    def _latch(self, now: float) -> None:
        for index, value in self._fields(now).items():
            self.ram[index] = value

    def _start(self, now: float) -> None:
        """The time registers become the time. SET does not stop the divider, so the phase of the second is kept."""
        phase = self._clock(now) % 1.0
        self.offset = clock_seconds(self.ram, self.ram[_B]) + phase - now
        self.weekday = weekday_shift(self.ram, self._clock(now), self.ram[_B])
        self.seen = self._clock(now)
