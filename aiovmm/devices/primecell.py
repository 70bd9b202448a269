"""What ARM's PrimeCell peripherals have in common: 32-bit registers in a page, the last eight of which say what it is. Pure.

Every access is one of whole registers on their bus (APB), which has no byte lanes. Here an access may be of 8, 16, 32 or 64
bits: a read gives the bytes that lie there, and has the side effects of reading the register, once; a write changes the
bytes that it brings, and registers that only act take those that it does not bring for zeros. Two registers are accessed
one after the other.
Source: the peripherals' manuals, "Peripheral identification registers" and "PrimeCell identification registers"; Linux 6.1
accesses PL011 by 16 bits (by 8 and 32 early), PL031 by 32 and PL061 by 8.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from aiovmm.bus import FastPage, Policy

__all__ = ["IDENTITY", "REGISTER", "SIZE", "fast_page", "read_registers", "set_policy", "show_value", "write_registers"]

SIZE = 0x1000
"""Of the page, in bytes."""
REGISTER = 4
IDENTITY = 0xFE0
"""PeriphID0 to 3, then PCellID0 to 3, a byte in each register."""

_WORD = struct.Struct("<I")
_NOTHING = int(Policy.SHADOW_READ | Policy.IGNORE_WRITE)


def _identity(part: int, revision: int) -> bytes:
    """`part` as in the peripheral's name (0x011); designed by ARM (0x41)."""
    number = 0x41 << 12 | part | revision << 20
    return number.to_bytes(4, "little") + bytes([0x0D, 0xF0, 0x05, 0xB1])


def fast_page(part: int, revision: int, registers: int) -> FastPage:
    """A page whose first `registers` bytes wait for the event loop, and which shows its identity; between them all is 0."""
    fast = FastPage(SIZE)
    fast.policy[registers:] = bytes([_NOTHING]) * (SIZE - registers)
    for number, value in enumerate(_identity(part, revision)):
        fast.shadow[IDENTITY + REGISTER * number] = value
    return fast


def show_value(fast: FastPage, offset: int, value: int) -> None:
    """The shadow of the register at `offset`."""
    _WORD.pack_into(fast.shadow, offset, value)


def set_policy(fast: FastPage, offset: int, policy: int) -> None:
    """Of all bytes of the register at `offset`."""
    _WORD.pack_into(fast.policy, offset, policy * 0x01010101)


def read_registers(read: Callable[[int], int], offset: int, size: int) -> bytes:
    """`size` bytes at `offset`, of registers that `read(offset of the register)` gives."""
    first = offset - offset % REGISTER
    data = b"".join(read(at).to_bytes(REGISTER, "little") for at in range(first, offset + size, REGISTER))
    return data[offset - first : offset - first + size]


def write_registers(write: Callable[[int, int, int], None], offset: int, data: bytes) -> None:
    """Call `write(offset of the register, value, mask)` for each register that `data` at `offset` reaches, in order; `mask` has
    ones where there are bytes of `data`, and `value` zeros where there are none."""
    end = offset + len(data)
    for at in range(offset - offset % REGISTER, end, REGISTER):
        first, last = max(offset, at), min(end, at + REGISTER)
        shift = 8 * (first - at)
        part = data[first - offset : last - offset]
        write(at, int.from_bytes(part, "little") << shift, (1 << 8 * len(part)) - 1 << shift)
