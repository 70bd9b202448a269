"""The order of exits, and what holds a guest back."""

from __future__ import annotations

import time

import pytest

from aiovmm.bus import Range, Space
from aiovmm.kvm import Kvm
from tests.guests.machine import Machine, Recorder
from tests.limits import HANGS

COUNTING = bytes(i & 0xFF for i in range(4000))
COUNTING_WORDS = b"".join((i * 257 & 0xFFFF).to_bytes(2, "little") for i in range(1, 4001))


async def test_synchronous_and_posted_writes_arrive_in_the_guests_order(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        m.start()
        await m.until(lambda: b"E" in m.written)
        assert m.written == b"AbcdE"
        counts = m.vm.range_counts(m.posted_range)
        assert (counts.sync, counts.posted) == (0, 3)
        assert m.cpu.counters.sync == 2


async def test_a_full_ring_holds_the_guest_back_and_loses_nothing(kvm: Kvm) -> None:
    async with Machine("burst", ring_size=4, kvm=kvm) as m:
        m.start()
        deadline = time.monotonic() + HANGS
        while not m.cpu.counters.full:  # the event loop does not run here, so the ring fills
            assert time.monotonic() < deadline
        assert m.cpu.counters.posted == 5, "four in the ring, one waiting for room"
        await m.until(lambda: len(m.written) > len(COUNTING))
        assert m.written == COUNTING + b"E"


@pytest.mark.parametrize(("guest", "expected"), [("burst", COUNTING), ("burstwords", COUNTING_WORDS)])
async def test_runs_of_posted_writes_come_together_to_a_device_that_takes_them(
    kvm: Kvm, guest: str, expected: bytes
) -> None:
    class Running(Recorder):
        longest = 0
        batches = 0

        def write_many(self, offset: int, data: bytes, size: int) -> None:
            self.longest = max(self.longest, len(data) // size)
            self.write(offset, data)

        def end_of_batch(self) -> None:
            self.batches += 1

    async with Machine(guest, kvm=kvm) as m:
        m.bus.remove(m.posted_range)
        device = Running(m.log, "posted")
        m.bus.add(Range(Space.PIO, 0x200, 0x28, device, "running", m.fast))
        m.start()
        deadline = time.monotonic() + HANGS
        while m.cpu.counters.posted < 100:
            assert time.monotonic() < deadline
        await m.until(lambda: len(m.written) > len(expected))
        assert m.written == expected + b"E"
        assert device.longest >= 100, "what was in the ring when the loop came"
        assert device.batches > 0
