"""Bare-metal guests for arm64 that take one interrupt: how they set the GICv3 up, and what their handler is wrapped in."""

from __future__ import annotations

from aiovmm.boot.aarch64 import gic_of
from aiovmm.kvm.aarch64.gic import FIRST_SPI
from tests.guests.aarch64 import ERET, WFI, branch, move, program, set_vectors, store, unmask_interrupts
from tests.guests.aarch64.machine import CODE

__all__ = ["HANDLER", "handles", "takes"]

VECTORS = CODE + 0x1000
HANDLER = VECTORS + 0x280
"""Where the handler is to be written: IRQ of the current exception level with its own stack pointer."""

_ISB = 0xD5033FDF
_ENABLE_SYSTEM_REGISTERS, _ANY_PRIORITY, _ENABLE_GROUP_1 = 0xD518CCA3, 0xD5184603, 0xD518CCE3  # msr ..., x3
_ACKNOWLEDGE, _END = 0xD538CC04, 0xD518CC24  # mrs x4, icc_iar1_el1; msr icc_eoir1_el1, x4


def takes(spi: int, *then: int | list[int]) -> bytes:
    """A guest of one processor that enables SPI `spi`, level-triggered, does `then`, and waits."""
    gic, number = gic_of(1), FIRST_SPI + spi
    return program(
        move(2, VECTORS),
        set_vectors(2),
        move(1, gic.redistributors),
        _write(0x14, 0),  # GICR_WAKER: awake
        move(1, gic.distributor),
        _write(0, 0x13),  # GICD_CTLR: affinity routing, both groups
        _write(0x80 + number // 32 * 4, 0xFFFFFFFF),  # GICD_IGROUPR: group 1
        _write(0xC00 + number // 16 * 4, 0),  # GICD_ICFGR: level-triggered
        _write(0x100 + number // 32 * 4, 1 << number % 32),  # GICD_ISENABLER
        move(3, 7),
        _ENABLE_SYSTEM_REGISTERS,
        _ISB,
        move(3, 0xFF),
        _ANY_PRIORITY,
        move(3, 1),
        _ENABLE_GROUP_1,
        _ISB,
        unmask_interrupts(),
        *then,
        WFI,
        branch(-1),
    )


def handles(*body: int | list[int]) -> bytes:
    """A handler that acknowledges, does `body`, and ends the interrupt; x4 is its own."""
    return program(_ACKNOWLEDGE, *body, _END, ERET)


def _write(offset: int, value: int) -> list[int]:
    return [*move(3, value), store(4, 3, 1, offset)]
