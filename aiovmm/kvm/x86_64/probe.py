"""Does this KVM execute guest kernel code on the processor, or only in its instruction emulator?

A KVM without hardware virtualization (or one stacked so that ring 0 cannot run) interprets guest kernel code. Its emulator lacks
instructions that every distribution's kernel uses, so a stock kernel ends in KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation). The
probe runs one such instruction, POPCNT, in 64-bit mode: there, unlike in real mode, no processor needs the emulator's help.
"""

from __future__ import annotations

import errno

from aiovmm.errors import KvmError
from aiovmm.kvm.exits import EMULATION, InternalError
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64.irqchip import set_identity_pages
from aiovmm.kvm.x86_64.state import DescriptorTable, Regs, Segment, Sregs
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.memory import GuestMemory

__all__ = ["DEADLINE", "emulates_guest_code", "long_mode"]

DEADLINE = 5.0
"""Seconds after which the probe gives up."""

_CODE = bytes.fromhex("f3 0f b8 c1 f4")  # popcnt %ecx, %eax; hlt
_PML4, _PDPT, _PD, _CODE_AT, _SIZE = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


def emulates_guest_code(vm: VmFd) -> bool:
    """Run the probe in `vm`, which is closed after. Blocks for about a millisecond. Raises KvmError."""
    memory = GuestMemory.create([(0, _SIZE)], name="aiovmm-probe")
    try:
        memory.write(_PML4, (_PDPT | 3).to_bytes(8, "little"))
        memory.write(_PDPT, (_PD | 3).to_bytes(8, "little"))
        memory.write(_PD, (0x83).to_bytes(8, "little"))  # one 2 MiB page, present and writable
        memory.write(_CODE_AT, _CODE)
        set_identity_pages(vm)
        vm.set_memory(memory)
        vcpu = vm.create_vcpu(0)
        state = VcpuState(vcpu)
        state.set_sregs(long_mode(state.get_sregs(), _PML4))
        state.set_regs(Regs(rip=_CODE_AT))
        vcpu.start()
        final = vcpu.wait_blocking(DEADLINE)
        if final is None:
            raise KvmError("probing what this KVM can run", errno.ETIMEDOUT, "its guests make no progress")
        return isinstance(final, InternalError) and final.suberror == EMULATION
    finally:
        for vcpu in vm.vcpus.values():
            vcpu.close()
        vm.close()
        memory.close()


def long_mode(reset: Sregs, cr3: int) -> Sregs:
    """`reset`, changed to 64-bit mode at CPL 0 with flat segments and paging from `cr3` (Intel SDM 3A, 9.8.5)."""
    data = Segment(limit=0xFFFF_FFFF, selector=0x10, type=3, present=1, db=1, s=1, g=1)
    reset.cs = Segment(limit=0xFFFF_FFFF, selector=0x08, type=11, present=1, s=1, l=1, g=1)
    reset.ds = reset.es = reset.fs = reset.gs = reset.ss = data
    reset.gdt = reset.idt = DescriptorTable()
    reset.cr3 = cr3
    reset.cr4 |= 0x620  # PAE, OSFXSR, OSXMMEXCPT
    reset.cr0 = 0x8000_0033  # PG, NE, ET, MP, PE
    reset.efer = 0x500  # LME, LMA
    return reset
