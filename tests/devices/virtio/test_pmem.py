"""What the guest sees of a pmem device, and what becomes of its file."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.config import PmemConfig
from aiovmm.devices.virtio.pmem import ALIGNMENT, Backing, PmemDevice
from aiovmm.errors import ChainError, ConfigError, HostError, StateError
from aiovmm.machine.device_memory import MemoryDevice, map_device_memory
from aiovmm.machine.parts import PluggedDevice
from aiovmm.memory import GuestMemory
from aiovmm.testing import Harness
from aiovmm.virtqueue import Chain, Queue
from tests.limits import HANGS

MIB = 1 << 20
FLUSH = struct.pack("<I", 0)
OK, FAILED = struct.pack("<i", 0), struct.pack("<i", -1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "pmem.img"
    path.touch()
    os.truncate(path, 4 * MIB)
    return path


class SlowBacking(Backing):
    """A disk whose flush ends when the test says so."""

    def __init__(self, path: Path, fail: int = 0) -> None:
        super().__init__(os.open(path, os.O_RDWR), 4 * MIB, True, path)
        self.begun = 0
        self.fail = fail
        self.gate = threading.Semaphore(0)

    def sync(self) -> None:
        self.begun += 1
        assert self.gate.acquire(timeout=HANGS)
        assert self.fd >= 0
        if self.fail:
            raise OSError(self.fail, os.strerror(self.fail))


def overwrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def first(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - a thread begins, without telling the loop
            await asyncio.sleep(0.001)


def device(path: Path, **options: object) -> PmemDevice:
    return PmemDevice.from_config(PmemConfig(file=path, **options))  # type: ignore[arg-type]


async def test_the_configuration_says_where_and_how_large(image: Path) -> None:
    dev = device(image)
    assert dev.read_config(0, 16) == bytes(16)
    async with Harness(dev):
        dev.placed(5 << 30)
        assert struct.unpack("<QQ", dev.read_config(0, 16)) == (5 << 30, 4 * MIB)
        assert dev.read_config(8, 4) == (4 * MIB).to_bytes(4, "little")
        assert dev.read_config(12, 8) == bytes(8)
        assert dev.read_config(100, 4) == bytes(4)


async def test_a_flush_is_answered_when_the_file_is_flushed(image: Path) -> None:
    backing = SlowBacking(image)
    async with Harness(PmemDevice(lambda: backing)) as h:
        answer = asyncio.ensure_future(h.request(0, [FLUSH], [4]))
        await until(lambda: backing.begun == 1)
        assert not answer.done()
        backing.gate.release()
        assert await answer == OK


async def test_a_flush_needs_no_executor_of_the_embedders(image: Path) -> None:
    backing, may_end = SlowBacking(image), threading.Event()
    full = [asyncio.get_running_loop().run_in_executor(None, may_end.wait, 30) for _ in range(64)]
    backing.gate.release()
    async with Harness(PmemDevice(lambda: backing)) as h, asyncio.timeout(HANGS):
        assert await h.request(0, [FLUSH], [4]) == OK
    may_end.set()
    await asyncio.gather(*full)


async def test_flushes_that_come_during_one_share_the_next(image: Path) -> None:
    """And are not answered by the one that runs: it may have begun before their writes."""
    backing = SlowBacking(image)
    async with Harness(PmemDevice(lambda: backing)) as h:
        q = h.queues[0]
        q.add([FLUSH], [4])
        q.kick()
        await until(lambda: backing.begun == 1)
        for _ in range(30):
            q.add([FLUSH], [4])
        q.kick()
        backing.gate.release()
        (first,) = await q.used()
        assert first.data == OK
        await until(lambda: backing.begun == 2)
        assert not q.poll()
        backing.gate.release()
        assert [u.data for u in await q.used(30)] == [OK] * 30
    assert backing.begun == 2


async def test_a_flush_that_fails_says_so_and_the_device_goes_on(image: Path) -> None:
    backing = SlowBacking(image, errno.EIO)
    dev = PmemDevice(lambda: backing)
    async with Harness(dev) as h:
        backing.gate.release(2)
        assert await h.request(0, [FLUSH], [4]) == FAILED
        assert dev.error is not None
        assert dev.error.errno == errno.EIO
        assert [str(error).partition(" (")[0] for error in h.reported] == ["flushing the pmem file: Input/output error"]
        backing.fail = 0
        assert await h.request(0, [FLUSH], [4]) == OK


async def test_reset_waits_for_the_flush_under_way(image: Path) -> None:
    backing = SlowBacking(image)
    async with Harness(PmemDevice(lambda: backing)) as h:
        h.queues[0].add([FLUSH], [4])
        h.queues[0].kick()
        await until(lambda: backing.begun == 1)
        reset = asyncio.ensure_future(h.reset())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not reset.done()
        backing.gate.release()
        await asyncio.wait_for(reset, HANGS)
        await h.start()
        backing.gate.release()
        assert await h.request(0, [FLUSH], [4]) == OK


async def test_an_unknown_request_fails_alone(image: Path) -> None:
    async with Harness(device(image)) as h:
        assert await h.request(0, [struct.pack("<I", 7)], [4]) == FAILED
        assert await h.request(0, [FLUSH[:1], FLUSH[1:]], [3, 1], indirect=True) == OK


async def test_requests_that_are_refused_leave_the_loop_its_turns_however_fast_they_come(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a processor that offers the next one as soon as it sees the answer."""
    enough, answered, turns = 1000, 0, [0]
    async with Harness(device(image)) as h:
        push = Queue.push

        def push_and_offer(queue: Queue, chain: Chain) -> None:
            nonlocal answered
            push(queue, chain)
            answered += 1
            if answered < enough:
                turns[-1] += 1
                h.queues[0].poll()
                h.queues[0].add([struct.pack("<I", 7)], [4])

        monkeypatch.setattr(Queue, "push", push_and_offer)
        h.queues[0].add([struct.pack("<I", 7)], [4])
        h.queues[0].kick()
        while answered < enough:
            turns.append(0)
            await asyncio.sleep(0)
    assert 0 < max(turns) <= h.queues[0].size


