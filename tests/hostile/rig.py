"""Machines for a hostile driver: the device in slot 1, a disk in slot 2. VirtioPciDriver is the good driver and the bad one."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiovmm.devices.ioapic import IntxPins, IoApic
from aiovmm.kvm import Kvm
from aiovmm.machine.pci import KvmPciServices
from aiovmm.machine.x86_64.interrupts import IoApicSink, message_for_kvm
from aiovmm.memory import GuestMemory
from aiovmm.pci.bar import FIRST_BAR
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.services import PciServices
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import GuestMachine, VirtioPciDriver
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices
from aiovmm.virtqueue.driver import Arena, Descriptor, DriverQueue
from aiovmm.virtqueue.status import Status
from tests.guests.machine import Machine
from tests.hostile.rarer import RARER
from tests.hostile.targets import USUAL, Disk, Target
from tests.limits import HANGS
from tests.pci.test_kvm import VcpuGuest
from tests.saving.text import through_text

__all__ = ["RAM", "Rig", "SimulatedRig", "guest_rig", "simulated_rig"]

RAM = 16 << 20
PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 1 << 30))[0]
SLOT, DISK_SLOT = 1, 2
_ARENA, _SIZE = 0x100000, 8 << 20  # the agent and its page tables lie below
_OTHER_ARENA, _OTHER_SIZE = 0xA00000, 2 << 20
_REGISTERS = 6  # of BARs
_COMMAND = 0x04


class Rig:
    """What a case is given. `driver` has been started when it begins."""

    def __init__(self, target: Target, other: Disk, guest: GuestMachine, memory: GuestMemory) -> None:
        self.target = target
        self.other = other
        self.guest = guest
        self.memory = memory
        self.pci = PciDriver(guest, PLAN.ecam_base)
        self.driver = VirtioPciDriver(guest, memory, self.pci, SLOT, Arena(_ARENA, _SIZE))
        self.disk = VirtioPciDriver(
            guest, memory, self.pci, DISK_SLOT, Arena(_OTHER_ARENA, _OTHER_SIZE), first_vector=0x4C
        )
        self._configuration: dict[int, int] = {}

    async def start(self) -> None:
        """Both devices are found and live."""
        for driver in (self.driver, self.disk):
            await driver.probe()
        await self.driver.start()
        await self.disk.start()
        self._configuration = {
            offset: self.pci.read(SLOT, offset) for offset in range(FIRST_BAR, FIRST_BAR + 4 * _REGISTERS, 4)
        }

    # -- for cases

    @property
    def queue(self) -> DriverQueue:
        """The one that the device takes from at once."""
        return self.driver.queues[self.target.queue]

    def offer(self) -> None:
        """The target's good chain once more, if the ring has room for it."""
        if len(self.queue.free) >= len(self.target.readable) + len(self.target.room):
            self.queue.add(list(self.target.readable), list(self.target.room))

    def chain(self, *descriptors: Descriptor, head: int | None = None) -> None:
        """Offer it as it is, and kick."""
        self.queue.add_raw(descriptors, head=head)
        self.queue.kick(force=True)

    def good_chain(self) -> list[Descriptor]:
        """Descriptors of the target's good request, not linked: readable ones first."""
        arena = self.driver.arena
        parts = []
        for content in self.target.readable:
            address = arena.take(len(content))
            self.memory.write(address, content)
            parts.append(Descriptor(address, len(content)))
        return parts + [Descriptor(arena.take(size), size, 2) for size in self.target.room]

    async def settle(self) -> None:
        """Let the device come to rest: what it was asked for until now it has done, or not."""
        for _ in range(3):
            await self.other.good(self.disk)

    async def returned(self, timeout: float = HANGS) -> None:
        """All that was offered is back: a device that serves on answers that first. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.queue.outstanding:
                self.queue.poll()
                await asyncio.sleep(0.001)

    async def needs_reset(self, timeout: float = HANGS) -> bool:
        """Whether the device says so within that time."""
        end = asyncio.get_running_loop().time() + timeout
        while not self.driver.status & Status.NEEDS_RESET:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.001)
        return True

    # -- after them

    async def recovers(self) -> None:
        """A driver that comes anew finds everything in order, and so does the machine's other device."""
        await self.pci.write(SLOT, _COMMAND, 0, 2)
        for offset, value in self._configuration.items():
            await self.pci.write(SLOT, offset, value)
        await self.pci.enable(SLOT)
        self.driver.queues = []
        self.driver.arena = Arena(_ARENA, _SIZE)
        await self.driver.start()
        await self.target.good(self.driver)
        await self.other.good(self.disk)


