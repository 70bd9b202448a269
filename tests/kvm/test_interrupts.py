"""irqfds, messages, the end of level-triggered interrupts, doorbells, and starting other processors."""

from __future__ import annotations

import os

import pytest

from aiovmm.bus import Space
from aiovmm.errors import KvmError
from aiovmm.irq import IrqLine
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64.state import MpState
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.interrupts import KvmMsiLine
from aiovmm.machine.x86_64.interrupts import message_for_kvm
from aiovmm.pci.services import Place
from tests.guests.machine import Machine

MSI = 0xFEE0_0000  # to APIC id 0, Intel SDM 3A 11.11.1
VECTOR = 0x40
LEVEL = 0xC000  # trigger mode level, asserted; Intel SDM 3A 11.11.2


async def test_an_irqfd_interrupts_a_halted_guest(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        routing = m.vm.routing
        assert routing is not None
        gsi = routing.allocate()
        assert gsi == 24
        line = m.vm.irqfd(gsi)
        assert isinstance(line, IrqLine)
        try:
            m.start()
            await m.until(lambda: b"R" in m.written)
            line.pulse()  # no route yet: nothing
            routing.set_msi(gsi, MSI, VECTOR)
            routing.commit()
            for n in range(1, 20):
                line.pulse()
                await m.counted(n)
            routing.clear(gsi)
            routing.commit()
            line.pulse()
            assert m.vm.signal_msi(MSI, VECTOR)
            await m.until(lambda: m.written == b"R" + b"I" * 20)
            assert m.counter == 20
        finally:
            line.close()
            line.close()
            line.pulse()


async def test_an_irqfd_that_was_signalled_before_it_was_bound(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        assert m.vm.routing is not None
        gsi = m.vm.routing.allocate()
        m.vm.routing.set_msi(gsi, MSI, VECTOR)
        m.vm.routing.commit()
        m.start()
        await m.until(lambda: b"R" in m.written)
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        line = m.vm.irqfd(gsi, fd)
        await m.counted(1)
        line.pulse()
        await m.counted(2)
        line.close()
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fd) == 1, "it is the caller's own again"
        os.close(fd)


async def test_the_end_of_a_level_triggered_interrupt_is_told(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        assert m.vm.routing is not None
        m.vm.routing.set_msi(5, MSI, VECTOR | LEVEL)
        m.vm.routing.commit()
        m.start()
        await m.until(lambda: b"R" in m.written)
        for n in range(1, 10):
            m.vm.signal_msi(MSI, VECTOR | LEVEL)
            await m.counted(n)
            await m.until(lambda: len(m.eois) >= m.counter)
        assert m.eois == [VECTOR] * 9


async def test_an_interrupt_sent_during_a_pause_waits(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        m.start()
        await m.until(lambda: b"R" in m.written)
        for n in range(1, 20):
            await m.cpu.pause()
            m.vm.signal_msi(MSI, VECTOR)
            assert m.counter == n - 1
            m.cpu.resume()
            await m.counted(n)


async def test_doorbells_with_and_without_a_data_match(kvm: Kvm) -> None:
    async with Machine("doorbell", kvm=kvm) as m:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        bells = [
            m.vm.ioeventfd(Space.PIO, 0x400, 2, fds[0], datamatch=8),
            m.vm.ioeventfd(Space.MMIO, 0xD000_2000, 4, fds[1]),
            m.vm.ioeventfd(Space.MMIO, 0xD000_2004, 4, fds[2]),
        ]
        m.start()
        await m.until(lambda: m.written == b"E")
        assert os.eventfd_read(fds[0]) == 1
        assert os.eventfd_read(fds[1]) == 2
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fds[2])
        assert m.cpu.counters.missed == 2, "7 and 9 rang nothing and belong to nobody"
        with pytest.raises(KvmError, match="another doorbell"):
            m.vm.ioeventfd(Space.PIO, 0x400, 2, fds[2], datamatch=8)
        for bell in bells:
            bell.close()
            bell.close()
        m.vm.ioeventfd(Space.PIO, 0x400, 2, fds[2], datamatch=8).close()
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("cpus", [2, 4])
async def test_other_processors_start_by_sipi(cpus: int, kvm: Kvm) -> None:
    async with Machine("smp", cpus=cpus, kvm=kvm) as m:
        assert [VcpuState(c).get_mp_state() for c in m.cpus] == [MpState.RUNNABLE] + [MpState.UNINITIALIZED] * (
            cpus - 1
        )
        m.memory.write(0x9004, (cpus - 1).to_bytes(4, "little"))
        m.start()
        await m.until(lambda: b"E" in m.written and len(m.written) == cpus)
        assert sorted(m.written) == [*range(1, cpus), ord("E")]
        assert [c.counters.sync for c in m.cpus] == [1] * cpus


async def test_processors_that_wait_for_sipi_pause_and_stop(kvm: Kvm) -> None:
    async with Machine("hello", cpus=4, kvm=kvm) as m:
        m.start()
        for _ in range(20):
            for cpu in m.cpus:
                await cpu.pause()
            assert VcpuState(m.cpus[3]).get_mp_state() == MpState.UNINITIALIZED
            for cpu in m.cpus:
                cpu.resume()


async def test_running_out_of_routes(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        routing = m.vm.routing
        assert routing is not None
        limit = m.kvm.capability(25)  # KVM_CAP_IRQ_ROUTING
        gsis = [routing.allocate() for _ in range(24, limit)]
        with pytest.raises(KvmError, match="allocating an interrupt route"):
            routing.allocate()
        for gsi in gsis:
            routing.set_msi(gsi, MSI, VECTOR)
        routing.commit()
        routing.release(gsis[7])
        assert routing.allocate() == gsis[7]


async def test_a_message_that_kvm_refuses_does_not_keep_others_from_theirs(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        routing = m.vm.routing
        assert routing is not None
        bad, good = routing.allocate(), routing.allocate()
        routing.set_msi(bad, 1 << 32 | MSI, VECTOR)
        with pytest.raises(KvmError, match="interrupt routes"):
            routing.commit()
        line = m.vm.irqfd(good)
        try:
            routing.set_msi(good, MSI, VECTOR)
            routing.commit()
            m.start()
            await m.until(lambda: b"R" in m.written)
            line.pulse()
            await m.counted(1)
        finally:
            line.close()


async def test_a_vector_with_an_impossible_address_is_silent(kvm: Kvm) -> None:
    async with Machine("interrupts", kvm=kvm) as m:
        line = KvmMsiLine(m.vm, "test", message_for_kvm, Place())
        try:
            line.set(1 << 32 | MSI, VECTOR, masked=False)
            m.start()
            await m.until(lambda: b"R" in m.written)
            os.eventfd_write(line.fd or -1, 1)
            assert line.pending
            line.set(MSI, VECTOR, masked=False)
            await m.counted(1)
        finally:
            line.close()
