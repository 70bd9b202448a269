"""The eventfds of doorbells, which KVM is to forget before they are closed: their numbers may be anybody's then."""

from __future__ import annotations

import asyncio
import os
import threading

from aiovmm.bus import Space
from aiovmm.memory import GuestMemory
from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.doorbells import Doorbells
from aiovmm.pci.function import PciFunction
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.segment import PciSegment
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import Doorbell, RecordingServices
from tests.limits import HANGS


class Kvm(RecordingServices):
    """As KVM, it is told by their descriptors which doorbells are unbound."""

    closed_before = 0

    def ioeventfd(self, space: Space, address: int, size: int, fd: int) -> Doorbell | None:
        bell = super().ioeventfd(space, address, size, fd)
        assert bell is not None
        close = bell.close

        def closed() -> None:
            try:
                os.fstat(fd)
            except OSError:
                self.closed_before += 1
            close()

        bell.close = closed  # type: ignore[method-assign]
        return bell


async def test_one_that_is_closed_while_it_is_displaced_waits_for_that(memory: GuestMemory) -> None:
    """Another function's BAR has come to lie there, and KVM is slow to let go, as the device is taken out."""
    services = Kvm(memory)
    services.worker = worker = Worker("slow")
    bells, go_on = Doorbells(services, 3, apart=True), threading.Event()
    bells.open()
    bound = bells.moved(0xC000_0000)
    assert bound is not None
    await bound
    slow = worker.submit(lambda: go_on.wait(HANGS))
    assert bells.displaced() is not None
    closing = asyncio.ensure_future(bells.close())
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await slow
    await closing
    assert services.doorbells == []
    assert services.closed_before == 0
    services.close()


class Slow(PciFunction):
    """Whose memory slots take their time to go."""

    def __init__(self) -> None:
        super().__init__("slow", ConfigSpace(Identity(0x1234, 1, 0)), (Bar(0, BarKind.MEM32, 1 << 20),))
        self.gone = asyncio.get_running_loop().create_future()

    def bar_moved(self, bar: Bar, address: int | None) -> asyncio.Future[None] | None:
        return self.gone if address is None else None


async def test_what_comes_into_a_slot_that_is_being_left_keeps_its_addresses(
    segment: PciSegment, plan: SegmentPlan, services: RecordingServices
) -> None:
    """They would be given to the next one as well."""
    leaves = Slow()
    slot = segment.add(leaves)
    decode = services.write(plan.ecam_base + (slot << 15) + 4, b"\x02\0")
    assert decode is None
    leaving = asyncio.ensure_future(segment.remove(slot))
    await asyncio.sleep(0)
    comes = Slow()
    assert segment.add(comes) == slot
    leaves.gone.set_result(None)
    await leaving
    others = [Slow() for _ in range(3)]
    for other in others:
        segment.add(other)
    there = [one.bars[0].address(one.config) for one in (comes, *others)]
    assert len(set(there)) == 4
