"""The balloon as a driver and an embedder see it (VIRTIO 1.2 §5.5)."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import BalloonConfig, MemoryConfig, PayloadConfig, VMConfig
from aiovmm.config import DeviceConfig
from aiovmm.config.options import parse_balloon
from aiovmm.devices.virtio.balloon import BalloonDevice, BalloonStats
from aiovmm.devices.virtio.balloon.protocol import (
    PAGE,
    PAGES_AT_ONCE,
    REPORTING,
    STATS_VQ,
    page_runs,
    parse_stats,
)
from aiovmm.errors import ChainError, ConfigError, GuestFault, StateError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.testing import Harness
from aiovmm.virtqueue.features import RING_FEATURES
from tests.devices.virtio.pages import pages_there
from tests.limits import HANGS

MIB = 1 << 20
RAM = 64 * MIB
INFLATE, DEFLATE, STATS, REPORTS = range(4)
MARK = b"\xa5" * PAGE


def numbers(pages: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


def balloon(size: int = 0, *, reporting: bool = True) -> BalloonDevice:
    return BalloonDevice(RAM, size, free_page_reporting=reporting)


def full(h: Harness, shared: bool) -> None:
    """Memory of the harness's size that is all in use."""
    h.memory.close()
    h.memory = h.device_memory = GuestMemory.create([(0, RAM)], shared=shared)
    for page in range(RAM // PAGE):
        h.memory.write(page * PAGE, MARK)


def resident(h: Harness) -> int:
    """Pages of the memory that are there, by the kernel's account."""
    (region,) = h.memory.regions
    return pages_there(region.host, region.size)


@pytest.mark.parametrize("shared", [False, True])
async def test_pages_in_the_balloon_are_the_hosts_again(shared: bool) -> None:
    device = balloon()
    harness = Harness(device)
    full(harness, shared)
    async with harness as h:
        pages = [*range(8000, 9000), 9100, 9102, 9101, 12000, 12000]
        before = resident(h)
        await h.request(INFLATE, [numbers(pages)])
        assert before - resident(h) == len(set(pages)) == device.given_back // PAGE
        assert all(h.memory.read(page * PAGE, PAGE) == bytes(PAGE) for page in (8000, 8999, 9101, 12000))
        assert h.memory.read(7999 * PAGE, PAGE) == h.memory.read(9000 * PAGE, PAGE) == MARK
        h.memory.write(8000 * PAGE, MARK)
        await h.request(DEFLATE, [numbers([8000])])
        assert h.memory.read(8000 * PAGE, PAGE) == MARK


@pytest.mark.parametrize("shared", [False, True])
async def test_what_is_reported_as_free_is_the_hosts_again_in_whole_pages(shared: bool) -> None:
    device = balloon()
    harness = Harness(device)
    full(harness, shared)
    async with harness as h:
        h.arena = type(h.arena)(32 * MIB + 100, 16 * MIB)
        queue = h.queues[REPORTS]
        queue.add([], [8 * MIB])
        queue.kick()
        (used,) = await queue.used()
        assert used.length == 0
        assert device.given_back == used.buffers[0].count(0), "which read as zeros; the others are as they were"
        assert device.given_back in (8 * MIB, 8 * MIB - PAGE)


@pytest.mark.parametrize("data", [b"\1", numbers(range(20000)), numbers([RAM // PAGE]), numbers([0xFFFF_FFFF])])
async def test_lists_that_cannot_be_break_the_device_and_take_nothing(data: bytes) -> None:
    harness = Harness(balloon())
    full(harness, False)
    async with harness as h:
        before = resident(h)
        h.queues[INFLATE].add([data])
        h.queues[INFLATE].kick()
        assert isinstance(await h.broken(), ChainError | GuestFault)
        assert resident(h) == before


async def test_memory_of_a_device_is_not_given_back() -> None:
    """A pmem image would lose what it has there."""
    fd = os.memfd_create("image")
    os.truncate(fd, 2 * MIB)
    os.pwrite(fd, MARK, 0)
    async with Harness(balloon()) as h:
        h.memory.map_fd(RAM, 2 * MIB, fd)
        h.queues[INFLATE].add([numbers([RAM // PAGE])])
        h.queues[INFLATE].kick()
        assert isinstance(await h.broken(), GuestFault)
    assert os.pread(fd, PAGE, 0) == MARK
    os.close(fd)


async def test_the_guest_is_asked_and_says_what_it_gave() -> None:
    device = balloon(4 * MIB)
    async with Harness(device) as h:
        assert device.read_config(0, 8) == struct.pack("<II", 4 * MIB // PAGE, 0)
        resizing = asyncio.create_task(device.resize(8 * MIB))
        await asyncio.wait_for(h.config_irq.wait(), HANGS)
        assert device.read_config(0, 4) == struct.pack("<I", 8 * MIB // PAGE)
        device.write_config(4, struct.pack("<I", 1024))
        await asyncio.sleep(0)
        assert not resizing.done()
        device.write_config(4, struct.pack("<I", 8 * MIB // PAGE))
        await asyncio.wait_for(resizing, HANGS)
        assert device.actual == device.target == 8 * MIB
        with pytest.raises(TimeoutError, match="the guest gives 8388608 bytes and not 0"):
            await device.resize(0, timeout=0.01)
        await h.reset()
        assert device.actual == 0
        with pytest.raises(TimeoutError, match="has no driver"):
            await device.resize(MIB, timeout=0.01)


@pytest.mark.parametrize("size", [-PAGE, 100, RAM])
async def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(UsageError):
        await balloon().resize(size)


async def test_statistics_are_asked_for_when_somebody_wants_them() -> None:
    device = balloon()
    with pytest.raises(StateError):
        await device.stats()
    async with Harness(device) as h:
        queue = h.queues[STATS]
        queue.add([struct.pack("<HQ", 4, 1)])
        queue.kick()
        for free in (10, 20):
            asked = [asyncio.create_task(device.stats()) for _ in range(2)]
            (used,) = await queue.used()
            assert used.length == 0
            queue.add([struct.pack("<HQHQHQ", 4, free, 6, 7 * free, 999, 1)])
            queue.kick()
            assert await asyncio.gather(*asked) == [BalloonStats(free=free, available=7 * free)] * 2
        asked = [asyncio.create_task(device.stats())]
        await queue.used()
        await h.reset()
        with pytest.raises(StateError):
            await asked[0]
        with pytest.raises(StateError):
            await device.stats()


async def test_a_guest_that_does_not_answer_holds_up_nobody() -> None:
    device = balloon()
    async with Harness(device) as h:
        await h.request(DEFLATE, [numbers([1])])
        with pytest.raises(TimeoutError):
            await device.stats(timeout=0.02)


async def test_queues_are_numbered_by_what_was_negotiated() -> None:
    """Linux gives a queue whose feature it does not know no number."""
    device = balloon()
    harness = Harness(device, features=RING_FEATURES | REPORTING)
    assert device.features & STATS_VQ
    full(harness, False)
    async with harness as h:
        h.queues[STATS].add([], [4 * PAGE])
        h.queues[STATS].kick()
        await h.queues[STATS].used()
        assert device.given_back >= 3 * PAGE


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
async def test_no_list_of_pages_keeps_the_loop(monkeypatch: pytest.MonkeyPatch, queue: int) -> None:
    """As many as there may be, none beside another, would take 11 ms in one go."""
    most, device = 0, balloon()

    def runs(data: bytes) -> list[tuple[int, int]]:
        nonlocal most
        most = max(most, len(data) // 4)
        return page_runs(data)

    monkeypatch.setattr("aiovmm.devices.virtio.balloon.device.page_runs", runs)
    harness = Harness(device)
    full(harness, False)
    async with harness as h:
        pages = list(range(8192, 16384, 2)) * 4  # above where the driver has its buffers
        assert len(pages) == PAGES_AT_ONCE
        before = resident(h)
        await h.request(queue, [numbers(pages)])
        assert before - resident(h) == (4096 if queue == INFLATE else 0)
    assert most == (1024 if queue == INFLATE else 0)


async def test_pages_beside_each_other_may_be_of_two_regions() -> None:
    """Memory modules are one behind the other, and a driver does not know."""
    device = balloon(reporting=False)
    harness = Harness(device)
    harness.memory.close()
    harness.memory = harness.device_memory = GuestMemory.create([(0, 32 * MIB), (32 * MIB, 32 * MIB)], shared=False)
    edge = 32 * MIB // PAGE
    async with harness as h:
        for page in range(edge - 3, edge + 3):
            h.memory.write(page * PAGE, MARK)
        await h.request(INFLATE, [numbers(range(edge - 2, edge + 2))])
        there = [h.memory.read(page * PAGE, PAGE) == MARK for page in range(edge - 3, edge + 3)]
        assert there == [True, False, False, False, False, True]
        h.queues[INFLATE].add([numbers(range(2 * edge - 1, 2 * edge + 1))])
        h.queues[INFLATE].kick()
        assert isinstance(await h.broken(), GuestFault)


@given(st.lists(st.integers(0, 300)))
def test_runs_are_the_pages_once_each(pages: list[int]) -> None:
    runs = page_runs(numbers(pages))
    assert [a // PAGE + i for a, size in runs for i in range(size // PAGE)] == sorted(set(pages))
    assert all(a + size < b for (a, size), (b, _) in itertools.pairwise(runs)), "as few as there can be"


@given(st.binary(max_size=700))
def test_statistics_of_any_bytes(data: bytes) -> None:
    if len(data) % 10 or len(data) > 640:
        with pytest.raises(ChainError):
            parse_stats(data)
    else:
        parse_stats(data)


def test_the_references_keys() -> None:
    config = parse_balloon("size=512M,deflate_on_oom=on,free_page_reporting=on")
    assert config == BalloonConfig(size=512 * MIB, deflate_on_oom=True, free_page_reporting=True)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"balloon": "size=512M"}, "balloon.size"),
        ({"balloon": "size=1M", "memory": MemoryConfig(512 * MIB, hugepages=True)}, "balloon"),
        ({"balloon": "size=1M", "devices": (DeviceConfig(path="/sys/x"),)}, "balloon"),  # type: ignore[arg-type]
        ({"balloon": "size=100"}, "balloon.size"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, object], option: str) -> None:
    with pytest.raises(ConfigError) as exc:
        VMConfig(PayloadConfig("k"), **changes)  # type: ignore[arg-type]
    assert exc.value.option == option
