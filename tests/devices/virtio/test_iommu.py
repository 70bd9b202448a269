"""The IOMMU and a device behind it, each with its driver: what the device reaches, and what happens when it reaches further."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

import pytest

from aiovmm.devices.virtio.iommu import IommuDevice, Translation
from aiovmm.errors import GuestFault, StateError
from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.testing import Descriptor, Harness
from aiovmm.testing.pci import MESSAGES
from aiovmm.virtqueue import Queue, VirtioDevice
from aiovmm.virtqueue.driver import NEXT, WRITE

EP = 0x18
IOVA = 1 << 40
OK, INVAL, RANGE, NOENT = 0, 4, 5, 6
READ, RW = 1, 3
MIB = 1 << 20


class Echo(VirtioDevice):
    """Copies what is readable to what is writable."""

    device_id = 42
    name = "echo"
    queue_sizes = (64,)

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, queues: list[Queue], features: int) -> None:
        self.runs += 1
        async for chain in queues[0]:
            chain.write(chain.read_all()[: chain.room])
            queues[0].push(chain)


@dataclass
class Pair:
    """The driver of the IOMMU, and that of a device behind it."""

    iommu: Harness
    echo: Harness
    device: IommuDevice
    translation: Translation

    async def ask(self, *parts: bytes, room: int = 4) -> bytes:
        return await self.iommu.request(0, [b"".join(parts)], [room])

    async def status(self, *parts: bytes) -> int:
        answer = await self.ask(*parts)
        assert answer[1:] == bytes(3)
        return answer[0]

    async def attach(self, domain: int, flags: int = 0) -> int:
        return await self.status(struct.pack("<B3xIII4x", 1, domain, EP, flags))

    async def detach(self, domain: int) -> int:
        return await self.status(struct.pack("<B3xII8x", 2, domain, EP))

    async def map(self, domain: int, iova: int, size: int, gpa: int, flags: int = RW) -> int:
        return await self.status(struct.pack("<B3xIQQQI", 3, domain, iova, iova + size - 1, gpa, flags))

    async def unmap(self, domain: int, iova: int, size: int) -> int:
        return await self.status(struct.pack("<B3xIQQ4x", 4, domain, iova, iova + size - 1))

    def expect_events(self, count: int = 1) -> None:
        for _ in range(count):
            self.iommu.queues[1].add([], [24])
        self.iommu.queues[1].kick()

    async def event(self) -> tuple[int, int, int, int]:
        """(reason, flags, endpoint, address)"""
        (used,) = await self.iommu.queues[1].used()
        assert used.length == 24
        return struct.unpack("<B3xII4xQ", used.data)


@contextlib.asynccontextmanager
async def pair(*, bypass: bool = True) -> AsyncIterator[Pair]:
    """The device behind the IOMMU is not started yet if it may not bypass."""
    device, echo = IommuDevice(MESSAGES), Harness(Echo(), memory_size=MIB)
    device.power_on(echo.memory)
    translation = device.translation()
    echo.device_memory = translation
    async with Harness(device, memory_size=MIB) as iommu:
        if not bypass:
            assert device.write_config(36, b"\0") is None
        # the runner is made on entering: the rings are live from then on, in bypass
        device.add_endpoint(EP, translation, _Later(echo))
        async with echo:
            yield Pair(iommu, echo, device, translation)


class _Later:
    """The echo device's runner, which its harness makes."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def uses(self, start: int, end: int) -> bool:
        return self.harness.runner.uses(start, end)

    async def revalidate(self) -> None:
        if hasattr(self.harness, "runner"):
            await self.harness.runner.revalidate()


async def restart_in_domain(p: Pair) -> None:
    """As Linux does it: the driver lets go of the device, the domain is made, then its rings are mapped and it starts."""
    await p.echo.reset()
    assert await p.attach(1) == OK
    assert await p.map(1, 0, MIB, 0) == OK
    await p.echo.start()


async def test_without_a_driver_the_device_reaches_all_memory() -> None:
    async with pair() as p:
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"


