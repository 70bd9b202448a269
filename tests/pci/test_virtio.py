"""A whole device's life over virtio-pci, as a Linux guest sees it, without KVM."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import struct
import threading
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import pytest

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.irq import IrqLine
from aiovmm.memory import GuestMemory
from aiovmm.pci.capabilities import MSIX, VENDOR, VirtioCapType
from aiovmm.pci.driver import PciDriver, finished
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import Doorbell, RecordingServices
from aiovmm.virtqueue.config import NO_VECTOR, QueueConfig
from aiovmm.virtqueue.driver import Arena
from aiovmm.virtqueue.status import Status
from tests.limits import HANGS
from tests.pci.echo import Echo, until

COMMON, DEVICE, NOTIFY = VirtioCapType.COMMON, VirtioCapType.DEVICE, VirtioCapType.NOTIFY


@dataclass
class Machine:
    """One echo device in slot 1, and its driver."""

    device: Echo
    transport: VirtioPci
    driver: VirtioPciDriver
    pci: PciDriver
    services: RecordingServices
    segment: PciSegment
    errors: list[Exception]

    async def bound(self) -> None:
        """The doorbells are, for which a driver need not wait."""
        if self.services.worker is not None:
            await self.services.worker.submit(lambda: None)


@pytest.fixture(params=["ioeventfd", "exits", "worker"])
async def machine(request: pytest.FixtureRequest, memory: GuestMemory, plan: SegmentPlan) -> AsyncIterator[Machine]:
    services = RecordingServices(memory, ioeventfds=request.param != "exits")
    if request.param == "worker":  # as with KVM: doorbells and lines are done a moment later
        services.worker = Worker("test")
    segment = PciSegment(plan, services)
    device, errors = Echo(), []
    transport = VirtioPci(device, services, on_error=lambda dev, exc: errors.append(exc))
    slot = segment.add(transport)
    pci = PciDriver(services, plan.ecam_base)
    driver = VirtioPciDriver(services, memory, pci, slot, Arena(0x1000, 8 << 20))
    await driver.probe()
    yield Machine(device, transport, driver, pci, services, segment, errors)
    if device.may_stop is not None:
        device.may_stop.set()
    await segment.close()
    if services.worker is not None:
        await services.worker.aclose()
    assert services.doorbells == []
    assert all(line.closed for line in services.lines)
    assert device.running == 0


async def test_what_lspci_shows(machine: Machine) -> None:
    function = machine.driver.function
    assert (function.vendor, function.device, function.subsystem) == (0x1AF4, 0x1044, (0x1AF4, 0x1044))
    assert function.class_code == 0xFF0000
    assert [c for c, _ in function.capabilities] == [VENDOR] * 4 + [MSIX, VENDOR]
    assert len(function.bars) == 1
    assert machine.pci.read(1, 0x08, 1) >= 1, "4.1.2.1: revision"
    kinds = {machine.pci.read(1, offset + 3, 1) for c, offset in function.capabilities if c == VENDOR}
    assert kinds == {1, 2, 3, 4, 5}
    assert machine.pci.read(1, function.capability(MSIX) + 2, 2) == 2, "three vectors"
    for structure in machine.driver.structures.values():
        bar = function.bars[0]
        if structure.length:
            assert bar.address <= structure.address
            assert structure.address + structure.length <= bar.address + bar.size


async def test_requests_go_round(machine: Machine) -> None:
    await machine.driver.start()
    assert machine.driver.status == 0x0F
    assert await machine.driver.request(0, [b"hello"], [16]) == b"olleh"
    assert await machine.driver.request(0, [b"again"], [16]) == b"niaga"
    assert machine.errors == []


async def test_notifications_take_no_exit(machine: Machine) -> None:
    await machine.driver.start()
    await machine.bound()
    before = machine.services.waited
    await machine.driver.request(0, [b"x"], [1])
    assert machine.services.waited - before == (0 if machine.services.doorbells else 1)
    assert machine.services.read(machine.driver.structures[VirtioCapType.ISR].address, 1) == b"\0", (
        "4.1.4.5.1: with MSI-X the queue bit stays clear"
    )


async def test_reading_the_common_structure_never_waits(machine: Machine) -> None:
    await machine.driver.start()
    before = machine.services.waited
    for offset in range(0, 64, 4):
        machine.driver.common(offset, 4)
    machine.driver.common(0x14, 1)
    assert machine.services.waited == before


async def test_features_beyond_the_offer_are_refused(machine: Machine) -> None:
    await machine.driver.reset()
    with pytest.raises(UsageError, match="refuses"):
        await machine.driver.negotiate(1 << 32 | 1 << 7)
    await machine.driver.reset()
    with pytest.raises(UsageError, match="refuses"):
        await machine.driver.negotiate(1 << 3)
    assert machine.driver.device_features & 1 << 32


async def test_the_offer_has_no_legacy_and_no_more_than_64_bits(machine: Machine) -> None:
    d = machine.driver
    await d.set_common(0, 2, 4)
    assert d.common(4, 4) == 0
    await d.set_common(0, 0xFFFFFFFF, 4)
    assert d.common(4, 4) == 0


async def test_vectors_out_of_range_read_back_as_none(machine: Machine) -> None:
    d = machine.driver
    for register in (0x10, 0x1A):
        assert d.common(register, 2) == NO_VECTOR
        await d.set_common(register, 2, 2)
        assert d.common(register, 2) == 2
        await d.set_common(register, 3, 2)
        assert d.common(register, 2) == NO_VECTOR


async def test_queues_show_their_registers(machine: Machine) -> None:
    d = machine.driver
    assert d.common(0x12, 2) == 2
    for queue, size in ((0, 64), (1, 16)):
        await d.set_common(0x16, queue, 2)
        assert (d.common(0x18, 2), d.common(0x1C, 2), d.common(0x1E, 2)) == (size, 0, queue)
    await d.set_common(0x16, 2, 2)
    assert d.common(0x18, 2) == 0, "4.1.4.3.1: no such queue"
    await d.set_common(0x16, 1, 2)
    await d.set_common(0x20, 0x11112222_33334000, 8)
    assert (d.common(0x20, 4), d.common(0x24, 4)) == (0x33334000, 0x11112222)
    await d.set_common(0x24, 0x5, 4)
    assert d.common(0x20, 8) == 0x5_33334000
    await d.set_common(0x1C, 0, 2)
    assert d.common(0x1C, 2) == 0
    await d.set_common(0x1C, 1, 2)
    await d.set_common(0x1C, 0, 2)
    assert d.common(0x1C, 2) == 1, "only a reset disables a queue"


@pytest.mark.parametrize(("offset", "size"), [(0x14, 2), (0x13, 2), (0x00, 2), (0x20, 2), (0x22, 4), (0x16, 1)])
async def test_writes_of_another_width_are_dropped(machine: Machine, offset: int, size: int) -> None:
    before = machine.services.read(machine.driver.structures[COMMON].address, 8) + bytes(
        machine.transport._common.image
    )
    await machine.driver.set_common(offset, (1 << 8 * size) - 1, size)
    after = machine.services.read(machine.driver.structures[COMMON].address, 8) + bytes(machine.transport._common.image)
    assert before == after


async def test_reset_ends_only_when_the_device_has_stopped(machine: Machine) -> None:
    d, device = machine.driver, machine.device
    await d.start()
    await d.request(0, [b"warm"], [4])
    device.stopping, device.may_stop = asyncio.Event(), asyncio.Event()
    result = machine.services.write(d.structures[COMMON].address + 0x14, b"\0")
    assert result is not None
    waiting = asyncio.ensure_future(finished(result))
    await device.stopping.wait()
    assert not waiting.done()
    assert device.running == 1
    assert d.status == 0x0F, "another vCPU sees 0 only afterwards"
    await d.set_common(0x16, 0, 2)
    assert d.common(0x16, 2) == 1, "and what it writes meanwhile is dropped"
    await d.set_common(0x14, 0x8F, 1)
    await d.set_common(0x14, 0, 1)
    device.may_stop.set()
    await waiting
    assert (device.running, d.status) == (0, 0)
    assert device.resets == 1


async def test_a_vcpu_that_gives_up_waiting_does_not_stop_the_reset(machine: Machine) -> None:
    d, device = machine.driver, machine.device
    await d.start()
    await d.request(0, [b"warm"], [4])
    device.stopping, device.may_stop = asyncio.Event(), asyncio.Event()
    waiting = asyncio.ensure_future(finished(machine.services.write(d.structures[COMMON].address + 0x14, b"\0")))
    await device.stopping.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    device.may_stop.set()
    await until(lambda: not d.status)
    device.stopping = device.may_stop = None
    await d.start()
    assert await d.request(0, [b"ok"], [2]) == b"ko"


async def test_after_reset_everything_is_initial(machine: Machine) -> None:
    d = machine.driver
    initial = bytes(machine.transport._common.image)
    await d.start()
    assert bytes(machine.transport._common.image) != initial
    await d.reset()
    assert bytes(machine.transport._common.image) == initial


async def test_doorbells_outlive_resets_and_decoding_turned_off(machine: Machine) -> None:
    """Each binding and unbinding keeps every vCPU's thread of the VM waiting in the host's kernel."""
    d = machine.driver
    await d.start()
    await machine.bound()
    bells, fds = list(machine.services.doorbells), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await machine.pci.write(1, 0x04, 0, 2)
        assert machine.services.read(d.structures[COMMON].address, 4) == b"\xff" * 4
        d.queues[0].kick()
        await machine.pci.enable(1)
        await d.reset()
        assert len(os.listdir("/proc/self/fd")) <= fds
        await d.start()
        assert machine.services.doorbells == bells
        assert await d.request(0, [b"again"], [5]) == b"niaga"


@pytest.mark.parametrize("machine", ["ioeventfd"], indirect=True)
async def test_a_driver_need_not_wait_for_its_doorbells(machine: Machine) -> None:
    """KVM takes milliseconds to bind one; what is written before comes as an exit."""
    d, services = machine.driver, machine.services
    go_on, real = threading.Event(), services.ioeventfd

    def slow(space: Space, address: int, size: int, fd: int) -> Doorbell | None:
        go_on.wait(HANGS)
        return real(space, address, size, fd)

    services.worker, services.ioeventfd = Worker("slow"), slow  # type: ignore[method-assign]
    try:
        await d.start()
        assert await d.request(0, [b"early"], [5]) == b"ylrae"
        assert not services.doorbells
        assert not go_on.is_set()
    finally:
        go_on.set()
    await services.worker.aclose()
    before = services.waited
    assert await d.request(0, [b"late"], [4]) == b"etal"
    assert services.waited == before


async def test_a_kick_from_before_the_driver_is_a_look_in_vain(machine: Machine) -> None:
    """Doorbells outlive a reset, and what is rung between two drivers stays in them."""
    d = machine.driver
    await d.start()
    await d.request(0, [b"x"], [1])
    await d.reset()
    kick = machine.transport._doorbells._kicks[0]
    os.eventfd_write(kick, 3)
    await d.start()
    await until(lambda: not readable(kick))
    assert d.queues[0].poll() == []
    assert d.queues[0].irq.pulses == 0
    assert machine.errors == []
    assert await d.request(0, [b"after"], [5]) == b"retfa"


def readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


async def test_what_answers_where_a_device_did_finds_no_doorbell_of_it(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    other = VirtioPci(Echo(), machine.services)
    slot = machine.segment.add(other)
    await machine.pci.enable(slot)
    base = d.structures[COMMON].address
    await machine.pci.write(1, 0x04, 0, 2)
    await machine.pci.write(slot, 0x10, base & 0xFFFFFFFF)
    await machine.pci.write(slot, 0x14, base >> 32)
    assert machine.services.doorbells == []
    second = VirtioPciDriver(machine.services, d.memory, machine.pci, slot, Arena(9 << 20, 4 << 20), first_vector=0x60)
    await second.probe()
    await second.start()
    assert await second.request(0, [b"mine"], [4]) == b"enim"
    await machine.pci.enable(1)
    assert all(b.fd in other._doorbells._kicks for b in machine.services.doorbells), (
        "the first comer keeps the addresses"
    )
    await machine.pci.write(slot, 0x04, 0, 2)
    assert await d.request(0, [b"back"], [4]) == b"kcab"
    assert all(b.fd in machine.transport._doorbells._kicks for b in machine.services.doorbells)


async def test_reset_clears_the_isr(machine: Machine) -> None:
    await machine.driver.start()
    machine.device.config_changed()
    await machine.driver.reset()
    assert machine.services.read(machine.driver.structures[VirtioCapType.ISR].address, 1) == b"\0"


async def test_two_hundred_resets_under_load_leak_nothing(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    await d.request(0, [b"warm"], [4])
    gc.collect()  # other tests' loops hold fds
    before = None
    for round_ in range(200):
        for i in range(8):
            d.queues[0].add([b"%d" % i], [8])
            d.queues[0].kick()
        if round_ % 3:
            await d.queues[0].used(4)
        await d.start()
        assert await d.request(0, [b"ok"], [2]) == b"ko"
        state = (len(os.listdir("/proc/self/fd")), len(machine.services.lines), len(machine.services.bus.ranges()))
        before = before or state
        assert state == before
    assert machine.errors == []
    assert len(machine.services.tasks) <= 2


async def test_a_broken_device_asks_for_a_reset_and_works_after_it(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    d.queues[0].add([b"break"], [4])
    d.queues[0].kick()
    await d.config_interrupt()
    assert d.status & Status.NEEDS_RESET
    assert str(machine.errors.pop()) == "broken on demand"
    await d.start()
    assert await d.request(0, [b"fine"], [4]) == b"enif"


async def test_rings_outside_memory_break_the_device_only(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    await d.reset()
    await d.negotiate()
    await d.set_common(0x16, 0, 2)
    await d.set_common(0x20, 1 << 60, 8)
    await d.set_common(0x1C, 1, 2)
    await d.set_common(0x14, d.status | Status.DRIVER_OK, 1)
    assert d.status & Status.NEEDS_RESET
    assert len(machine.errors) == 1
    await d.start()
    assert await d.request(0, [b"fine"], [4]) == b"enif"


async def test_device_configuration_and_its_generation(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    assert d.load(DEVICE, 0, 4) == int.from_bytes(b"abcd", "little")
    assert d.load(DEVICE, 4, 8) == int.from_bytes(b"efgh", "little")
    await d.store(DEVICE, 0, 0x41, 1)
    assert d.load(DEVICE, 0, 1) == 0x41
    generation = d.common(0x15, 1)
    machine.device.config[0] = 0x42
    machine.device.config_changed()
    await d.config_interrupt()
    assert d.common(0x15, 1) != generation
    isr = d.structures[VirtioCapType.ISR].address
    assert machine.services.read(isr, 1) == b"\2"
    assert machine.services.read(isr, 1) == b"\0", "reading clears it"


async def test_a_malformed_configuration_write_breaks_the_device_only(machine: Machine) -> None:
    await machine.driver.start()
    await machine.driver.store(DEVICE, 0, 0xADBB, 2)
    await machine.driver.config_interrupt()
    assert machine.driver.status & Status.NEEDS_RESET


async def test_a_configuration_write_that_takes_time_ends_when_it_is_done(machine: Machine) -> None:
    await machine.driver.start()
    done = asyncio.get_running_loop().create_future()
    machine.device.write_config = lambda offset, data: done  # type: ignore[method-assign,assignment]
    writing = asyncio.ensure_future(machine.driver.store(DEVICE, 0, 1, 1))
    await asyncio.sleep(0)
    assert not writing.done()
    done.set_exception(OSError(5, "the host could not"))
    await writing
    assert machine.driver.status & Status.NEEDS_RESET
    assert [str(error) for error in machine.errors] == ["[Errno 5] the host could not"]


@pytest.mark.parametrize("queue", [2, 3, 100, 0xFFFF])
async def test_a_queue_that_is_not_there_has_no_doorbell(machine: Machine, queue: int) -> None:
    d = machine.driver
    await d.start()
    await d.set_common(0x16, queue, 2)
    offset = d.common(0x1E, 2) * d.notify_multiplier
    assert offset >= d.structures[NOTIFY].length
    address = d.structures[NOTIFY].address + offset
    bar = d.function.bars[0]
    assert address < bar.address + bar.size, "nor that of another function"
    assert all(bell.address != address for bell in machine.services.doorbells)
    d.queues[0].add([b"x"], [1])
    machine.services.write(address, struct.pack("<H", queue))
    await asyncio.sleep(0.01)
    assert d.queues[0].poll() == []


async def test_config_changes_before_driver_ok_interrupt_nobody(machine: Machine) -> None:
    machine.device.config_changed()
    assert machine.driver.config_irq.pulses == 0
    assert machine.driver.common(0x15, 1) == 1


async def test_without_msix_the_isr_bit_is_kept(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    await machine.pci.set_msix(d.function, enabled=False)
    d.queues[0].add([b"x"], [1])
    d.queues[0].kick()
    await until(lambda: machine.services.pins[0].asserted)
    assert len(d.queues[0].poll()) == 1
    assert machine.services.read(d.structures[VirtioCapType.ISR].address, 1) == b"\1"
    assert d.queues[0].irq.pulses == 0


async def test_a_masked_vector_keeps_its_interrupt(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    address, data = 0xFEE00000, d.first_vector + 1
    await machine.pci.program_vector(d.function, 1, address, data, masked=True)
    d.queues[0].add([b"x"], [1])
    d.queues[0].kick()
    pba = d.function.bars[0].address + (machine.pci.read(1, d.function.capability(MSIX) + 8) & ~7)
    await until(lambda: machine.services.read(pba, 8) == b"\2" + bytes(7))
    assert d.queues[0].irq.pulses == 0
    await machine.pci.program_vector(d.function, 1, address, data)
    assert d.queues[0].irq.pulses == 1
    assert machine.services.read(pba, 8) == bytes(8)


async def test_doorbells_follow_the_bar(machine: Machine) -> None:
    d = machine.driver
    await d.start()
    await machine.bound()
    old = [b.address for b in machine.services.doorbells]
    await machine.pci.write(1, 0x10, 0xD0000000)
    await machine.pci.write(1, 0x14, 0)
    if old:
        assert [b.address for b in machine.services.doorbells] == [0xD0003000, 0xD0003004]
    await machine.pci.write(1, 0x04, 0, 2)
    assert machine.services.read(0xD0000000, 4) == b"\xff" * 4
    await machine.pci.enable(1)
    await d.probe()
    d.structures.clear()
    await d.probe()
    assert d.structures[COMMON].address == 0xD0000000
    assert d.status == 0x0F
    await d.start()
    assert await d.request(0, [b"moved"], [5]) == b"devom"


async def test_the_pci_cfg_window_reads_writes_and_notifies(machine: Machine) -> None:
    d, pci = machine.driver, machine.pci
    await d.start()
    window = next(o for c, o in d.function.capabilities if c == VENDOR and pci.read(1, o + 3, 1) == 5)

    async def point(offset: int, length: int) -> int:
        await pci.write(1, window + 4, 0, 1)
        await pci.write(1, window + 8, offset)
        await pci.write(1, window + 12, length)
        return window + 16

    assert pci.read(1, await point(0x14, 1), 1) == 0x0F
    assert pci.read(1, await point(0x2000, 4)) == int.from_bytes(b"abcd", "little")
    await pci.write(1, await point(0x2000, 2), 0x5A5A, 2)
    assert machine.device.config[:3] == b"ZZc"
    d.queues[0].add([b"poke"], [4])
    await pci.write(1, await point(0x3000, 2), 0, 2)
    (used,) = await d.queues[0].used()
    assert used.data == b"ekop"
    await pci.write(1, await point(0x14, 1), 0, 1)
    assert d.status == 0, "a reset through the window waits as well"
    for offset, length in ((0x2001, 2), (0x2002, 4), (0x2000, 3), (0x2000, 0), (0x10000, 4), (0xFFFFFFFC, 4)):
        machine.device.config[:] = b"untouched"[:8]
        await pci.write(1, await point(offset, length), 0xFFFFFFFF)
        assert pci.read(1, window + 16) == 0xFFFFFFFF
        assert machine.device.config == b"untouche"


async def test_a_device_that_gives_more_than_it_was_asked_for_overwrites_no_register(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor makes a configuration space that is larger than its window."""
    function, pci = machine.driver.function, machine.pci
    window = next(o for c, o in function.capabilities if c == VENDOR and pci.read(1, o + 3, 1) == 5)
    await pci.write(1, window + 8, 0x2000)
    await pci.write(1, window + 12, 4)
    before = bytes(machine.transport.config.data)
    monkeypatch.setattr(machine.device, "read_config", lambda offset, size: b"x" * 8192)
    with pytest.raises(ValueError, match="a read of 4 bytes gave 8192"):
        pci.read(1, window + 16)
    assert machine.transport.config.data == before


