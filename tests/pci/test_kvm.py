"""virtio-pci under /dev/kvm itself: a real vCPU makes the driver's accesses, KVM rings the doorbells and interrupts it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from aiovmm.bus import Range, Space
from aiovmm.devices.ioapic import IntxPins, IoApic
from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm, ioeventfd, routing
from aiovmm.machine.pci import KvmPciServices
from aiovmm.machine.x86_64.interrupts import IoApicSink, message_for_kvm
from aiovmm.memory import GuestMemory
from aiovmm.pci.capabilities import MSIX, VENDOR, VirtioCapType
from aiovmm.pci.config_ports import CONFIG_PORTS
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import ECAM_BASE, MMIO32
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.driver import Arena, Used
from aiovmm.virtqueue.status import Status
from tests.guests.machine import Machine
from tests.limits import HANGS
from tests.pci.echo import Echo

pytestmark = pytest.mark.kvm

BLOCK, COUNTS = 0x50000, 0x51000  # see tests/guests/agent.S
PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 1 << 30))[0]


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    try:
        opened = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    yield opened
    opened.close()


class VcpuGuest:
    """The agent guest as a GuestMachine. Used from a thread of its own, so that the event loop can serve its exits."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._request = 0
        self._handlers: dict[int, Callable[[], None]] = {}
        self._seen: dict[int, int] = {}

    def read(self, address: int, size: int, space: Space = Space.MMIO) -> bytes:
        return self._do(size | 0x20 * (space is Space.PIO), address, 0).to_bytes(8, "little")[:size]

    def write(self, address: int, data: bytes, space: Space = Space.MMIO) -> Awaitable[None] | None:
        self._do(len(data) | 0x10 | 0x20 * (space is Space.PIO), address, int.from_bytes(data, "little"))
        return None

    def on_message(self, address: int, data: int, handler: Callable[[], None]) -> None:
        self._handlers[data] = handler
        self._seen[data] = self._word(COUNTS + 4 * data)

    async def interrupts(self) -> None:
        """Hand on what the guest counted, for ever."""
        while True:
            for vector, handler in list(self._handlers.items()):
                count = self._word(COUNTS + 4 * vector)
                if count != self._seen[vector]:
                    self._seen[vector] = count
                    handler()
            await asyncio.sleep(0.001)

    def _do(self, code: int, address: int, value: int) -> int:
        self._request += 1
        self._memory.write(BLOCK + 8, code.to_bytes(8, "little"))
        self._memory.write(BLOCK + 16, address.to_bytes(8, "little") + value.to_bytes(8, "little"))
        self._memory.write(BLOCK, self._request.to_bytes(4, "little"))
        deadline = time.monotonic() + HANGS
        while self._word(BLOCK + 4) != self._request:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest does not come back from access {code:#x} to {address:#x}")
            time.sleep(0)
        return int.from_bytes(self._memory.read(BLOCK + 24, 8), "little")

    def _word(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, 4), "little")