async def test_without_bypass_it_reaches_nothing() -> None:
    async with pair(bypass=False) as p:
        assert isinstance(await p.echo.broken(), GuestFault)
        assert p.translation.table.count == 0


async def test_the_driver_has_written_bypass_when_devices_have_let_go() -> None:
    async with pair() as p:
        assert p.echo.runner.live
        pending = p.device.write_config(36, b"\0")
        assert pending is not None
        await pending
        assert not p.echo.runner.live
        assert isinstance(await p.echo.broken(), GuestFault)
        assert p.device.write_config(36, b"\0") is None, "nothing is to be waited for when nothing changes"


async def test_however_often_the_driver_writes_bypass_there_is_one_task_a_device() -> None:
    async with pair() as p:
        before = len(asyncio.all_tasks())
        for n in range(1001):
            pending = p.device.write_config(36, bytes([n & 1]))
            if isinstance(pending, Coroutine):
                pending.close()  # as of a vCPU that is stopped
        assert len(asyncio.all_tasks()) <= before + 1
        await p.device.close()
        assert not p.echo.runner.live, "the last word was that it reaches nothing"
        assert isinstance(await p.echo.broken(), GuestFault)


async def test_a_bypass_domain_changes_nothing_for_a_live_device() -> None:
    async with pair() as p:
        assert await p.attach(1, 1) == OK
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"
        assert await p.detach(1) == OK
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"
        assert p.echo.device.runs == 1  # type: ignore[attr-defined]


async def test_a_device_works_in_a_domain() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        assert await p.echo.request(0, [b"a" * 5000], [3000, 3000], indirect=True) == b"a" * 5000


async def test_a_mapping_leads_where_it_says_with_the_rights_it_says() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        p.echo.memory.write(0x80000, b"one ")
        p.echo.memory.write(0x90000, b"two ")
        for page, gpa, flags in ((0, 0x80000, READ), (1, 0x90000, READ), (2, 0xA0000, RW)):
            assert await p.map(1, IOVA + page * PAGE_SIZE, PAGE_SIZE, gpa, flags) == OK
        p.echo.memory.write(0x80000 + PAGE_SIZE - 4, b"uno ")
        q = p.echo.queues[0]
        q.add_raw([Descriptor(IOVA + PAGE_SIZE - 4, 8, NEXT, 1), Descriptor(IOVA + 2 * PAGE_SIZE + 8, 8, WRITE)])
        q.kick()
        await q.irq.wait()
        assert p.echo.memory.read(0xA0008, 8) == b"uno two "


@pytest.mark.parametrize(
    ("descriptor", "reason", "flags"),
    [
        (Descriptor(IOVA + 8 * PAGE_SIZE, 16, WRITE), 2, 0x100),
        (Descriptor(IOVA + 8 * PAGE_SIZE, 16), 2, 0x100),
        (Descriptor(IOVA, 16, WRITE), 2, 0x102),  # the mapping is there, the right to write is not
    ],
)
async def test_an_unmapped_access_is_a_fault_and_no_memory_moves(
    descriptor: Descriptor, reason: int, flags: int
) -> None:
    async with pair() as p:
        p.expect_events()
        await restart_in_domain(p)
        assert await p.map(1, IOVA, PAGE_SIZE, 0x80000, READ) == OK
        before = p.echo.memory.read(0x80000, 0x80000)
        q = p.echo.queues[0]
        q.put(0, Descriptor(0, 4, NEXT, 1) if descriptor.flags & WRITE else descriptor)
        q.put(1, descriptor)
        q.offer(0)
        q.kick()
        fault = await p.echo.broken()
        assert isinstance(fault, GuestFault)
        p.device.fault(EP, fault.address)  # what the machine does with what breaks a device
        assert await p.event() == (reason, flags, EP, descriptor.address)
        assert p.echo.memory.read(0x80000, 0x80000) == before
        await p.echo.reset()  # and the device can be used again
        await p.echo.start()
        assert await p.echo.request(0, [b"again"], [16]) == b"again"