async def test_unplugging_a_live_device_stops_it(machine: Machine) -> None:
    await machine.driver.start()
    await machine.driver.request(0, [b"x"], [1])
    fds = len(os.listdir("/proc/self/fd"))
    await machine.segment.remove(1)
    assert machine.device.running == 0
    assert machine.services.doorbells == []
    assert len(os.listdir("/proc/self/fd")) < fds
    assert machine.pci.read(1, 0) == 0xFFFFFFFF
    machine.device.config_changed()
    assert machine.driver.config_irq.pulses == 0, "nobody is told any more"


class OtherProcess:
    """A back end that serves queues somewhere else: it takes the fds and answers nothing itself."""

    def __init__(self) -> None:
        self.kicks: list[int] = []
        self.irq_fds: list[int | None] = []
        self.resets = 0
        self.fails = False

    async def activate(
        self,
        configs: list[QueueConfig],
        features: int,
        kick_fds: list[int],
        queue_irqs: list[IrqLine],
        config_irq: IrqLine,
    ) -> None:
        if self.fails:
            raise OSError("connection refused")
        self.kicks = list(kick_fds)
        self.irq_fds = [irq.fd for irq in queue_irqs]  # type: ignore[attr-defined]

    def reset(self) -> Awaitable[None]:
        self.resets += 1
        return asyncio.sleep(0)