@pytest.mark.parametrize(("readable", "writable"), [([FLUSH], [3]), ([b"\0\0\0"], [4]), ([FLUSH], []), ([], [4])])
async def test_a_request_that_cannot_be_answered_breaks_the_device(
    image: Path, readable: list[bytes], writable: list[int]
) -> None:
    async with Harness(device(image)) as h:
        h.queues[0].add(readable, writable)
        h.queues[0].kick()
        assert isinstance(await h.broken(), ChainError)
        await h.reset()
        await h.start()
        assert await h.request(0, [FLUSH], [4]) == OK


async def test_reset_200_times_under_load_leaks_nothing(image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with Harness(device(image), memory_size=16 * MIB) as h:
        inside = 0
        for round_ in range(200):
            for _ in range(round_ % 20 + 1):
                h.queues[0].add([FLUSH], [4])
            h.queues[0].kick()
            for _ in range(round_ % 7):
                await asyncio.sleep(0)
            await h.reset()
            await h.start()
            inside = max(inside, len(os.listdir("/proc/self/fd"))) if round_ > 20 else 0
        assert await h.request(0, [FLUSH], [4]) == OK
    assert inside < before + 16
    assert len(os.listdir("/proc/self/fd")) < before + 2


# -- the file


async def opened(path: Path, **options: object) -> PmemDevice:
    dev = device(path, **options)
    await dev.open()
    return dev


async def test_what_the_guest_writes_reaches_the_file_or_is_discarded(image: Path) -> None:
    for discard in (False, True):
        overwrite(image, b"before")
        dev = await opened(image, discard_writes=discard)
        memory = GuestMemory.create([(0, MIB)])
        end = map_device_memory(memory, [PluggedDevice("pmem0", dev)], 1 << 32, 1 << 40)
        start, size = struct.unpack("<QQ", dev.read_config(0, 16))
        assert (start, size, end) == (1 << 32, 4 * MIB, (1 << 32) + 4 * MIB)
        assert memory.read(start, 6) == b"before"
        memory.write(start, b"after!")
        assert memory.read(start, 6) == b"after!"
        assert first(image, 6) == (b"before" if discard else b"after!")
        memory.close()
        await dev.close()


async def test_a_read_only_file_needs_discard_writes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = os.open

    def deny_writing(path: object, flags: int, *rest: int) -> int:
        asked.append(flags)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "denied")
        return real(image, flags, *rest)

    monkeypatch.setattr(os, "open", deny_writing)
    with pytest.raises(HostError, match="discard_writes=on"):
        await device(image).open()
    dev = await opened(image, discard_writes=True)
    assert asked[-1] & os.O_ACCMODE == os.O_RDONLY
    await dev.close()


