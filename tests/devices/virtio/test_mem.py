"""virtio-mem as a driver and an embedder see it (VIRTIO 1.2 §5.15)."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import HotplugMethod, MemoryConfig
from aiovmm.config.options import parse_memory
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.devices.virtio.mem.blocks import Blocks
from aiovmm.devices.virtio.mem.protocol import Answer, Kind, Request
from aiovmm.errors import ChainError, ConfigError, SnapshotError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.testing import Harness
from tests.conftest import THOROUGH
from tests.devices.virtio.pages import pages_there
from tests.steps import steps_of

MIB = 1 << 20
RAM, START, SIZE = 16 * MIB, 1 << 30, 64 * MIB
COUNT = SIZE // BLOCK_SIZE
PAGE = b"\xa5" * 4096
FILLED = PAGE * 256
LARGE, TIMES = (1 << 30, 20) if THOROUGH else (64 * MIB, 4)


def request(kind: int, block: int = 0, count: int = 0) -> bytes:
    return struct.pack("<H6xQH6x", kind, START + block * BLOCK_SIZE, count)


class Driver:
    """A harness whose memory has the device's region, and what a driver says to it."""

    def __init__(self, requested: int, *, shared: bool = False, size: int = SIZE) -> None:
        self.device = MemDevice(size, requested)
        self.harness = Harness(self.device)
        self.harness.memory.close()
        memory = GuestMemory.create([(0, RAM)], shared=shared, later=[(START, size)])
        self.harness.memory = self.harness.device_memory = memory
        self.device.power_on(memory.regions[-1])

    async def ask(self, kind: int, block: int = 0, count: int = 0) -> tuple[int, int]:
        result, state = struct.unpack("<H6xH", await self.harness.request(0, [request(kind, block, count)], [10]))
        return result, state

    def resident(self) -> int:
        region = self.harness.memory.regions[-1]
        return pages_there(region.host, region.size) * 4096


@pytest.mark.parametrize("shared", [False, True])
async def test_blocks_come_and_go_and_their_memory_with_them(shared: bool) -> None:
    driver = Driver(8 * BLOCK_SIZE, shared=shared)
    async with driver.harness as h:
        assert driver.device.read_config(0, 56) == struct.pack(
            "<QH6xQQQQQ", BLOCK_SIZE, 0, START, SIZE, SIZE, 0, 8 * BLOCK_SIZE
        )
        assert await driver.ask(Kind.PLUG, 2, 8) == (Answer.ACK, 0)
        assert await driver.ask(Kind.STATE, 2, 8) == (Answer.ACK, 0)
        assert await driver.ask(Kind.STATE, 1, 8) == (Answer.ACK, 2)
        assert await driver.ask(Kind.STATE, 10, 1) == (Answer.ACK, 1)
        for offset in range(0, 8 * BLOCK_SIZE, 4096):
            h.memory.write(START + 2 * BLOCK_SIZE + offset, PAGE)
        assert driver.resident() == 8 * BLOCK_SIZE
        assert await driver.ask(Kind.UNPLUG, 4, 2) == (Answer.ACK, 0)
        assert driver.resident() == 6 * BLOCK_SIZE
        assert h.memory.read(START + 4 * BLOCK_SIZE, 4096) == bytes(4096)
        assert h.memory.read(START + 3 * BLOCK_SIZE, 4096) == PAGE
        assert await driver.ask(Kind.UNPLUG_ALL) == (Answer.ACK, 0)
        assert driver.device.blocks.plugged == 0
        assert driver.resident() <= BLOCK_SIZE, "the zeros that were read, which are everybody's"
        assert driver.device.given_back == 8 * BLOCK_SIZE


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shared", [False, True])
async def test_much_comes_and_goes_again_and_again_and_nothing_of_it_stays(shared: bool) -> None:
    blocks = LARGE // BLOCK_SIZE
    driver = Driver(LARGE, shared=shared, size=LARGE)
    async with driver.harness as h:
        for _ in range(TIMES):
            assert await driver.ask(Kind.PLUG, 0, blocks) == (Answer.ACK, 0)
            for address in range(START, START + LARGE, MIB):
                h.memory.write(address, FILLED)
            assert driver.resident() == LARGE
            for block in range(0, blocks, 16):
                assert await driver.ask(Kind.UNPLUG, block, 16) == (Answer.ACK, 0)
            assert driver.resident() < 16 * MIB
        assert driver.device.given_back == TIMES * LARGE


