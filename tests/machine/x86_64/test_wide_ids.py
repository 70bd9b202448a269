"""More processors than an 8-bit APIC id can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from aiovmm import VM, CpusConfig
from aiovmm.config import TopologyConfig
from aiovmm.devices.ioapic.entry import WRITABLE, message_address
from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64.cpuid import unpack
from aiovmm.kvm.x86_64.irqchip import split_irqchip
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.x86_64.interrupts import IoApicSink
from tests.vm.guest import config

APIC_ID = 300
SVR = 0xF0  # the local APIC's spurious interrupt vector register; bit 8 is its switch


@pytest.fixture(scope="module")
def kvm() -> Kvm:
    try:
        return Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")


def linux_route(destination: int) -> int:
    """As Linux writes a redirection entry: struct IO_APIC_route_entry, destid_0_7 and virt_destid_8_14."""
    return 0x31 | (destination & 0xFF) << 56 | (destination >> 8) << 49


@pytest.mark.kvm
def test_a_message_reaches_a_processor_above_255(kvm: Kvm) -> None:
    vm = kvm.create_vm(2)
    try:
        split_irqchip(vm)
        vm.create_vcpu(0)
        vcpu = vm.create_vcpu(1, id_=APIC_ID)
        lapic = bytearray(VcpuState(vcpu).get_state("lapic"))
        lapic[SVR + 1] |= 1
        VcpuState(vcpu).set_state("lapic", bytes(lapic))

        def at_once(work: Callable[[], None], then: Callable[[BaseException | None], None] | None) -> None:
            work()
            assert then is not None
            then(None)

        sink = IoApicSink(vm, at_once)
        entry = linux_route(APIC_ID) & WRITABLE
        assert message_address(entry) == 0xFEE00000 | (APIC_ID & 0xFF) << 12 | (APIC_ID >> 8) << 5
        assert sink.signal(message_address(entry), 0x31)
        assert not sink.signal(message_address(linux_route(APIC_ID + 1)), 0x31)
        sink.route(3, message_address(entry), 0x31)  # KVM takes the table
    finally:
        vm.close()


@pytest.mark.kvm
async def test_300_processors_are_there(kvm: Kvm) -> None:
    async with VM(replace(config("ho"), cpus=CpusConfig(boot=300))) as vm:
        assert len(vm.machine.vcpus) == 300
        await vm.start()
        assert (await vm.wait()).ok


@pytest.mark.kvm
async def test_a_guest_is_told_where_it_needs_to_know(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM_FEATURE_MSI_EXT_DEST_ID in CPUID 0x40000001 for APIC ids above 254, whatever makes them, and only then."""
    given: list[int] = []

    def set_cpuid(self: VcpuState, packed: bytes) -> None:
        given.append(next(e.eax for e in unpack(packed) if e.function == 0x40000001) >> 15 & 1)
        plain(self, packed)

    plain = VcpuState.set_packed_cpuid
    monkeypatch.setattr(VcpuState, "set_packed_cpuid", set_cpuid)
    spread = TopologyConfig(threads=3, cores=5, dies=1, packages=9)  # 135 processors, the last one's id is 274
    for cpus in (CpusConfig(max=255), CpusConfig(max=256), CpusConfig(max=135), CpusConfig(max=135, topology=spread)):
        async with VM(replace(config("s"), cpus=cpus)):
            pass
    assert given == [0, 1, 0, 1]
