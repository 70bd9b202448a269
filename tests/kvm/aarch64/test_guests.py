"""KVM on arm64, by guests of a few instructions: accesses, PSCI, processors, aborts, interrupt lines and their ends."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from aiovmm.boot.aarch64 import gic_of
from aiovmm.errors import GuestError, KvmError
from aiovmm.kvm import Kvm
from aiovmm.kvm import aarch64 as room
from aiovmm.kvm.aarch64.clock import waits
from aiovmm.kvm.aarch64.features import VcpuFeatures, reset
from aiovmm.kvm.aarch64.gic import FIRST_SPI, SPIS, Gic
from aiovmm.kvm.aarch64.gicstate import GicImage, read_gic
from aiovmm.kvm.aarch64.pins import EndOfInterrupt, SpiLine
from aiovmm.kvm.aarch64.registers import MPIDR_EL1, PC, VIRTUAL_COUNTER, Registers, x
from aiovmm.kvm.aarch64.vcpuimage import VcpuImage, read_vcpu
from aiovmm.kvm.exits import SystemEvent, SystemEventType
from aiovmm.machine.moment import Moment
from aiovmm.native import lib
from aiovmm.runtime.plain import Fields
from tests.guests.aarch64 import (
    ERET,
    LOAD_SYNDROME,
    WFI,
    branch,
    call_firmware,
    load,
    load_pair,
    move,
    program,
    set_vectors,
    store,
    unmask_interrupts,
)
from tests.guests.aarch64.machine import CODE, DEVICE, RAM, SIZE, ArmMachine

pytestmark = pytest.mark.kvmhost(arch="aarch64")

SYSTEM_OFF, SYSTEM_RESET, CPU_ON = 0x8400_0008, 0x8400_0009, 0xC400_0003
VECTORS = CODE + 0x1000
SYNCHRONOUS, IRQ = 0x200, 0x280  # of the current exception level with its own stack pointer
OFF = call_firmware(SYSTEM_OFF)


async def test_accesses_of_each_width_come_with_their_bytes() -> None:
    value = 0x8877665544332211
    sizes = [1, 2, 4, 8]
    code = program(
        move(1, DEVICE),
        move(2, value),
        [store(size, 2, 1, 8 * size) for size in sizes],
        [load(size, 3, 1, 8 * size) for size in sizes],
        store(8, 3, 1, 0x100),
        OFF,
    )
    async with ArmMachine(code) as m:
        m.start()
        final = await m.ended()
        assert isinstance(final, SystemEvent), final
        assert final.type == SystemEventType.SHUTDOWN
        written = [("write", 8 * size, value.to_bytes(8, "little")[:size]) for size in sizes]
        read = [("read", 8 * size, bytes(range(8 * size, 9 * size))) for size in sizes]
        assert m.device.log == [*written, *read, ("write", 0x100, bytes(range(64, 72)))]


@pytest.mark.parametrize(("function", "event"), [(SYSTEM_OFF, 1), (SYSTEM_RESET, 2)])
async def test_the_firmware_interface_ends_the_machine(function: int, event: int) -> None:
    async with ArmMachine(program(call_firmware(function))) as m:
        m.start()
        final = await m.ended()
        assert isinstance(final, SystemEvent)
        assert final.type == event


async def test_processors_wait_until_they_are_started_and_each_has_its_own_number() -> None:
    second = CODE + 0x800
    code = program(
        move(10, DEVICE), 0xD53800A4, store(8, 4, 10, 0), call_firmware(CPU_ON, 1, second, 0x55), WFI, branch(-1)
    )
    async with ArmMachine(code, cpus=2) as m:
        m.memory.write(second, program(move(1, DEVICE), 0xD53800A4, store(8, 4, 1, 8), store(8, 0, 1, 16), OFF))
        mpidrs = [Registers(vcpu).get(MPIDR_EL1) for vcpu in m.cpus]
        m.start()
        await m.ended()
        assert m.device.written == {0: mpidrs[0], 8: mpidrs[1], 16: 0x55}
        assert [mpidr & 0xFF for mpidr in mpidrs] == [0, 1]
        assert m.exits[0][0] == 1


async def test_an_access_that_a_device_cannot_be_told_of_is_the_guests_abort() -> None:
    code = program(move(1, DEVICE), move(2, VECTORS), set_vectors(2), load_pair(3, 4, 1), branch(0))
    async with ArmMachine(code) as m:
        m.memory.write(VECTORS + SYNCHRONOUS, program(LOAD_SYNDROME, store(8, 0, 1, 0), OFF))
        m.start()
        assert isinstance(await m.ended(), SystemEvent)
        syndrome = m.device.written[0] & 0xFFFFFFFF  # Linux 6.1 gives the upper half ones
        assert syndrome >> 26 == 0x25, "a data abort without a change of level"
        assert syndrome & 0x3F == 0x10, "synchronous, external, not on a walk of tables"
        [(name, error)] = m.errors
        assert (name, type(error)) == ("device", GuestError)
        assert f"vCPU 0 accessed it at {DEVICE:#x}" in str(error)


async def test_such_an_access_where_nothing_is_tells_nobody() -> None:
    code = program(move(1, DEVICE + 0x10000), move(2, VECTORS), set_vectors(2), load_pair(3, 4, 1), branch(0))
    async with ArmMachine(code) as m:
        m.memory.write(VECTORS + SYNCHRONOUS, program(OFF))
        m.start()
        assert isinstance(await m.ended(), SystemEvent)
        assert m.errors == []


def interrupted(spi: int) -> tuple[bytes, bytes]:
    """A guest that takes SPI `spi`, and its handler: it reads the device at the interrupt's number, and ends the interrupt."""
    number = FIRST_SPI + spi
    distributor, redistributor = 0x08FF_0000, 0x08FD_0000
    code = program(
        move(2, VECTORS),
        set_vectors(2),
        move(1, redistributor),
        load(4, 3, 1, 0x14),
        move(3, 0),
        store(4, 3, 1, 0x14),  # GICR_WAKER: awake
        move(1, distributor),
        move(3, 0x13),
        store(4, 3, 1, 0),  # GICD_CTLR: affinity routing, both groups
        move(1, distributor + 0x80 + number // 32 * 4),
        move(3, 0xFFFFFFFF),
        store(4, 3, 1),  # GICD_IGROUPR: group 1
        move(1, distributor + 0xC00 + number // 16 * 4),
        move(3, 0),
        store(4, 3, 1),  # GICD_ICFGR: level-triggered
        move(1, distributor + 0x100 + number // 32 * 4),
        move(3, 1 << number % 32),
        store(4, 3, 1),  # GICD_ISENABLER
        move(3, 7),
        0xD518CCA3,  # msr icc_sre_el1, x3
        0xD5033FDF,  # isb
        move(3, 0xFF),
        0xD5184603,  # msr icc_pmr_el1, x3
        move(3, 1),
        0xD518CCE3,  # msr icc_igrpen1_el1, x3
        0xD5033FDF,
        move(1, DEVICE),
        store(4, 3, 1, 0),  # it is ready
        unmask_interrupts(),
        WFI,
        branch(-1),
    )
    handler = program(
        0xD538CC04,  # mrs x4, icc_iar1_el1
        store(4, 4, 1, 8),  # the device may release its line
        0xD518CC24,  # msr icc_eoir1_el1, x4
        ERET,
    )
    return code, handler


@pytest.fixture
def spi() -> int:
    return 17


async def test_a_line_interrupts_while_it_is_asserted(spi: int) -> None:
    code, handler = interrupted(spi)
    async with ArmMachine(code) as m:
        m.memory.write(VECTORS + IRQ, handler)
        line = SpiLine(m.vm, spi)
        taken: list[bytes] = []

        def write(offset: int, data: bytes) -> None:
            m.device.log.append(("write", offset, data))
            if offset == 8:
                taken.append(data)
                line.set_level(len(taken) % 3 != 0)

        m.device.write = write  # type: ignore[method-assign]
        m.start()
        await m.until(lambda: 0 in m.device.written)
        line.set_level(True)
        await m.until(lambda: len(taken) == 3)
        line.set_level(True)
        await m.until(lambda: len(taken) == 6)
        assert set(taken) == {(FIRST_SPI + spi).to_bytes(4, "little")}
        await m.cpus[0].pause()
        assert len(taken) == 6, "it is released"


async def test_the_end_of_an_interrupt_lowers_its_line_and_is_told(spi: int) -> None:
    code, handler = interrupted(spi)
    async with ArmMachine(code) as m:
        m.memory.write(VECTORS + IRQ, handler)
        assert m.vm.routing is not None
        m.vm.routing.set_pin(spi, 0, spi)
        m.vm.routing.commit()
        ends = EndOfInterrupt(m.vm, spi)
        line = SpiLine(m.vm, spi)
        m.start()
        await m.until(lambda: 0 in m.device.written)
        for count in (1, 2):
            line.set_level(True)
            await m.until(lambda: _told(ends.fd))
            assert len([entry for entry in m.device.log if entry[1] == 8]) == count, (
                "one interrupt, though nobody released it"
            )
            line.set_level(False)
        ends.close()
        assert ends.fd == -1


def _told(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


@pytest.mark.thorough
async def test_a_guest_goes_on_in_another_machine_with_its_interrupts_and_clocks(spi: int) -> None:
    """Saved as it waits for an interrupt, with one more pending; the other machine has both, and its own clock goes on."""
    code, handler = interrupted(spi)
    async with ArmMachine(code) as there, ArmMachine(code) as here:
        there.memory.write(VECTORS + IRQ, handler)
        there.start()
        await there.until(lambda: 0 in there.device.written)
        await there.cpus[0].pause()
        SpiLine(there.vm, spi).set_level(True)  # pending, and taken by nobody
        mpidrs = [Registers(vcpu).get(MPIDR_EL1) for vcpu in there.cpus]
        moment = Moment.now()
        vcpus = [VcpuImage.read(Fields(read_vcpu(vcpu), "vcpu")) for vcpu in there.cpus]
        state = read_gic(there.gic, mpidrs)

        here.memory.write(RAM, there.memory.read(RAM, SIZE))
        for vcpu, image in zip(here.cpus, vcpus, strict=True):
            image.put(vcpu)
        GicImage.read(Fields(state, "gic"), len(mpidrs)).put(here.gic, mpidrs)
        passed = moment.passed_ns() * lib.avmm_counter_hz() // 1_000_000_000
        vcpus[0].put_counters(here.cpus[0], passed)
        now = read_gic(here.gic, mpidrs)
        assert [now[part] for part in ("distributor", "processors")] == [
            state[part] for part in ("distributor", "processors")
        ]  # of the service's registers KVM makes what it can do, cacheability among it, when they are set
        before, after = (Registers(m.cpus[0]).get(VIRTUAL_COUNTER) for m in (there, here))
        assert abs(after - before) < 60 * lib.avmm_counter_hz(), "both are of the same time"
        line = SpiLine(here.vm, spi)
        line.set_level(True)  # as its device does again
        here.start()
        await here.until(lambda: (FIRST_SPI + spi) in here.device.written.values())
        line.set_level(False)
        assert 8 not in there.device.written


async def test_a_host_devices_signal_is_an_interrupt_whose_end_it_is_told(spi: int) -> None:
    """As of VFIO's INTx: no step of it is this process's."""
    code, handler = interrupted(spi)
    async with ArmMachine(code) as m:
        m.memory.write(VECTORS + IRQ, handler)
        assert m.vm.routing is not None
        m.vm.routing.set_pin(spi, 0, spi)
        m.vm.routing.commit()
        trigger, unmask = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
        ends = EndOfInterrupt(m.vm, spi, trigger=trigger, fd=unmask)
        m.start()
        await m.until(lambda: 0 in m.device.written)
        for count in (1, 2, 3):
            os.eventfd_write(trigger, 1)
            await m.until(lambda: _told(unmask))
            assert len([entry for entry in m.device.log if entry[1] == 8]) == count
        ends.close()
        for fd in (trigger, unmask):
            os.close(fd)  # they were its owner's


async def test_a_vcpu_can_be_reset_and_runs_again() -> None:
    code = program(move(1, DEVICE), store(8, 5, 1, 0), move(5, 7), OFF)
    async with ArmMachine(code) as m:
        m.start()
        await m.ended()
        assert Registers(m.cpus[0]).get(x(5)) == 7
        m.exits.clear()
        reset(m.vm, m.cpus, m.features)
        assert Registers(m.cpus[0]).get(x(5)) == 0
        m.enter()
        m.start()
        await m.ended()
        assert [data for _, _, data in m.device.log] == [bytes(8), bytes(8)]


async def test_registers_are_read_and_set() -> None:
    async with ArmMachine(program(OFF)) as m:
        registers = Registers(m.cpus[0])
        for number in range(31):
            registers.set(x(number), (1 << 63) + number)
        assert [registers.get(x(number)) for number in range(31)] == [(1 << 63) + number for number in range(31)]
        assert registers.get(PC) == CODE


async def test_a_message_before_the_guest_takes_any_is_lost() -> None:
    """It has enabled no messages yet. KVM says that it is busy, which is not the monitor's error."""
    async with ArmMachine(program(OFF)) as m:
        with pytest.raises(KvmError) as caught:
            m.vm.signal_msi(gic_of(1).doorbell, 0, 8)
        assert caught.value.errno == errno.EBUSY


def test_what_this_host_has() -> None:
    kvm = Kvm.open()
    try:
        assert 32 <= room.vm_type(kvm.fd) <= 48
        vm = kvm.create_vm(1)
        assert room.shortcomings(vm) == []
        vcpu = vm.create_vcpu(0)
        reset(vm, [vcpu], VcpuFeatures())
        Gic(vm, distributor=0x08FF_0000, redistributors=0x08FD_0000, its=0x08FB_0000).close()
        assert vm.routing is not None
        assert vm.routing.allocate() == SPIS
        vm.close()
    finally:
        kvm.close()


@pytest.mark.parametrize("waiting", [True, False], ids=["waits", "computes"])
async def test_who_waits_is_told_from_who_computes(waiting: bool) -> None:
    """Wherever the host stops it: at rest it is nowhere but behind its WFI."""
    rest = [WFI, branch(-1)] if waiting else [branch(0)]
    async with ArmMachine(program(move(1, DEVICE), store(8, 3, 1, 0), rest)) as m:
        m.start()
        await m.until(lambda: 0 in m.device.written)
        for _ in range(20):
            await m.cpus[0].pause()
            found = waits(m.cpus[0], m.memory)
            m.cpus[0].resume()
            if found == waiting:  # it may have been on its way there
                break
            await asyncio.sleep(0.01)
        assert found == waiting
