"""Bare-metal guests for arm64, made of instructions one by one: the nested host has no assembler, and none has more than twenty.

Encodings: Arm Architecture Reference Manual (DDI 0487), C6.2.
"""

from __future__ import annotations

__all__ = [
    "ERET",
    "LOAD_SYNDROME",
    "WFI",
    "branch",
    "call_firmware",
    "load",
    "load_pair",
    "move",
    "program",
    "set_vectors",
    "store",
    "unmask_interrupts",
]

WFI = 0xD503207F
ERET = 0xD69F03E0
LOAD_SYNDROME = 0xD5385200  # mrs x0, esr_el1
_HVC = 0xD4000002
_SIZES = {1: 0, 2: 1, 4: 2, 8: 3}


def program(*parts: int | list[int]) -> bytes:
    """As it lies in memory."""
    words = [word for part in parts for word in (part if isinstance(part, list) else [part])]
    return b"".join(word.to_bytes(4, "little") for word in words)


def move(register: int, value: int) -> list[int]:
    """x`register` = `value`, of 64 bits: movz, and movk for each part that is not 0."""
    parts = [(place, value >> 16 * place & 0xFFFF) for place in range(4)]
    used = [(place, part) for place, part in parts if part] or [(0, 0)]
    first, *rest = [place << 21 | part << 5 | register for place, part in used]
    return [0xD2800000 | first, *(0xF2800000 | word for word in rest)]


def store(size: int, register: int, base: int, offset: int = 0) -> int:
    """str of 1, 2, 4 or 8 bytes to [x`base` + `offset`]."""
    return 0x39000000 | _SIZES[size] << 30 | offset // size << 10 | base << 5 | register


def load(size: int, register: int, base: int, offset: int = 0) -> int:
    """ldr of 1, 2, 4 or 8 bytes from there."""
    return 0x39400000 | _SIZES[size] << 30 | offset // size << 10 | base << 5 | register


def load_pair(register: int, other: int, base: int) -> int:
    """ldp x`register`, x`other`, [x`base`]."""
    return 0xA9400000 | other << 10 | base << 5 | register


def set_vectors(register: int) -> int:
    """msr vbar_el1, x`register`."""
    return 0xD518C000 | register


def unmask_interrupts() -> int:
    """msr daifclr, #2."""
    return 0xD50342FF


def branch(words: int) -> int:
    """b to so many instructions further on."""
    return 0x14000000 | words & 0x3FFFFFF


def call_firmware(function: int, *arguments: int) -> list[int]:
    """A PSCI call: function in x0, arguments in x1 to x3."""
    moves = [word for number, value in enumerate((function, *arguments)) for word in move(number, value)]
    return [*moves, _HVC]