async def test_a_device_whose_rings_are_unmapped_is_stopped_before_the_answer() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        assert p.echo.runner.live
        assert await p.unmap(1, 0, MIB) == OK
        assert not p.echo.runner.live
        assert isinstance(await p.echo.broken(), GuestFault)
        assert p.translation.table.count == 0


@pytest.mark.parametrize("how", ["detach without bypass", "attach elsewhere", "reset of the IOMMU without bypass"])
async def test_nor_does_it_go_on_in_a_domain_that_does_not_have_its_rings(how: str) -> None:
    async with pair() as p:
        await restart_in_domain(p)
        assert p.device.write_config(36, b"\0") is None
        if how.startswith("detach"):
            assert await p.detach(1) == OK
        elif how.startswith("attach"):
            assert await p.attach(2) == OK
        else:
            await p.iommu.reset()
        assert isinstance(await p.echo.broken(), GuestFault)
        assert not p.echo.runner.live


async def test_a_reset_of_the_iommu_with_bypass_leaves_identity_mapped_devices_alone() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        await p.iommu.reset()
        await p.iommu.start()
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"
        assert await p.unmap(1, 0, MIB) == NOENT


async def test_unmapping_other_pages_does_not_disturb_a_live_device() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        for i in range(200):
            assert await p.map(1, IOVA + i * PAGE_SIZE, PAGE_SIZE, 0x80000) == OK
        assert len(p.device._tables[1]) == 201
        assert await p.unmap(1, IOVA, 200 * PAGE_SIZE) == OK
        assert p.translation.table.count == 1
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"


async def test_probe_and_configuration() -> None:
    async with pair() as p:
        answer = await p.ask(struct.pack("<B3xI64x", 5, EP), room=516)
        assert len(answer) == 516
        assert struct.unpack_from("<HHB3xQQ", answer) == (1, 20, 1, 0xFEE00000, 0xFEEFFFFF)
        assert answer[24:] == bytes(488 + 4)
        answer = await p.ask(struct.pack("<B3xI64x", 5, 1), room=516)
        assert answer == bytes(512) + bytes([NOENT, 0, 0, 0])
        config = struct.unpack("<QQQIIIB3x", p.device.read_config(0, 40))
        assert config == ((1 << 64) - PAGE_SIZE, 0, (1 << 48) - 1, 0, 0xFFFFFFFF, 512, 1)
        for data, expected in ((b"\2", 1), (b"\0", 0), (b"\1", 1)):
            pending = p.device.write_config(36, data)
            if isinstance(pending, Coroutine):
                pending.close()
            assert p.device.read_config(36, 1)[0] == expected
        p.device.write_config(0, bytes(8))
        assert p.device.read_config(0, 8) != bytes(8)


async def test_bad_requests() -> None:
    async with pair() as p:
        assert await p.ask(bytes([77]) + bytes(20)) == b""  # a type of the future: not even a status
        assert await p.status(bytes([3]) + bytes(10)) == INVAL
        assert await p.map(1, 0, PAGE_SIZE, 0) == NOENT
        assert await p.ask(bytes([3]) + bytes(35), room=3) == b""  # nowhere to put a status
        answer = await p.ask(
            struct.pack("<B3xI64x", 5, EP), room=100
        )  # no room for properties, of which none is written
        assert answer[96:] == bytes([INVAL, 0, 0, 0])
        assert not any(answer[at : at + 4] == b"\1\0\x14\0" for at in range(96))


async def test_faults_without_a_buffer_are_counted_and_dropped() -> None:
    async with pair() as p:
        assert await p.unmap(1, 0, PAGE_SIZE) == NOENT  # the device runs
        for _ in range(100):
            p.device.fault(EP, 0x1234)
        p.device.fault(99, 0)  # no endpoint of this number
        while p.device.events_lost < 100:  # noqa: ASYNC110 - nobody is told of an event that is lost
            await asyncio.sleep(0)
        assert (p.device.faults, p.device.events_lost) == (100, 100)
        p.expect_events()
        p.device.fault(EP, 0x1234)
        assert await p.event() == (1, 0x100, EP, 0x1234)  # attached to no domain