class Running:
    """The agent guest with one device in slot 1, which echoes unless another is given."""

    def __init__(self, machine: Machine, plan: SegmentPlan = PLAN, device: VirtioDevice | None = None) -> None:
        self.machine = machine
        self.errors: list[Exception] = []
        self.worker = Worker("kvm calls")
        self.ioapic = IoApic(IoApicSink(machine.vm, self.worker.submit))
        intx = IntxPins(self.ioapic)
        services = KvmPciServices(
            machine.vm,
            machine.bus,
            machine.memory,
            self._create_task,
            self.worker,
            message_for_kvm,
            lambda ended, at: intx.line(ended, at.slot),
        )
        self.root = PciRoot([plan], services)
        self.root.add_config_ports()
        self.device = Echo()
        self.transport = VirtioPci(
            device or self.device, services, on_error=lambda device, exc: self.errors.append(exc)
        )
        self.address: PciAddress = self.root.add(self.transport)

    async def drive(self, scenario: Callable[[VirtioPciDriver], Awaitable[None]]) -> None:
        """Run `scenario` in a thread with a loop of its own, on the vCPU."""
        self.machine.start()
        try:
            await asyncio.to_thread(lambda: asyncio.run(self._drive(scenario)))
            assert self.machine.errors == []
        finally:
            await self.root.close()
            await self.worker.aclose()

    async def _drive(self, scenario: Callable[[VirtioPciDriver], Awaitable[None]]) -> None:
        guest = VcpuGuest(self.machine.memory)
        pci = PciDriver(guest, PLAN.ecam_base)
        driver = VirtioPciDriver(guest, self.machine.memory, pci, self.address.slot, Arena(0x100000, 6 << 20))
        await driver.probe()
        interrupts = asyncio.create_task(guest.interrupts())
        try:
            await scenario(driver)
        finally:
            interrupts.cancel()

    def waits(self, part: str) -> int:
        """Accesses to a region of the device that a vCPU waited with."""
        (rng,) = (r for r in self.machine.bus.ranges() if r.name == part)
        return self.machine.vm.range_counts(rng).sync

    def all_waits(self) -> int:
        """Accesses to any device that it waited with."""
        return sum(self.machine.vm.range_counts(rng).sync for rng in self.machine.bus.ranges())

    @staticmethod
    def _create_task(coro: object, *, name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coro, name=name)  # type: ignore[arg-type]


def ranges_of(running: Running, name: str) -> list[Range]:
    return [r for r in running.machine.bus.ranges() if r.name.startswith(name)]


