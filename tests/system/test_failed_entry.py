"""KVM_EXIT_FAIL_ENTRY, from a processor that refuses a guest's state: a KVM that only emulates refuses none."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiovmm.bus import Bus
from aiovmm.kvm import ExitLoop, Kvm
from aiovmm.kvm.exits import FailEntry, FinalExit
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.irqchip import set_identity_pages, split_irqchip
from aiovmm.kvm.x86_64.probe import long_mode
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.memory import GuestMemory

INVALID = {  # the hardware's code, by the vendor whose
    "AuthenticAMD": 0xFFFFFFFF,  # VMEXIT_INVALID, -1, of which KVM hands on 32 bits: AMD64 APM volume 2, appendix C
    "GenuineIntel": 0x80000021,  # basic exit reason 33, invalid guest state, and bit 31, failed entry: Intel SDM 3D, appendix C
}


def vendor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("vendor_id"))


async def test_a_state_that_the_processor_refuses_ends_the_run_with_fail_entry() -> None:
    ends: list[tuple[int, FinalExit]] = []
    memory = GuestMemory.create([(0, 2 << 20)])
    with Kvm.open() as kvm:
        assert not kvm.emulates_guest_code()
        vm = kvm.create_vm(1)
        set_identity_pages(vm)
        vm.set_memory(memory)
        split_irqchip(vm)
        errors: list[Exception] = []
        loop = ExitLoop(
            vm,
            Bus(),
            on_exit=lambda index, end: ends.append((index, end)),
            on_device_error=lambda rng, exc: errors.append(exc),
        )
        loop.open()
        vcpu = vm.create_vcpu(0)
        state = VcpuState(vcpu)
        state.set_cpuid(cpuid.get_supported(kvm.fd))
        sregs = long_mode(state.get_sregs(), 0x1000)
        sregs.cs.db = 1  # with cs.l in long mode: illegal by APM volume 2, 15.5.1
        state.set_sregs(sregs)
        try:
            vcpu.start()
            end = await asyncio.wait_for(vcpu.join(), 20)
            assert isinstance(end, FailEntry)
            assert end.reason == INVALID[vendor()]
            assert f"{end.reason:#x}" in str(end)
            assert ends == [(0, end)]
        finally:
            await loop.close()
            vm.close()
            memory.close()
