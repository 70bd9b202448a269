"""Time as the MC146818 keeps it: seconds since 1970 UTC to and from register bytes, BCD or binary, 12 or 24 hours.

Source: Motorola MC146818 data sheet (ADI-856R2, 1984), "Time, calendar and alarm locations", table 2. The century byte
is the IBM AT's, at the place that the FADT names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

__all__ = [
    "B_24_HOURS",
    "B_BINARY",
    "DAY",
    "clock_fields",
    "clock_seconds",
    "decode_hour",
    "decode_number",
    "next_alarm",
    "weekday_shift",
]

B_BINARY = 0x04
B_24_HOURS = 0x02

DAY = 86400
_FIRST = -62_135_596_800  # 0001-01-01
_LAST = 253_402_214_400  # 9999-12-31


def decode_number(raw: int, mode: int) -> int:
    """A register byte as a number; digits above nine count for what they are, so nothing raises."""
    return raw if mode & B_BINARY else (raw >> 4) * 10 + (raw & 0x0F)


def _encode_number(value: int, mode: int) -> int:
    return value if mode & B_BINARY else value // 10 << 4 | value % 10


def decode_hour(raw: int, mode: int) -> int:
    """The hour, 0 to 23 where the byte is one; in 12-hour mode bit 7 says p.m. and 12 comes before 1."""
    if mode & B_24_HOURS:
        return decode_number(raw, mode)
    return decode_number(raw & 0x7F, mode) % 12 + (12 if raw & 0x80 else 0)


def _encode_hour(hour: int, mode: int) -> int:
    if mode & B_24_HOURS:
        return _encode_number(hour, mode)
    return _encode_number(hour % 12 or 12, mode) | (0x80 if hour >= 12 else 0)


def clock_fields(seconds: float, mode: int, weekday_shift: int = 0) -> dict[int, int]:
    """Register bytes at `seconds` since 1970, by register index; `mode` is register B. Years are kept to 1..9999.

    The chip counts weekdays 1 to 7 whatever the date is: `weekday_shift` is by how much it is ahead of Sunday = 1.
    """
    t = time.gmtime(min(max(int(seconds // 1), _FIRST), _LAST))
    numbers = {
        0: t.tm_sec,
        2: t.tm_min,
        6: (t.tm_wday + 1 + weekday_shift) % 7 + 1,
        7: t.tm_mday,
        8: t.tm_mon,
        9: t.tm_year % 100,
        0x32: t.tm_year // 100,
    }
    return {4: _encode_hour(t.tm_hour, mode)} | {index: _encode_number(value, mode) for index, value in numbers.items()}


def clock_seconds(registers: Sequence[int], mode: int) -> int:
    """The inverse of clock_fields. Any bytes give a time: what is out of range is brought to the nearest that is in it."""

    def number(index: int) -> int:
        return decode_number(registers[index], mode)

    year = min(max(number(0x32) * 100 + number(9), 1), 9999)
    month = min(max(number(8), 1), 12)
    day = _first_of(year, month) + min(max(number(7), 1), 31) - 1
    seconds = day * DAY + decode_hour(registers[4], mode) * 3600 + number(2) * 60 + number(0)
    return min(max(seconds, _FIRST), _LAST)


def _first_of(year: int, month: int) -> int:
    """Days since 1970 to the first of a month (Gregorian). Years are counted from March, so that the leap day is their last."""
    year -= month <= 2
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * ((month - 3) % 12) + 2) // 5 - 719_468


def weekday_shift(registers: Sequence[int], seconds: float, mode: int) -> int:
    """The inverse of the same for register 6; a byte that is no weekday counts as the right one."""
    weekday = decode_number(registers[6], mode)
    right = decode_number(clock_fields(seconds, mode)[6], mode)
    return (weekday - right) % 7 if 1 <= weekday <= 7 else 0


def next_alarm(after: float, registers: Sequence[int], mode: int) -> int | None:
    """The first whole second later than `after` at which the alarm in registers 1, 3 and 5 matches; None if it never does.

    A byte from 0xC0 on matches anything ("don't care"). At most 300 steps.
    """
    start = int(after // 1) + 1
    day, rest = divmod(start, DAY)
    hours = _choices(registers[5], decode_hour(registers[5], mode), 24)
    minutes = _choices(registers[3], decode_number(registers[3], mode), 60)
    seconds = _choices(registers[1], decode_number(registers[1], mode), 60)
    if not hours or not minutes or not seconds:
        return None
    for hour in hours:
        if hour * 3600 + 3599 < rest:
            continue
        for minute in minutes:
            base = hour * 3600 + minute * 60
            if base + 59 < rest:
                continue
            for second in seconds:
                if base + second >= rest:
                    return day * DAY + base + second
    return (day + 1) * DAY + hours[0] * 3600 + minutes[0] * 60 + seconds[0]


def _choices(raw: int, value: int, limit: int) -> Sequence[int]:
    if raw >= 0xC0:
        return range(limit)
    return (value,) if value < limit else ()