def _functions(kind: str, place: Path, services: PciServices, errors: list[Exception]) -> tuple[Target, Disk, PciRoot]:
    target, other = (USUAL | RARER)[kind](place), Disk(place)
    assert isinstance(services.memory, GuestMemory)
    target.power_on(services.memory)
    root = PciRoot([PLAN], services)
    for each in (target, other):
        root.add(VirtioPci(each.device, services, on_error=lambda _device, error: errors.append(error)))
    return target, other, root


class SimulatedRig(Rig):
    """Without KVM: the driver is on the loop of the devices. Its guest can be saved and go on in devices that were made anew."""

    def __init__(self, kind: str, place: Path, errors: list[Exception]) -> None:
        self._kind, self._place, self._errors = kind, place, errors
        self._handlers: dict[tuple[int, int], Callable[[], None]] = {}  # of interrupts: the guest's
        memory = GuestMemory.create([(0, RAM)])
        super().__init__(*self._made(memory), self._services, memory)

    def _made(self, memory: GuestMemory) -> tuple[Target, Disk]:
        self._services = RecordingServices(memory)
        self._services._handlers = self._handlers
        target, other, self._root = _functions(self._kind, self._place, self._services, self._errors)
        return target, other

    async def open(self) -> None:
        """The devices."""
        await self.target.open()
        await self.other.open()

    async def move(self) -> None:
        """To devices that were made anew, by way of a file."""
        await self._root.suspend()
        status = self.driver.status
        state = through_text(self._root.save())
        await self._end()
        self.target, self.other = self._made(self.memory)
        for at in (self, self.pci, self.driver, self.disk):
            at.guest = self._services
        await self.open()
        await self._root.load(state)
        assert self.driver.status == status
        await self._root.unsuspend()

    async def _end(self) -> None:
        await self._root.close()
        await self.target.close()
        await self.other.close()
        self._services.close()

    async def close(self) -> None:
        """Idempotent."""
        await self._end()
        self.memory.close()


@asynccontextmanager
async def simulated_rig(kind: str, place: Path) -> AsyncIterator[tuple[SimulatedRig, list[Exception]]]:
    """One that has been started, and errors of its devices."""
    errors: list[Exception] = []
    rig = SimulatedRig(kind, place, errors)
    try:
        await rig.open()
        await rig.start()
        yield rig, errors
    finally:
        await rig.close()


async def guest_rig(
    kind: str, place: Path, kvm: Kvm, scenario: Callable[[Rig], Awaitable[None]]
) -> tuple[list[Exception], list[Exception]]:
    """`scenario` on a vCPU, in a thread; errors of the devices, and of the bus."""
    errors: list[Exception] = []
    async with Machine("agent", kvm=kvm, ram=[(0, RAM)]) as machine:
        worker = Worker("kvm calls")
        pins = IntxPins(IoApic(IoApicSink(machine.vm, worker.submit)))
        services = KvmPciServices(
            machine.vm,
            machine.bus,
            machine.memory,
            _create_task,
            worker,
            message_for_kvm,
            lambda ended, at: pins.line(ended, at.slot),
        )
        target, other, root = _functions(kind, place, services, errors)
        await target.open()
        await other.open()
        machine.start()
        guest = VcpuGuest(machine.memory)

        async def drive() -> None:
            rig = Rig(target, other, guest, machine.memory)
            interrupts = asyncio.create_task(guest.interrupts())
            try:
                await rig.start()
                await scenario(rig)
            finally:
                interrupts.cancel()

        try:
            await asyncio.to_thread(lambda: asyncio.run(drive()))
        finally:
            await root.close()
            await worker.aclose()
            await target.close()
            await other.close()
        return errors, [error for _, error in machine.errors]


def _create_task(coro: object, *, name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coro, name=name)  # type: ignore[arg-type]


def packed(*descriptors: Descriptor) -> bytes:
    """A table of them."""
    return b"".join(struct.pack("<QIHH", d.address, d.length, d.flags, d.next) for d in descriptors)
