"""A vCPU's architectural state goes in and comes back out."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from aiovmm.errors import KvmError, StateError
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64 import cpuid, msrs
from aiovmm.kvm.x86_64.cpuid import CpuidEntry
from aiovmm.kvm.x86_64.state import BLOBS, Regs
from aiovmm.native import lib
from tests.guests.machine import Machine

FREED = """
import sys
from aiovmm.kvm import Kvm
from aiovmm.kvm.ioctl import call
from aiovmm.kvm.x86_64.irqchip import split_irqchip
from aiovmm.kvm.x86_64.state import BLOBS
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.native import ffi, lib

name = sys.argv[1]
with Kvm.open() as kvm:
    vm = kvm.create_vm(1)
split_irqchip(vm)
vcpu = vm.create_vcpu(0)
held = ffi.new(BLOBS[name] + " *")
call(vcpu.fd, getattr(lib, "KVM_GET_" + name.upper()), held, "reading")
told = 576 if name == "xsave" else ffi.sizeof(held[0])  # what follows depends on the processor
state = VcpuState(vcpu).get_state(name)
assert state[:told] == bytes(ffi.buffer(held))[:told], state.hex(" ")
print("the same")
vm.close()
"""

TSC_AUX, APIC_BASE = 0xC000_0103, 0x1B


async def test_registers(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        names = [f.name for f in dataclasses.fields(Regs) if f.name != "rflags"]
        regs = Regs(**{name: 0x1111_0000_0000 + i for i, name in enumerate(names)})
        m.state.set_regs(regs)
        assert m.state.get_regs() == regs


async def test_segment_and_control_registers(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        sregs = m.state.get_sregs()
        assert (sregs.cs.l, sregs.cs.selector, sregs.cr0 & 1) == (1, 8, 1)
        sregs.gdt.base, sregs.gdt.limit, sregs.cr2, sregs.fs.base = 0x500, 31, 0x1234, 0x7000
        m.state.set_sregs(sregs)
        assert m.state.get_sregs() == sregs


async def test_model_specific_registers(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        supported = msrs.get_supported(kvm.fd)
        values = m.state.get_msrs([APIC_BASE, 0xDEAD_0000, TSC_AUX])
        assert values[APIC_BASE] & 0x900 == 0x900, "enabled, and the boot processor"
        assert 0xDEAD_0000 not in values
        assert set(m.state.get_msrs(supported)) <= set(supported)
        m.state.set_msrs({0x174: 8, 0x175: 0xFFFF_8000_0000_0000})  # SYSENTER_CS, SYSENTER_ESP
        assert m.state.get_msrs([0x174, 0x175]) == {0x174: 8, 0x175: 0xFFFF_8000_0000_0000}
        with pytest.raises(KvmError, match="0xdead0000 to 0x5"):
            m.state.set_msrs({0x174: 8, 0xDEAD_0000: 5, 0x175: 0})


@pytest.mark.parametrize("name", BLOBS)
async def test_opaque_state_goes_out_and_in(name: str, kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        state = m.state.get_state(name)
        m.state.set_state(name, state)
        told = 576 if name == "xsave" else len(state)  # legacy area and header; what follows depends on the processor
        if name != "lapic":  # its timer's current count moves
            assert m.state.get_state(name)[:told] == state[:told]


@pytest.mark.parametrize("name", BLOBS)
def test_state_is_what_kvm_says_though_freed_memory_is_overwritten(name: str, kvm: Kvm) -> None:
    """In a process whose freed memory is filled with 0x5a (mallopt(3), M_PERTURB)."""
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-c", FREED, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50, env=environment)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


async def test_the_fpu_as_a_loader_leaves_it(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        m.state.reset_fpu()
        fpu = m.state.get_state("fpu")
        assert fpu[128:130] == (0x37F).to_bytes(2, "little")


async def test_local_interrupt_pins(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        m.state.wire_local_interrupts()
        lapic = m.state.get_state("lapic")
        lint0, lint1 = (int.from_bytes(lapic[at : at + 4], "little") for at in (0x350, 0x360))
        assert (lint0 & 0x10700, lint1 & 0x10700) == (0x700, 0x400)


async def test_cpuid_is_taken_and_too_much_of_it_refused(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        supported = cpuid.get_supported(kvm.fd)
        assert {e.function for e in supported} >= {0, 1, 0x8000_0000, 0x4000_0000}
        m.state.set_cpuid([*supported, CpuidEntry(0x4000_0100, 0, 0, 1, 2, 3, 4)])
        with pytest.raises(KvmError, match="Argument list too long"):
            m.state.set_cpuid(supported[:1] * 5000)


async def test_how_a_run_ended_is_known_after_the_close(kvm: Kvm) -> None:
    async with Machine("triple", kvm=kvm) as m:
        m.start()
        final = await m.ended()
        assert m.cpu.final == final
    assert m.cpu.final == final
    assert await m.cpu.join() == final


async def test_native_code_is_not_given_what_is_closed(kvm: Kvm) -> None:
    m = Machine("hello", kvm=kvm)
    async with m:
        pass
    for use in (lib.avmm_vcpu_final, lib.avmm_vcpu_counters):
        with pytest.raises(TypeError):
            use(m.cpu.native)
    with pytest.raises(StateError, match="closed"):
        m.vm.publish([])
    with pytest.raises(TypeError):
        lib.avmm_vm_linger(m.vm.native)


async def test_a_closed_vcpu_says_so(kvm: Kvm) -> None:
    m = Machine("hello", kvm=kvm)
    await m.__aenter__()
    await m.aclose()
    await m.aclose()
    m.cpu.stop()
    m.cpu.complete(1, 0)
    m.cpu.close()
    assert m.vm.closed
    for use in (m.state.get_regs, m.cpu.start, m.cpu.resume, lambda: m.cpu.counters):
        with pytest.raises(StateError, match="closed"):
            use()