async def test_a_size_takes_a_part_of_the_file_and_no_more_than_there_is(image: Path) -> None:
    dev = await opened(image, size=2 * MIB)
    assert dev.memory().size == 2 * MIB
    await dev.close()
    with pytest.raises(ConfigError, match=r"pmem\.size.*truncate -s 6291456"):
        await device(image, size=6 * MIB).open()
    os.truncate(image, 3 * MIB)
    with pytest.raises(ConfigError, match=r"not a multiple of 2M.*truncate -s 4194304.*size=2097152"):
        await device(image).open()
    os.truncate(image, 0)
    with pytest.raises(ConfigError, match="is empty"):
        await device(image).open()


async def test_a_file_that_was_cut_short_is_not_mapped_again(image: Path) -> None:
    dev = await opened(image)
    os.truncate(image, 2 * MIB)
    with pytest.raises(ConfigError, match="4194304 bytes are wanted"):
        dev.memory()
    await dev.close()
    with pytest.raises(StateError):
        dev.memory()


async def test_an_image_of_another_format_is_not_mapped(image: Path) -> None:
    overwrite(image, b"QFI\xfb")
    for discard in (False, True):
        with pytest.raises(ConfigError, match=r"is a qcow2 image.*qemu-img convert"):
            await opened(image, discard_writes=discard)


async def test_a_directory_gives_an_unnamed_file(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="needs size="):
        await device(tmp_path).open()
    dev = await opened(tmp_path, size=2 * MIB)
    assert os.fstat(dev.memory().fd).st_size == 2 * MIB
    assert not os.listdir(tmp_path)
    await dev.close()


async def test_one_writer_or_many_that_discard_their_writes(image: Path) -> None:
    readers = [await opened(image, discard_writes=True) for _ in range(3)]
    with pytest.raises(HostError, match="discard_writes=on"):
        await device(image).open()
    for reader in readers:
        await reader.close()
    writer = await opened(image)
    for options in ({}, {"discard_writes": True}):
        with pytest.raises(HostError, match=r"another (VM or )?program"):
            await device(image, **options).open()
    await writer.close()
    await (await opened(image)).close()


@pytest.mark.parametrize(("path", "error"), [("/does/not/exist", HostError), ("/dev/null", ConfigError)])
async def test_what_cannot_be_a_pmem_file_is_told_at_once(path: str, error: type[Exception]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=r"pmem\.file"):
        await device(Path(path)).open()
    assert len(os.listdir("/proc/self/fd")) == before


# -- in guest-physical space


async def test_devices_lie_one_after_the_other_above_ram_at_the_same_place_each_time(tmp_path: Path) -> None:
    devices = []
    for name, size in (("a", 2 * MIB), ("b", 6 * MIB)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
        devices.append(await opened(tmp_path / name))
    plugged = [PluggedDevice(f"pmem{i}", d) for i, d in enumerate(devices)]
    assert all(isinstance(d, MemoryDevice) for d in devices)
    for _ in range(2):
        memory = GuestMemory.create([(0, MIB)])
        end = map_device_memory(memory, plugged, (5 << 30) + 4096, 1 << 40)
        starts = [int.from_bytes(d.read_config(0, 8), "little") for d in devices]
        assert starts == [6 << 30, (6 << 30) + 2 * MIB]
        assert end == (6 << 30) + 8 * MIB
        assert all(start % ALIGNMENT == 0 for start in starts)
        memory.close()
    memory = GuestMemory.create([(0, MIB)])
    with pytest.raises(ConfigError, match=r"pmem0\.size.*33 address bits"):
        map_device_memory(memory, plugged, 1 << 33, 1 << 33)
    memory.close()
    for d in devices:
        await d.close()


async def test_without_such_devices_nothing_is_mapped() -> None:
    memory = GuestMemory.create([(0, MIB)])
    assert map_device_memory(memory, [], (1 << 32) + 4096, 1 << 40) == (1 << 32) + 4096
    assert len(memory.regions) == 1
    memory.close()
