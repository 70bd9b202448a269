"""What a guest and its operator see of the entropy device."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.config import RngConfig
from aiovmm.devices.virtio.rng import REQUEST_LIMIT, EntropySource, RngDevice
from aiovmm.devices.virtio.rng.source import ImmediateSource, PolledSource, ThreadedSource, open_source
from aiovmm.errors import ChainError, HostError
from aiovmm.testing import Descriptor, Harness
from aiovmm.virtqueue.config import QueuePosition
from aiovmm.virtqueue.driver import NEXT, WRITE
from tests.limits import HANGS

URANDOM = Path("/dev/urandom")
FILL = 0xA5  # of the driver's untouched buffers


def device(path: Path = URANDOM) -> RngDevice:
    return RngDevice.from_config(RngConfig(src=path))


def through(source: EntropySource) -> RngDevice:
    return RngDevice(lambda: source)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "entropy"
    os.mkfifo(path)
    return path


@pytest.fixture(params=["immediate", "polled", "threaded"])
def endless(request: pytest.FixtureRequest) -> EntropySource:
    """Each kind of source, on the host's urandom or on what is always readable."""
    fd = os.open(URANDOM, os.O_RDONLY)
    if request.param == "immediate":
        return ImmediateSource(fd, str(URANDOM))
    if request.param == "threaded":
        return ThreadedSource(fd, str(URANDOM))
    os.close(fd)
    return open_source(Path("/dev/random"))


async def test_a_request_is_filled_with_bytes_that_differ_from_request_to_request(endless: EntropySource) -> None:
    async with Harness(through(endless)) as h:
        answers = [await h.request(0, [], [1, 700, 3000]) for _ in range(8)]
    assert {len(a) for a in answers} == {3701}
    assert len(set(answers)) == 8
    assert all(len(set(a)) > 200 for a in answers)


async def test_one_byte_is_enough(endless: EntropySource) -> None:
    async with Harness(through(endless)) as h:
        assert len(await h.request(0, [], [1])) == 1


async def test_overlapping_descriptors_do_not_inflate_a_request(endless: EntropySource) -> None:
    """200 descriptors over the same 64 KiB are 12.5 MiB: no more than the limit is generated."""
    async with Harness(through(endless)) as h:
        q = h.queues[0]
        q.add_raw(
            [Descriptor(0x300000, 1 << 16, WRITE | NEXT, i + 1) for i in range(199)]
            + [Descriptor(0x300000, 1 << 16, WRITE)]
        )
        q.kick()
        (used,) = await q.used()
    assert 0 < used.length <= REQUEST_LIMIT  # a signal may make the host's answer shorter, at the border of a page


async def test_beyond_the_limit_nothing_is_written(endless: EntropySource) -> None:
    async with Harness(through(endless)) as h:
        h.queues[0].add([], [REQUEST_LIMIT - 8, 100])
        h.queues[0].kick()
        (used,) = await h.queues[0].used()
    assert used.length <= REQUEST_LIMIT
    assert used.buffers[1][8:] == bytes([FILL]) * 92


async def test_many_large_requests_are_all_answered_in_several_turns() -> None:
    """16 MiB are more than a turn's share: what does not fit goes back and is taken again."""
    async with Harness(device(), memory_size=64 << 20) as h:
        q = h.queues[0]
        for _ in range(250):
            q.add([], [REQUEST_LIMIT])
        q.kick()
        turns = 0
        done: list[int] = []
        async with asyncio.timeout(HANGS):
            while len(done) < 250:
                await asyncio.sleep(0)
                turns += 1
                done += [used.length for used in q.poll()]
    assert all(0 < length <= REQUEST_LIMIT for length in done)
    assert sum(done) > 8 << 20
    assert turns > 30  # the loop was free in between


@pytest.mark.parametrize("readable", [[b"x"], []], ids=["with a readable buffer", "without room"])
async def test_an_illegal_request_breaks_the_device_until_reset(endless: EntropySource, readable: list[bytes]) -> None:
    async with Harness(through(endless)) as h:
        q = h.queues[0]
        for _ in range(3):
            q.add([], [16])
        if readable:
            q.add(readable, [16])
        else:
            q.put(5, Descriptor(0x300000, 0, WRITE))
            q.offer(5)
        q.kick()
        assert isinstance(await h.broken(), ChainError)
        assert [u.length for u in q.poll()][:3] == [16] * 3
        await h.reset()
        await h.start()
        assert len(await h.request(0, [], [16])) == 16


async def test_a_fifo_gives_what_is_written_to_it_whenever_that_is(fifo: Path) -> None:
    async with Harness(device(fifo)) as h:  # without a writer yet
        request = asyncio.ensure_future(h.request(0, [], [2, 62]))
        await asyncio.sleep(0)
        writer = os.open(fifo, os.O_WRONLY)
        try:
            os.write(writer, b"dice rolls")
            assert await request == b"dice rolls"
            request = asyncio.ensure_future(h.request(0, [], [64]))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not request.done()
            os.write(writer, b"more")
            assert await request == b"more"
        finally:
            os.close(writer)