async def test_no_more_is_plugged_than_is_asked_for() -> None:
    driver = Driver(2 * BLOCK_SIZE)
    async with driver.harness as h:
        assert await driver.ask(Kind.PLUG, 0, 3) == (Answer.NACK, 0)
        assert await driver.ask(Kind.PLUG, 0, 2) == (Answer.ACK, 0)
        assert await driver.ask(Kind.PLUG, 2, 1) == (Answer.NACK, 0)
        driver.device.request(3 * BLOCK_SIZE)
        await h.config_irq.wait()
        assert await driver.ask(Kind.PLUG, 2, 1) == (Answer.ACK, 0)
        assert driver.device.served


async def test_a_driver_that_comes_again_finds_what_is_plugged() -> None:
    driver = Driver(2 * BLOCK_SIZE)
    async with driver.harness as h:
        await driver.ask(Kind.PLUG, 0, 2)
        h.memory.write(START, PAGE)
        await h.reset()
        assert driver.device.blocks.plugged == 2 * BLOCK_SIZE
        assert h.memory.read(START, 4096) == PAGE


@pytest.mark.parametrize(
    ("kind", "block", "count"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (0, COUNT, 1),
        (0, COUNT - 1, 2),
        (1, 0, 1),
        (0, 0, 65535),
        (3, -1, 1),
        (4, 0, 1),
        (65535, 0, 1),
    ],
)
async def test_what_cannot_be_is_an_error(kind: int, block: int, count: int) -> None:
    driver = Driver(SIZE)
    async with driver.harness:
        assert await driver.ask(kind, block, count) == (Answer.ERROR, 0)
        assert driver.device.blocks.plugged == 0


@pytest.mark.parametrize("data", [b"", b"\0" * 23])
async def test_a_request_that_is_none_breaks_the_device(data: bytes) -> None:
    driver = Driver(0)
    async with driver.harness as h:
        h.queues[0].add([data], [10])
        h.queues[0].kick()
        assert isinstance(await h.broken(), ChainError)


async def test_an_answer_without_room_breaks_the_device_and_plugs_nothing() -> None:
    driver = Driver(SIZE)
    async with driver.harness as h:
        h.queues[0].add([request(Kind.PLUG, 0, 1)], [9])
        h.queues[0].kick()
        assert isinstance(await h.broken(), ChainError)
        assert driver.device.blocks.plugged == 0


REQUESTS = st.builds(
    Request,
    st.sampled_from(list(Kind)),
    st.one_of(
        st.integers(-2, COUNT + 2).map(lambda n: START + n * BLOCK_SIZE),
        st.integers(0, (1 << 64) - 1),
        st.just(START + 4096),
    ),
    st.integers(0, COUNT + 2),
)


@given(st.lists(st.one_of(REQUESTS, st.integers(0, COUNT)), max_size=30))
def test_blocks_are_a_set(steps: list[Request | int]) -> None:
    """Against the plainest of models; a number is what the host requests."""
    blocks, there = Blocks(SIZE), set[int]()
    blocks.start = START
    for step in steps:
        if isinstance(step, int):
            blocks.requested = step * BLOCK_SIZE
            continue
        outcome = blocks.handle(step)
        first, rest = divmod(step.address - START, BLOCK_SIZE)
        meant = set(range(first, first + step.blocks))
        valid = meant and not rest and first >= 0 and first + step.blocks <= COUNT
        before = set(there)
        expected = Answer.ACK
        if step.kind is Kind.UNPLUG_ALL:
            there.clear()
        elif not valid:
            expected = Answer.ERROR
        elif step.kind is Kind.STATE:
            assert outcome.state == (0 if meant <= there else 2 if meant & there else 1)
        elif step.kind is Kind.PLUG:
            fits = (len(there) + step.blocks) * BLOCK_SIZE <= blocks.requested
            expected = Answer.ERROR if meant & there else Answer.ACK if fits else Answer.NACK
            there |= meant if expected is Answer.ACK else set()
        else:
            expected = Answer.ACK if meant <= there else Answer.ERROR
            there -= meant if expected is Answer.ACK else set()
        assert outcome.answer is expected
        assert blocks.plugged == len(there) * BLOCK_SIZE
        assert {outcome.first + i for i, block in enumerate(outcome.freed) if block} == before - there
    copy = Blocks(SIZE)
    copy.load(blocks.save())
    assert copy.save() == blocks.save()