async def doorbells_are_there(running: Running, driver: VirtioPciDriver) -> None:
    """DRIVER_OK does not wait for them: until KVM has them a kick is an exit."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        before = running.waits("echo notify"), driver.queues[0].kicks + 1
        assert await driver.request(0, [b"request"], [32]) == b"tseuqer"
        if (running.waits("echo notify"), driver.queues[0].kicks) == before:
            return
    raise AssertionError("all kicks are exits")


async def test_a_device_serves_a_vcpu(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            for pci in (driver.pci, PciDriver(driver.guest, None)):
                found = await pci.enumerate()
                assert [(f.slot, f.vendor, f.device) for f in found] == [(0, 0x8086, 0x0D57), (1, 0x1AF4, 0x1044)]
            await driver.start()
            assert driver.status == 0x0F
            await doorbells_are_there(running, driver)
            early, kicks = running.waits("echo notify"), driver.queues[0].kicks
            for n in range(20):
                assert await driver.request(0, [b"request %d" % n], [32]) == (b"request %d" % n)[::-1]
            assert driver.queues[0].kicks > kicks, "EVENT_IDX may save some"
            assert running.waits("echo notify") == early, "KVM takes the doorbells"
            before = running.waits("ecam echo"), running.waits("echo common")
            for offset in range(0, 64, 4):
                driver.pci.read(1, offset)
                driver.common(offset, 4)
            assert (running.waits("ecam echo"), running.waits("echo common")) == before, "reads do not wait"

        await running.drive(scenario)
        assert running.errors == []
        assert ranges_of(running, "e") == []


REGISTERS = [
    (0, 4),
    (2, 2),
    (4, 2),
    (6, 2),
    (0x0B, 1),
    (0x0E, 1),
    (0x10, 4),
    (0x34, 1),
    (0x40, 4),
    (0x53, 1),
    (0xFC, 4),
]


async def test_what_a_vcpu_reads_by_the_ports_is_what_the_ecam_shows_and_does_not_wait(kvm: Kvm) -> None:
    """Of slots with something in them and of empty ones; what is elsewhere or off reads as ones."""
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            ports = PciDriver(driver.guest, None)
            await ports.write(1, 0x3C, 0x0B, 1)
            before = running.all_waits()
            for slot in range(32):
                for offset, size in REGISTERS:
                    assert ports.read(slot, offset, size) == driver.pci.read(slot, offset, size)
            assert ports.read(1, 0x3C, 1) == 0x0B
            for address in (0x80010800, 0x80000900, 0x00000800):  # another bus, another function, not enabled
                driver.guest.write(CONFIG_PORTS, address.to_bytes(4, "little"), Space.PIO)
                assert driver.guest.read(CONFIG_PORTS + 4, 4, Space.PIO) == b"\xff" * 4
            assert running.all_waits() == before
            assert driver.guest.read(CONFIG_PORTS, 4, Space.PIO) == (0x800).to_bytes(4, "little"), "the last address"
            (rng,) = ranges_of(running, "pci config ports")
            assert machine.vm.range_counts(rng).posted == 0

        await running.drive(scenario)


async def test_a_register_whose_reading_does_something_does_it_by_the_ports_too(kvm: Kvm) -> None:
    """The virtio structures through configuration space (VIRTIO 1.2, 4.1.4.9): num_queues."""
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            ports = PciDriver(driver.guest, None)
            (at,) = (
                at for kind, at in driver.function.capabilities if kind == VENDOR and ports.read(1, at + 3, 1) == 5
            )
            for offset, value, size in ((4, 0, 1), (8, 0x12, 4), (12, 2, 4)):
                await ports.write(1, at + offset, value, size)
            before = running.all_waits()
            assert ports.read(1, at + 16, 2) == driver.common(0x12, 2) != 0
            assert running.all_waits() == before + 1

        await running.drive(scenario)


async def test_what_changes_nothing_does_not_wait_and_what_does_does(kvm: Kvm) -> None:
    """By the ports as by the ECAM; the other registers are as they were."""
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            for pci in (driver.pci, PciDriver(driver.guest, None)):
                held = {at: pci.read(1, at) for at in range(0, 0x100, 4)}
                before = running.all_waits()
                nothing_to_write = ((0x18, 0xFFFFFFFF, 4), (0x30, 0xFFFFF800, 4), (0x02, 0, 2))
                for at, value, size in nothing_to_write:
                    await pci.write(1, at, value, size)
                for at, size in ((0x04, 2), (0x10, 4), (0x14, 4), (0x3C, 1)):  # as they are
                    await pci.write(1, at, pci.read(1, at, size), size)
                assert running.all_waits() == before
                assert {at: pci.read(1, at) for at in range(0, 0x100, 4)} == held
                before = running.all_waits()
                await pci.write(1, 0x3C, pci.read(1, 0x3C, 1) ^ 1, 1)
                await pci.write(1, 0x06, 0xF900, 2)  # clears bits that are not set
                assert running.all_waits() == before + 2
            await driver.set_common(0x16, 1, 2)
            before = running.waits("echo common")
            await driver.set_common(0x16, 0, 2)
            await driver.set_common(0x16, 0, 2)
            desc = driver.common(0x20, 4)
            await driver.set_common(0x20, desc, 4)
            await driver.set_common(0x24, 0, 4)
            assert (running.waits("echo common"), driver.common(0x20, 4)) == (before + 1, desc)
            await driver.set_common(0x14, driver.status, 1)  # of the status each write is heard
            assert running.waits("echo common") == before + 2
            assert await driver.request(0, [b"there"], [5]) == b"ereht"

        await running.drive(scenario)
        assert running.errors == []


async def test_parts_of_a_devices_configuration_that_last_are_read_without_waiting(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)
        running.device.lasting_config = ((1, 2), (4, 4))

        async def scenario(driver: VirtioPciDriver) -> None:
            at = driver.structures[VirtioCapType.DEVICE].address
            running.device.config[0] = running.device.config[3] = ord("X")
            before = running.waits("echo device")
            assert (
                driver.guest.read(at + 4, 4) + driver.guest.read(at + 1, 2) + driver.guest.read(at + 6, 1) == b"efghbcg"
            )
            assert running.waits("echo device") == before
            assert (
                driver.guest.read(at, 4) + driver.guest.read(at + 3, 1) + driver.guest.read(at + 8, 4)
                == b"XbcXX\0\0\0\0"
            )
            assert running.waits("echo device") == before + 3

        await running.drive(scenario)


async def test_the_message_of_a_masked_vector_is_written_without_waiting_and_sent_when_it_opens(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            first = (0xFEE00000, driver.first_vector + 1)
            queue, table = driver.queues[0], running.transport._vectors.table
            await driver.pci.program_vector(driver.function, 1, *first, masked=True)
            before = running.waits("echo msix")
            await driver.pci.program_vector(driver.function, 1, 0xFEE01000, 0x55, masked=True)
            assert running.waits("echo msix") == before + 2, "the vector's control, twice"
            assert (table.route(1).address, table.route(1).data) == (0xFEE01000, 0x55)
            await driver.pci.program_vector(driver.function, 1, *first, masked=True)
            queue.add([b"quiet"], [8])
            queue.kick()
            await driver.pci.program_vector(driver.function, 1, *first)
            assert len(await queue.used(timeout=HANGS)) == 1, "by the interrupt that waited, or as it was open"
            waits = running.waits("echo msix")
            entry = driver.structures[VirtioCapType.COMMON].address + 0x8000 + 16
            driver.guest.write(entry + 8, first[1].to_bytes(4, "little"))
            assert running.waits("echo msix") == waits + 1, "of an open vector"

        await running.drive(scenario)
        assert running.errors == []


@pytest.mark.timeout(300)
async def test_200_resets_with_requests_in_flight_leave_nothing_and_lose_no_wake_up(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)
        settled: list[tuple[int, int, int]] = []
        answered = 0

        def left() -> tuple[int, int, int]:
            """Files, ranges, and tasks of the device."""
            return len(os.listdir("/proc/self/fd")), len(machine.bus.ranges()), running.device.running

        async def scenario(driver: VirtioPciDriver) -> None:
            nonlocal answered
            for round_ in range(200):
                await driver.start()
                for n in range(8):
                    assert await driver.request(0, [b"%d" % n], [8]) == b"%d" % n  # each by its own interrupt
                queue = driver.queues[0]
                for n in range(20):
                    queue.add([b"%d" % n], [8])
                    if n <= round_ % 20:  # the rest are offered, and no doorbell tells of them
                        queue.kick()
                await driver.reset()
                answered += len(queue.poll())
                settled.append(left())
                assert running.device.running == 0
            await driver.start()
            assert await driver.request(0, [b"still here"], [16]) == b"ereh llits"

        await running.drive(scenario)
        assert running.errors == []
        assert running.device.resets >= 200
        assert set(settled) == {settled[0]}
        assert 0 < answered < 200 * 20, "some were answered, and some in flight"


async def test_breakage_and_moves_under_a_vcpu(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            driver.queues[0].add([b"break"], [8])
            driver.queues[0].kick()
            await driver.config_interrupt()
            assert driver.status & Status.NEEDS_RESET
            await driver.pci.write(1, 4, 0, 2)
            await driver.pci.write(1, 0x10, 0xC8000000)
            await driver.pci.write(1, 0x14, 0)
            driver.structures.clear()
            await driver.probe()
            assert driver.function.bars[0].address == 0xC8000000
            await driver.start()
            early = 0
            for n in range(20):
                assert await driver.request(0, [b"moved"], [8]) == b"devom"
                early = running.waits("echo notify") if n < 10 else early  # until the doorbell is bound
            assert running.waits("echo notify") == early

        await running.drive(scenario)
        assert [str(e) for e in running.errors] == ["broken on demand"]


async def test_a_masked_vector_waits_under_kvm(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running = Running(machine)

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            message = (0xFEE00000, driver.first_vector + 1)
            await driver.pci.program_vector(driver.function, 1, *message, masked=True)
            queue = driver.queues[0]
            queue.add([b"quiet"], [8])
            queue.kick()
            used: list[Used] = []
            async with asyncio.timeout(HANGS):
                while not used:
                    used = queue.poll()
                    await asyncio.sleep(0.001)
            assert queue.irq.pulses == 0
            await driver.pci.program_vector(driver.function, 1, *message)
            async with asyncio.timeout(HANGS):
                await queue.irq.wait()

        await running.drive(scenario)


async def test_no_interrupt_is_lost_to_masks_that_come_and_go_while_rings_run(kvm: Kvm) -> None:
    """A real interrupt controller, a vector that a driver masks and opens between, before and after its requests, as it moves to
    another processor; both ways to mask it."""
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running, chance = Running(machine), random.Random(1)

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            queue, message = driver.queues[0], (0xFEE00000, driver.first_vector + 1)

            async def mask(on: bool) -> None:
                if chance.random() < 0.5:
                    await driver.pci.program_vector(driver.function, 1, *message, masked=on)
                else:
                    await driver.pci.program_vector(driver.function, 1, *message)
                    await driver.pci.set_msix(driver.function, enabled=True, masked=on)

            for n in range(150):
                await mask(on=chance.random() < 0.7)
                count = chance.randrange(1, 4)
                for _ in range(count):
                    queue.add([b"%d" % n], [8])
                    queue.kick()
                    if chance.random() < 0.3:
                        await mask(on=chance.random() < 0.5)
                await mask(on=False)
                await driver.pci.set_msix(driver.function, enabled=True)
                back = 0
                while back < count:
                    back += len(await queue.used(timeout=HANGS))  # by its interrupt, or it is a TimeoutError

        await running.drive(scenario)
        assert running.errors == []


async def test_a_vector_of_ours_has_no_descriptor_and_no_route(kvm: Kvm) -> None:
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running, before = Running(machine), len(os.listdir("/proc/self/fd"))
        seen: list[int] = []

        async def scenario(driver: VirtioPciDriver) -> None:
            gc.collect()  # what earlier tests have dropped is not counted
            seen.append(len(os.listdir("/proc/self/fd")))
            await driver.start()
            assert await driver.request(0, [b"there"], [5]) == b"ereht"
            seen.append(len(os.listdir("/proc/self/fd")))

        await running.drive(scenario)
        assert seen[1] - seen[0] == 1, "one kick eventfd for all queues"
        assert machine.vm.routing is not None
        assert machine.vm.routing.allocate() == 24, "the first that is no pin's"
        assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_what_a_driver_may_do_without_end_asks_nothing_of_kvm_and_the_rest_not_on_the_loop(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doorbells, irqfds and routes take KVM milliseconds, in which no other guest would be served."""
    asked: list[int] = []
    for module in (ioeventfd, routing):

        def noted(*args: object, call: Callable[..., int] = module.call) -> int:
            asked.append(threading.get_ident())
            return call(*args)

        monkeypatch.setattr(module, "call", noted)
    async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
        running, slot = Running(machine), 1

        async def scenario(driver: VirtioPciDriver) -> None:
            await driver.start()
            assert await driver.request(0, [b"first"], [5]) == b"tsrif"
            bound = 0
            async with asyncio.timeout(HANGS):
                while bound < 2:  # the driver did not wait for its doorbells
                    await asyncio.sleep(0.001)
                    bound = len(running.transport._doorbells._registered)
            at_first = len(asked)
            assert at_first > 0
            msix = next(offset for kind, offset in driver.function.capabilities if kind == MSIX)
            for _ in range(30):
                await driver.pci.write(slot, 0x04, 0, 2)
                await driver.pci.enable(slot)
                await driver.pci.write(slot, msix + 2, 0xC000, 2)
                await driver.pci.write(slot, msix + 2, 0x8000, 2)
                await driver.reset()
                await driver.start()
                assert await driver.request(0, [b"again"], [5]) == b"niaga"
            assert len(asked) == at_first, "all stayed as it was"
            await driver.pci.write(slot, 0x10, 0xC8000000)
            await driver.pci.write(slot, 0x14, 0)
            driver.structures.clear()
            await driver.probe()
            assert len(asked) == at_first + 4, "two doorbells unbound, and bound where the BAR is now"
            await driver.reset()
            await driver.start()
            assert await driver.request(0, [b"moved"], [5]) == b"devom"

        await running.drive(scenario)
    assert threading.get_ident() not in asked
