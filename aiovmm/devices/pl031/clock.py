"""The PL031 real-time clock as a pure state machine. Time is a parameter.

Theory of operation. The clock is the host's time plus an offset, in whole seconds that wrap after 32 bits (2106). A guest
that loads the clock changes the offset and never the host. The raw interrupt rises when the clock comes to be what the
match register holds, be it by time, by loading the one or by writing the other, and stays until it is cleared. It is not
kept but caught up with at each access, so nothing has to run while nobody looks; `next_interrupt` says when an owner that
has an interrupt line must look.

The manual has the clock stand until RTCCR starts it, which then cannot be undone; firmware has started this one.

Source: ARM PrimeCell Real Time Clock (PL031) Technical Reference Manual, DDI 0224, chapters 2 and 3; Linux rtc-pl031.c.
"""

from __future__ import annotations

import dataclasses

from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["Pl031", "Pl031State"]

RTCDR, RTCMR, RTCLR, RTCCR, RTCIMSC, RTCRIS, RTCMIS, RTCICR = range(0, 0x20, 4)

_WRAP = 1 << 32
_ALL = _WRAP - 1
_STARTED = 1
_FAR = 1 << 62  # seconds


@dataclass(frozen=True)
class Pl031State:
    """All that the clock remembers. The defaults are its state after reset."""

    offset: int = 0  # seconds; guest time less host time
    match: int = 0
    load: int = 0  # as written last
    mask: bool = False  # RTCIMSC: the interrupt is let through
    raised: bool = False  # RTCRIS
    seen: int | None = None  # guest second up to which the match has been looked for; None: from the first look on

    def save(self) -> State:
        """As plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Pl031State)}

    @classmethod
    def read(cls, state: State) -> Pl031State:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "RTC")
        read = cls(
            offset=fields.number("offset", -_FAR, _FAR),
            match=fields.number("match", 0, _ALL),
            load=fields.number("load", 0, _ALL),
            mask=fields.flag("mask"),
            raised=fields.flag("raised"),
            seen=None if fields.absent("seen") else fields.number("seen", -_FAR, _FAR),
        )
        fields.end()
        return read


class Pl031:
    """`now` is everywhere the host's time in seconds since 1970 UTC. Nothing here raises for any access."""

    def __init__(self, state: Pl031State | None = None) -> None:
        self.restore(state or Pl031State())

    def snapshot(self) -> Pl031State:
        """The whole state. Restored later, the guest's clock will have gone on with the host's."""
        return Pl031State(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Pl031State)})

    def restore(self, state: Pl031State) -> None:
        """Put `state` in force."""
        self.offset, self.match, self.load = state.offset, state.match, state.load
        self.mask, self.raised, self.seen = state.mask, state.raised, state.seen

    @property
    def interrupt(self) -> bool:
        """The level of RTCINTR, as of the last look: RTCMIS."""
        return self.raised and self.mask

    def look(self, now: float) -> None:
        """Catch up with what has happened until `now`."""
        second = int(now // 1) + self.offset
        if self.seen is None or second < self.seen:  # the host's clock has been set back
            self.seen = second - 1
        if (self.match - self.seen - 1) % _WRAP < second - self.seen:
            self.raised = True
        self.seen = second

    def next_interrupt(self, now: float) -> float | None:
        """Seconds from `now`, at which `look` has been called, to the next interrupt; None if none will come without the guest's
        doing."""
        if self.raised or not self.mask:
            return None
        assert self.seen is not None
        return (self.match - self.seen - 1) % _WRAP + 1 - now % 1

    def read(self, offset: int, now: float) -> int:
        """Read the register at `offset`, a multiple of 4."""
        self.look(now)
        values = {
            RTCDR: self._second(now) % _WRAP,
            RTCMR: self.match,
            RTCLR: self.load,
            RTCCR: _STARTED,
            RTCIMSC: int(self.mask),
            RTCRIS: int(self.raised),
            RTCMIS: int(self.interrupt),
        }
        return values.get(offset, 0)

    def write(self, offset: int, value: int, now: float, mask: int = _ALL) -> None:
        """Write those bits of the register at `offset` that `mask` has; the others of `value` are 0."""
        self.look(now)
        if offset == RTCMR:
            self.match = self.match & ~mask | value
            self._compare(now)
        elif offset == RTCLR:
            self.load = self.load & ~mask | value
            self.offset += self.load - self._second(now) % _WRAP
            self._compare(now)
        elif offset == RTCIMSC and mask & 1:
            self.mask = bool(value & 1)
        elif offset == RTCICR and value & 1:
            self.raised = False

    def _second(self, now: float) -> int:
        return int(now // 1) + self.offset

    def _compare(self, now: float) -> None:
        """One of the two has been written."""
        self.seen = self._second(now)
        self.raised |= self.seen % _WRAP == self.match