def _every_other(count: int) -> Blocks:
    blocks = Blocks(count * BLOCK_SIZE)
    blocks.load({"start": START, "requested": count * BLOCK_SIZE, "plugged": b"\1\0" * (count // 2)})
    return blocks


@pytest.mark.parametrize("kind", [Kind.UNPLUG_ALL, Kind.STATE, Kind.PLUG])
def test_no_request_is_more_work_for_the_loop_the_more_blocks_there_are(kind: Kind) -> None:
    """A guest may have plugged every other block of a terabyte."""

    def steps(count: int) -> int:
        blocks = _every_other(count)
        return steps_of(lambda: blocks.handle(Request(kind, START, count)))

    assert steps(1 << 15) == steps(4)


@pytest.mark.parametrize("shared", [False, True])
async def test_every_other_block_is_given_back_and_nothing_else(shared: bool) -> None:
    driver = Driver(SIZE, shared=shared)
    async with driver.harness as h:
        for block in range(0, COUNT, 2):
            assert await driver.ask(Kind.PLUG, block, 1) == (Answer.ACK, 0)
        for block in range(COUNT):
            h.memory.write(START + block * BLOCK_SIZE, PAGE)
        assert await driver.ask(Kind.UNPLUG_ALL) == (Answer.ACK, 0)
        there = [h.memory.read(START + block * BLOCK_SIZE, 4096) == PAGE for block in range(COUNT)]
        assert there == [False, True] * (COUNT // 2)
        assert driver.device.given_back == SIZE // 2


async def test_requests_of_many_blocks_are_fewer_a_turn() -> None:
    """Of 65535 blocks 4, of which each is looked at."""
    device = MemDevice(65536 * BLOCK_SIZE)
    async with Harness(device, memory_size=16 * MIB) as h:
        queue = h.queues[0]
        for _ in range(40):
            queue.add([struct.pack("<H6xQH6x", Kind.STATE, 0, 65535)], [10])
        queue.kick()
        answered: list[int] = []
        while sum(answered) < 40:
            await asyncio.sleep(0)
            answered.append(len(queue.poll()))
        assert max(answered) <= 5


def test_all_of_a_large_region_costs_what_it_has_and_nothing_if_nothing_is_plugged() -> None:
    blocks = Blocks(65536 * BLOCK_SIZE)
    everything = Request(Kind.UNPLUG_ALL, 0, 0)
    there = blocks._plugged
    assert blocks.looked_at(everything) == 0
    assert blocks.handle(everything).answer is Answer.ACK
    assert blocks._plugged is there
    blocks.requested = BLOCK_SIZE
    assert blocks.handle(Request(Kind.PLUG, 0, 1)).answer is Answer.ACK
    assert blocks.looked_at(everything) == 65536


@pytest.mark.parametrize(
    "change", [{"start": 1}, {"requested": SIZE + BLOCK_SIZE}, {"plugged": b"\2" * COUNT}, {"x": 1}]
)
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    blocks = Blocks(SIZE)
    with pytest.raises(SnapshotError, match="mem"):
        blocks.load({**Blocks(SIZE).save(), **change})


@pytest.mark.parametrize("size", [-BLOCK_SIZE, 4096, SIZE + BLOCK_SIZE])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(UsageError, match="blocks of"):
        MemDevice(SIZE).request(size)


def test_the_options() -> None:
    text = "size=256M,hotplug_method=virtio-mem,hotplug_size=1G,hotplugged_size=64M"
    parsed = MemoryConfig(
        256 * MIB, hotplug_size=1 << 30, hotplugged_size=64 * MIB, hotplug_method=HotplugMethod.VIRTIO_MEM
    )
    assert parse_memory(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "hotplug_size=100M,hotplug_method=virtio-mem",
        "hotplug_size=128M,hotplugged_size=256M,hotplug_method=virtio-mem",
        "hotplug_size=128M,hotplugged_size=1M,hotplug_method=virtio-mem",
        "hotplugged_size=128M",
        "hotplug_method=balloon",
    ],
)
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="hotplug"):
        parse_memory(text)
