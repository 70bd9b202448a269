"""A host device behind the virtual IOMMU: the host's IOMMU maps what the guest has mapped, at any time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.iommu import IommuDevice
from aiovmm.devices.virtio.iommu.domains import Domains
from aiovmm.devices.virtio.iommu.table import Piece
from aiovmm.devices.virtio.iommu.wire import Attach, Detach, Map, Request, Status, Unmap
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import in_thread
from aiovmm.testing.pci import MESSAGES
from aiovmm.vfio import Container, Follower, HostDevice
from tests.limits import HANGS
from tests.vfio.guest import ADDRESS
from tests.vfio.kernel import FakeKernel

ENDPOINT = 0x10
LOW, HIGH = 0x10000, 0x8000
RESERVED = bytes(4)


@dataclass
class Behind:
    """The IOMMU with one host device behind it."""

    kernel: FakeKernel
    memory: GuestMemory
    iommu: IommuDevice
    follower: Follower
    errors: list[Exception]

    async def request(self, request: Request) -> Status:
        outcome = self.iommu.domains.handle(request)
        for stopping in self.iommu._revalidate(self.iommu._carry_out(outcome.effects)):
            await stopping
        return outcome.status

    @property
    def dma(self) -> dict[int, tuple[int, int]]:
        """What the host's IOMMU maps: address -> guest-physical address, bytes."""
        low, high = self.memory.regions

        def gpa(host: int) -> int:
            region = low if low.host <= host < low.host + low.size else high
            return host - region.host + region.gpa

        return {iova: (gpa(host), size) for iova, (host, size) in self.kernel.dma.items()}


@pytest.fixture
async def behind(kernel: FakeKernel) -> AsyncIterator[Behind]:
    async with InMachine(kernel) as behind:
        yield behind


class InMachine:
    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    async def __aenter__(self) -> Behind:
        if ADDRESS not in self._kernel.devices:
            self._kernel.add(ADDRESS)
        self._container = Container(self._kernel)
        self._device = HostDevice(self._kernel.path(ADDRESS), self._container, self._kernel)
        self._device.open()
        self._memory = GuestMemory.create([(0, LOW), (1 << 32, HIGH)])
        iommu = IommuDevice(MESSAGES)
        iommu.power_on(self._memory)
        errors: list[Exception] = []
        self._follower = Follower(self._memory, self._container, errors.append)
        iommu.add_endpoint(ENDPOINT, self._follower, self._follower)
        await self._follower.revalidate()
        return Behind(self._kernel, self._memory, iommu, self._follower, errors)

    async def __aexit__(self, *_exc: object) -> None:
        await self._follower.aclose()
        self._container.unmap()
        self._device.close()
        self._memory.close()
        assert not self._kernel.dma
        assert not self._kernel.open_fds


def attach(domain: int) -> Attach:
    return Attach(domain=domain, endpoint=ENDPOINT, flags=0, reserved=RESERVED)


async def test_a_device_that_bypasses_reaches_all_of_memory(behind: Behind) -> None:
    assert behind.dma == {0: (0, LOW), 1 << 32: (1 << 32, HIGH)}


async def test_a_device_in_a_domain_reaches_what_is_mapped_in_it(behind: Behind) -> None:
    assert await behind.request(attach(1)) is Status.OK
    assert behind.dma == {}
    assert await behind.request(Map(1, 0xA000, 0xBFFF, 0x3000, 3)) is Status.OK
    assert behind.dma == {0xA000: (0x3000, 0x2000)}
    assert await behind.request(Unmap(1, 0xA000, 0xBFFF, RESERVED)) is Status.OK
    assert behind.dma == {}


async def test_what_is_no_memory_is_not_mapped(behind: Behind) -> None:
    await behind.request(attach(1))
    await behind.request(Map(1, 0x10_0000, 0x13_FFFF, 0x8000, 3))  # runs over the end of low memory
    assert behind.dma == {0x10_0000: (0x8000, 0x8000)}
    await behind.request(Map(1, 0x20_0000, 0x20_0FFF, 0xC000_0000, 3))
    assert behind.dma == {0x10_0000: (0x8000, 0x8000)}


class ElsewherePieces:
    """Very many, perhaps: who looks at them does so in a thread."""

    def __iter__(self) -> Iterator[Piece]:
        assert threading.current_thread() is not threading.main_thread()
        yield Piece(0xA000, 0x1000, 0x3000, 3)


class Followed:
    def __init__(self) -> None:
        self.followers: dict[object, object] = {}
        self.pieces = ElsewherePieces()


async def test_the_loop_looks_at_nothing_of_what_comes_and_goes(behind: Behind) -> None:
    behind.follower.bind(Followed())
    await behind.follower.revalidate()
    assert behind.dma == {0xA000: (0x3000, 0x1000)}
    behind.follower.removed(ElsewherePieces())
    await behind.follower.revalidate()
    assert behind.dma == {}
    behind.follower.added(ElsewherePieces())
    await behind.follower.revalidate()
    assert behind.dma == {0xA000: (0x3000, 0x1000)}


