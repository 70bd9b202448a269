"""Whatever a hostile guest writes into configuration space and BAR 0: nothing raises, nothing dangles, reset heals."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.memory import GuestMemory
from aiovmm.pci.driver import PciDriver, finished
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices
from aiovmm.virtqueue.driver import Arena
from tests.pci.echo import Echo

PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]
WIDTH = st.sampled_from([1, 2, 4, 8])
VALUE = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 16),
    st.sampled_from([0xFFFF, 0xFFFFFFFF, 0xC0000000, 0xC0010000, 0x8000, 0xC000, 2**64 - 1, 0x1000, 0x2000, 0x3000]),
)
CONFIG_OFFSET = st.one_of(st.integers(0, 0xFF), st.sampled_from([4, 0x10, 0x14]), st.integers(0, 4095))
BAR_OFFSET = st.one_of(
    st.integers(0, 0x40),
    st.sampled_from([0x14, 0x16, 0x18, 0x1A, 0x1C, 0x20, 0x28, 0x30, 0x1000, 0x2000, 0x3000, 0x3004, 0x7000]),
    st.integers(0x8000, 0x8040),
    st.integers(0, 0xFFFF),
)
STEP = st.one_of(
    st.tuples(st.just("config"), st.integers(1, 2), CONFIG_OFFSET, WIDTH, VALUE),
    st.tuples(st.just("bar"), st.integers(1, 2), BAR_OFFSET, WIDTH, VALUE),
    st.tuples(st.just("window"), st.integers(1, 2), BAR_OFFSET, st.sampled_from([1, 2, 4]), VALUE),
    st.tuples(st.just("start"), st.integers(1, 2), st.just(0), st.just(1), st.just(0)),
)


@dataclass
class Hostile:
    """Two echo devices whose registers the guest abuses."""

    services: RecordingServices
    pci: PciDriver
    transports: list[VirtioPci]
    drivers: list[VirtioPciDriver]
    errors: list[Exception]

    async def take(self, kind: str, slot: int, offset: int, width: int, value: int) -> None:
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        transport, driver = self.transports[slot - 1], self.drivers[slot - 1]
        if kind == "config":
            address = PLAN.ecam_base + (slot << 15) + offset
        elif kind == "bar":
            address = transport.bars[0].address(transport.config) + offset
        elif kind == "window":
            start = transport.live_registers[0][0] - 16
            for at, n, v in ((4, 1, 0), (8, 4, offset), (12, 4, width)):
                await self.pci.write(slot, start + at, v, n)
            address = PLAN.ecam_base + (slot << 15) + start + 16
        else:
            await self.restore(driver, slot)
            return
        self.services.read(address, width)
        await finished(self.services.write(address, data))

    async def restore(self, driver: VirtioPciDriver, slot: int) -> None:
        """What a sane driver does after a mess: BARs programmed anew, then the usual initialization."""
        await self.pci.write(slot, 4, 0, 2)
        await self.pci.write(slot, 0x10, 0xC8000000 + (slot << 20))
        await self.pci.write(slot, 0x14, 0)
        driver.structures.clear()
        await driver.probe()
        driver.arena = Arena(0x1000 + (slot << 20), 1 << 20)
        driver.queues = []  # their rings went with the arena
        await driver.start()

    def check(self) -> None:
        """No doorbell lies where another device's BAR answers; where one's own answers it is the only place for them."""
        for transport in self.transports:
            bar = transport.bars[0]
            ranges = [r for r in self.services.bus.ranges() if r.device in [x.device for x in transport.regions]]
            assert len(ranges) in (0, 6)
            at = bar.decoded(transport.config)
            if ranges:
                assert at is not None
                assert all(at <= r.base and r.end <= at + bar.size for r in ranges)
                for bell in self.services.doorbells:
                    own = bell.fd in transport._doorbells._kicks
                    assert own == (at + 0x3000 <= bell.address < at + 0x7000)
        for bell in self.services.doorbells:
            os.eventfd_write(bell.fd, 0)  # still open


async def hostile(memory: GuestMemory, plan: SegmentPlan = PLAN) -> tuple[Hostile, PciSegment]:
    services = RecordingServices(memory)
    segment = PciSegment(plan, services)
    pci = PciDriver(services, plan.ecam_base)
    errors: list[Exception] = []
    transports = [VirtioPci(Echo(), services, on_error=lambda d, e: errors.append(e)) for _ in range(2)]
    drivers = []
    for transport in transports:
        slot = segment.add(transport)
        arena = Arena(0x1000 + (slot << 20), 1 << 20)
        drivers.append(VirtioPciDriver(services, memory, pci, slot, arena, first_vector=0x40 + 8 * slot))
        await drivers[-1].probe()
    return Hostile(services, pci, transports, drivers, errors), segment


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=40))
async def test_no_register_access_raises_or_leaves_something_behind(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    memory = GuestMemory.create([(0, 16 << 20)])
    machine, segment = await hostile(memory)
    try:
        for step in steps:
            await machine.take(*step)
            machine.check()
        for slot, driver in enumerate(machine.drivers, 1):
            await machine.restore(driver, slot)
            assert await driver.request(0, [b"alive"], [8]) == b"evila"
    finally:
        await segment.close()
        machine.services.close()
        memory.close()
    assert machine.services.doorbells == []
    assert machine.services.bus.ranges() == []
    assert all(t.device.running == 0 for t in machine.transports)  # type: ignore[attr-defined]
