"""Ends of a run that KVM itself brings about: what the run loop makes of them, from the exit to the dataclass.

KVM_EXIT_SYSTEM_EVENT takes a Hyper-V or an Arm guest, and KVM_EXIT_UNKNOWN a processor that KVM does not know: those are
decoded from structures made by hand (test_exits.py).
"""

from __future__ import annotations

import fcntl
import struct

from aiovmm.kvm import Kvm
from aiovmm.kvm.exits import Debug
from tests.guests import CODE
from tests.guests.machine import Machine

KVM_SET_GUEST_DEBUG = 0x4048AE9B
ENABLE, SINGLE_STEP, USE_SW_BP, USE_HW_BP = 0x1, 0x2, 0x10000, 0x20000  # KVM_GUESTDBG_*
DB = 1  # the vector of #DB


def debug(m: Machine, control: int, *registers: int) -> None:
    """Debugging from outside, as a debugger stub would ask for; the monitor itself does not."""
    fcntl.ioctl(
        m.cpu.fd, KVM_SET_GUEST_DEBUG, struct.pack("<II8Q", control, 0, *registers, *[0] * (8 - len(registers)))
    )


async def test_a_single_step_ends_the_run_with_debug(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        debug(m, ENABLE | SINGLE_STEP)
        m.start()
        end = await m.ended()
        assert isinstance(end, Debug)
        assert (end.exception, end.dr6 & 1 << 14) == (DB, 1 << 14), "BS"
        assert CODE < end.pc < CODE + 16
        assert m.exits == [(0, end)]


async def test_a_hardware_breakpoint_ends_the_run_with_debug(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        debug(m, ENABLE | USE_HW_BP, CODE, 0, 0, 0, 0, 0, 0, 0x400 | 1)
        m.start()
        end = await m.ended()
        assert isinstance(end, Debug)
        assert (end.exception, end.pc) == (DB, CODE)
        assert end.dr6 & 1
        assert m.log == [], "it stopped before its first instruction"