async def test_a_mapping_without_rights_is_not_mapped(behind: Behind) -> None:
    await behind.request(attach(1))
    await behind.request(Map(1, 0x1000, 0x1FFF, 0x1000, 0))
    assert behind.dma == {}
    assert await behind.request(Unmap(1, 0x1000, 0x1FFF, RESERVED)) is Status.OK


async def test_a_device_that_is_detached_bypasses_again(behind: Behind) -> None:
    await behind.request(attach(1))
    await behind.request(Map(1, 0x1000, 0x1FFF, 0x1000, 3))
    await behind.request(Detach(domain=1, endpoint=ENDPOINT, reserved=bytes(8)))
    assert behind.dma == {0: (0, LOW), 1 << 32: (1 << 32, HIGH)}


async def test_what_the_host_refuses_is_reported_once(behind: Behind) -> None:
    await behind.request(attach(1))
    behind.kernel.lock_limit = 0
    for page in range(3):
        await behind.request(Map(1, page << 12, (page << 12) + 0xFFF, 0, 3))
    await asyncio.sleep(0)
    (error,) = behind.errors
    assert "ulimit -l" in str(error)
    assert await behind.request(Unmap(1, 0, 0x2FFF, RESERVED)) is Status.OK


async def test_the_host_is_asked_off_the_loop_and_the_request_waits(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, real = [], behind.kernel.ioctl

    def slow(fd: int, request: int, argument: int | bytearray = 0) -> int:
        threads.append(threading.get_ident())
        time.sleep(0.02)  # what is not waited for is not done
        return real(fd, request, argument)

    monkeypatch.setattr(behind.kernel, "ioctl", slow)
    for request, dma in (
        (attach(1), {}),
        (Map(1, 0xA000, 0xBFFF, 0x3000, 3), {0xA000: (0x3000, 0x2000)}),
        (Unmap(1, 0xA000, 0xBFFF, RESERVED), {}),
    ):
        assert await behind.request(request) is Status.OK
        assert behind.dma == dma
    assert len(threads) == 4
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_machines_end_waits_for_what_is_under_way(
    behind: Behind, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """Or a device of the next machine's would reach memory of this one's."""
    entered, go_on, real = threading.Event(), threading.Event(), behind.kernel.ioctl

    def held(fd: int, request: int, argument: int | bytearray = 0) -> int:
        entered.set()
        go_on.wait(HANGS)
        return real(fd, request, argument)

    await behind.request(attach(1))
    monkeypatch.setattr(behind.kernel, "ioctl", held)
    request = asyncio.create_task(behind.request(Map(1, 0xA000, 0xBFFF, 0x3000, 3)))
    assert await in_thread("test", entered.wait, 30)
    end = asyncio.create_task(behind.follower.aclose())
    await asyncio.sleep(0)
    if cancelled:
        end.cancel()
    await asyncio.sleep(0)
    assert not end.done()
    go_on.set()
    await asyncio.wait([end])
    assert end.cancelled() is cancelled
    await request
    assert behind.dma == {0xA000: (0x3000, 0x2000)}  # the container's to unmap, which it does next


pages = st.integers(0, 15)
requests = st.one_of(
    st.builds(attach, st.integers(1, 2)),
    st.builds(lambda d: Detach(domain=d, endpoint=ENDPOINT, reserved=bytes(8)), st.integers(1, 2)),
    st.builds(
        lambda d, at, n, to, flags: Map(d, at << 12, ((at + n) << 12) - 1, to << 12, flags),
        st.integers(1, 2),
        pages,
        st.integers(1, 4),
        pages,
        st.integers(1, 3),
    ),
    st.builds(
        lambda d, at, n: Unmap(d, at << 12, ((at + n) << 12) - 1, RESERVED), st.integers(1, 2), pages, st.integers(1, 8)
    ),
)


def _expected(domains: Domains) -> dict[int, tuple[int, int]]:
    domain = domains.domain_of(ENDPOINT)
    if domain is None:
        return {0: (0, LOW), 1 << 32: (1 << 32, HIGH)}
    found = {}
    for mapping in domains.mappings(domain):
        size = min(mapping.end + 1 - mapping.start, LOW - mapping.physical)
        if size > 0:
            found[mapping.start] = (mapping.physical, size)
    return found


@given(script=st.lists(requests, max_size=30))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_host_maps_what_the_guest_has_mapped_after_every_request(
    kernel: FakeKernel, script: list[Request]
) -> None:
    async with InMachine(kernel) as behind:
        for request in script:
            await behind.request(request)
            assert behind.dma == _expected(behind.iommu.domains)
        assert not behind.errors