async def test_another_process_can_serve_the_queues(
    services: RecordingServices, segment: PciSegment, plan: SegmentPlan, memory: GuestMemory
) -> None:
    other = OtherProcess()
    errors: list[Exception] = []
    transport = VirtioPci(Echo(), services, backend=other, on_error=lambda d, e: errors.append(e))  # type: ignore[arg-type]
    slot = segment.add(transport)
    pci = PciDriver(services, plan.ecam_base)
    driver = VirtioPciDriver(services, memory, pci, slot, Arena(0x1000, 8 << 20))
    await driver.probe()
    await driver.start()
    driver.queues[1].add([b"x"])
    driver.queues[1].kick(force=True)
    assert os.eventfd_read(other.kicks[1]) == 1
    vector = services.lines[1]
    assert other.irq_fds == [services.lines[0].fd, vector.fd]
    os.eventfd_write(other.irq_fds[1] or -1, 1)
    vector.collect()
    assert driver.queues[1].irq.pulses == 1

    await pci.program_vector(driver.function, 2, vector.address, vector.data, masked=True)
    os.eventfd_write(other.irq_fds[1] or -1, 1)
    pba = driver.function.bars[0].address + (pci.read(slot, driver.function.capability(MSIX) + 8) & ~7)
    assert services.read(pba, 8)[0] == 4, "what others signal while masked is pending as well"
    await pci.program_vector(driver.function, 2, vector.address, vector.data)
    assert driver.queues[1].irq.pulses == 2

    await driver.reset()
    assert other.resets == 1
    other.fails = True
    await driver.start()
    assert driver.status & Status.NEEDS_RESET
    assert str(errors.pop()) == "connection refused"
    await segment.close()