async def test_a_fifo_that_ends_breaks_the_device_and_says_so(fifo: Path) -> None:
    async with Harness(device(fifo)) as h:
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, b"last")
        os.close(writer)
        assert await h.request(0, [], [64]) == b"last"
        with pytest.raises(HostError, match=r"the source has ended.*entropy") as caught:
            await h.request(0, [], [64])
        assert caught.value.errno == errno.ENODATA


async def test_a_file_that_ends_breaks_the_device_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    async with Harness(device(path)) as h:
        assert await h.request(0, [], [60]) == bytes(range(60))
        assert await h.request(0, [], [60]) == bytes(range(60, 100))
        with pytest.raises(HostError, match="the source has ended"):
            await h.request(0, [], [60])


async def test_a_read_that_failed_is_told_once_and_the_next_driver_has_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.touch()
    async with Harness(device(path)) as h:
        with pytest.raises(HostError, match="the source has ended"):
            await h.request(0, [], [60])
        path.write_bytes(b"more")
        await h.reset()
        await h.start()
        assert await h.request(0, [], [60]) == b"more"
        h.errors.clear()


async def test_an_immediate_source_that_fails_breaks_the_device() -> None:
    async with Harness(through(ImmediateSource(os.open("/dev/null", os.O_RDONLY), "/dev/null"))) as h:
        with pytest.raises(HostError, match="the source has ended"):
            await h.request(0, [], [60])
    async with Harness(through(ImmediateSource(os.open("/", os.O_RDONLY), "/"))) as h:
        with pytest.raises(HostError) as caught:
            await h.request(0, [], [60])
    assert caught.value.errno == errno.EISDIR


@pytest.mark.parametrize(("path", "code"), [("/does/not/exist", errno.ENOENT), ("/", errno.EISDIR)])
async def test_a_source_that_cannot_be_opened_is_told_at_once(path: str, code: int) -> None:
    with pytest.raises(HostError, match=r"opening the entropy source.*rng\.src") as caught:
        await device(Path(path)).open()
    assert caught.value.errno == code
    assert caught.value.filename == path


def test_the_kind_of_a_source(fifo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, kind in ((URANDOM, ImmediateSource), (fifo, PolledSource), (tmp_path / "file", ThreadedSource)):
        source = open_source(path)
        assert type(source) is kind
        source.close()
        source.close()


async def test_a_read_that_blocks_keeps_neither_reset_nor_close_waiting_and_loses_nothing() -> None:
    """A blocking pair stands for a slow hardware generator."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        dev = through(ThreadedSource(os.dup(ours.fileno()), "slow"))
        async with Harness(dev) as h:
            h.queues[0].add([], [64])
            h.queues[0].kick()
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.wait_for(h.reset(), HANGS)
            await h.start()
            theirs.send(b"came late")
            assert await h.request(0, [], [4]) == b"came"
            assert await h.request(0, [], [64]) == b" late"
            h.queues[0].add([], [64])
            h.queues[0].kick()
            for _ in range(20):
                await asyncio.sleep(0)
        theirs.send(b"x")  # lets the thread end


async def test_a_request_that_a_stop_cuts_short_is_not_lost(fifo: Path) -> None:
    """The queue can be resumed where it stands."""
    dev = device(fifo)
    async with Harness(dev) as h:
        h.queues[0].add([], [64])
        h.queues[0].kick()
        (queue,) = h.runner.queues
        for _ in range(50):
            await asyncio.sleep(0)
        assert queue.in_flight
        await h.reset()
        assert queue.position == QueuePosition(0, 0, told=True)


async def test_reset_200_times_under_load_leaks_nothing(endless: EntropySource) -> None:
    rng = random.Random(1)
    before = len(os.listdir("/proc/self/fd"))
    async with Harness(through(endless), memory_size=16 << 20) as h:
        inside = 0
        for round_ in range(200):
            for _ in range(rng.randrange(1, 40)):
                h.queues[0].add([], [rng.randrange(1, 4096)])
            h.queues[0].kick()
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            await h.reset()
            await h.start()
            inside = max(inside, len(os.listdir("/proc/self/fd"))) if round_ > 20 else 0
        assert await h.request(0, [], [100])  # perhaps what an interrupted read has left
    assert inside < before + 16
    assert len(os.listdir("/proc/self/fd")) < before + 2


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=20
    ),
    start=st.sampled_from([0, 65530]),
)
async def test_every_shape_of_request_is_filled(shapes: list[tuple[list[int], bool]], start: int) -> None:
    async with Harness(device(), start=start, shuffle=random.Random(0), memory_size=8 << 20) as h:
        q = h.queues[0]
        for sizes, indirect in shapes:
            q.add([], sizes, indirect=indirect)
        q.kick()
        used = await q.used(len(shapes))
        for one in used:
            size = sum(map(len, one.buffers))
            assert min(size, 4096) <= one.length <= size


def test_the_process_has_one_descriptor_of_urandom() -> None:
    before = len(os.listdir("/proc/self/fd"))
    sources = [open_source(Path("/dev/urandom")) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    for source in sources[:-1]:
        source.close()
    os.readv(sources[-1].fd, [bytearray(8)])  # type: ignore[attr-defined]
    sources[-1].close()
    assert len(os.listdir("/proc/self/fd")) == before