async def test_the_end_of_a_machine_is_no_fault_of_the_devices_in_it() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        p.device.power_off()
        await p.iommu.reset()
        await p.device.close()
        assert p.echo.runner.live
        assert await p.echo.request(0, [b"hello"], [16]) == b"hello"


async def test_a_new_machine_begins_anew() -> None:
    device = IommuDevice(MESSAGES)
    with pytest.raises(StateError):
        device.translation()
    memory = GuestMemory.create([(0, MIB)])
    device.power_on(memory)
    device.write_config(36, b"\0")
    device.power_on(memory)
    assert device.domains.bypass
    memory.close()


@pytest.mark.parametrize("seed", range(4))
async def test_the_table_and_the_views_are_the_mappings(seed: int) -> None:
    """Random MAPs and UNMAPs over memory with a hole, each page looked up both ways: natively and as a view."""
    rng = random.Random(seed)
    memory = GuestMemory.create([(0, 64 * PAGE_SIZE), (96 * PAGE_SIZE, 32 * PAGE_SIZE)])
    for region in memory.regions:
        for page in range(region.gpa, region.end, PAGE_SIZE):
            memory.write(page, struct.pack("<Q", page))
    device = IommuDevice(MESSAGES)
    device.power_on(memory)
    translation = device.translation()

    class Idle:
        def uses(self, start: int, end: int) -> bool:
            return False

        async def revalidate(self) -> None:
            return

    device.add_endpoint(EP, translation, Idle())
    reached: dict[int, tuple[int, int]] = {}
    async with Harness(device, memory_size=MIB) as h:
        p = Pair(h, h, device, translation)
        assert await p.attach(1) == OK
        for _ in range(150):
            first, count = rng.randrange(40), rng.randrange(1, 12)
            if rng.random() < 0.6:
                target, flags = rng.randrange(140), rng.randrange(4)
                status = await p.map(1, first * PAGE_SIZE, count * PAGE_SIZE, target * PAGE_SIZE, flags)
                if status == OK:
                    reached.update({first + i: (target + i, flags) for i in range(count)})
            elif await p.unmap(1, first * PAGE_SIZE, count * PAGE_SIZE) == OK:
                for page in range(first, first + count):
                    reached.pop(page, None)
            for page in range(52):
                gpa, flags = reached.get(page, (200, 0))
                present = gpa < 64 or 96 <= gpa < 128
                for right in (1, 2, 3):
                    found = lib.avmm_mem_find(translation.table, page * PAGE_SIZE, PAGE_SIZE, right)
                    allowed = present and flags & right == right
                    host = memory.host_address(gpa * PAGE_SIZE, PAGE_SIZE) if allowed else 0
                    assert int(ffi.cast("uintptr_t", found)) == host
                if present and flags & READ:
                    assert struct.unpack("<Q", translation.read(page * PAGE_SIZE, 8))[0] == gpa * PAGE_SIZE
                    assert translation.slice(page * PAGE_SIZE, 8).readonly == (not flags & 2)
                else:
                    with pytest.raises(GuestFault):
                        translation.read(page * PAGE_SIZE, 8)
                if not (present and flags & 2):
                    with pytest.raises(GuestFault):
                        translation.write(page * PAGE_SIZE, b"x")
    memory.close()


async def test_reset_200_times_with_mappings_leaks_nothing() -> None:
    async with pair() as p:
        for round_ in range(200):
            await restart_in_domain(p)
            assert await p.map(1, IOVA, PAGE_SIZE, 0x80000) == OK
            if round_ % 3:
                assert await p.detach(1) == OK
                assert await p.echo.request(0, [b"x"], [4]) == b"x"  # all memory at its own address again
            await p.iommu.reset()
            await p.iommu.start()
        assert p.device.domains.mapped == 0
        assert p.translation.table.count == 1
        assert not p.device._tables
        await p.device.close()
        assert not p.device._looking
