"""Disks of one event loop share an io_uring, and nothing else: neither what hangs, nor what fails, nor what floods."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, engine
from aiovmm.devices.virtio.blk import rings as blk_rings
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.devices.virtio.blk.rings import SharedRing, join
from aiovmm.native import ffi, lib
from aiovmm.runtime.tasks import in_thread
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import header, read, submit, write
from tests.limits import HANGS

SIZE = 1 << 16
ASYNC_CANCEL = 14  # IORING_OP_ASYNC_CANCEL


@pytest.fixture(autouse=True)
def _io_uring() -> None:
    ring = ffi.new("struct avmm_uring *")
    if error := -lib.avmm_uring_open(ring, 1, 1):
        pytest.skip(f"io_uring: {os.strerror(error)}")
    lib.avmm_uring_close(ring)


def make(folder: Path, number: int = 0, **options: Any) -> BlkDevice:
    """A disk full of its number."""
    path = folder / f"disk{number}"
    path.write_bytes(bytes([number + 1]) * SIZE)
    return BlkDevice(DiskImage.open(path), name=path.name, **options)


@asynccontextmanager
async def harnesses(folder: Path, count: int) -> AsyncIterator[list[Harness]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Harness(make(folder, number))) for number in range(count)]


@contextmanager
def hanging(h: Harness) -> Iterator[int]:
    """Reads of this disk's wait meanwhile for what is written to the descriptor that this gives: it is a pipe's."""
    assert isinstance(h.device, BlkDevice)
    disk, (reader, writer) = h.device._disk, os.pipe()
    file, disk.fd = disk.fd, reader
    try:
        yield writer
    finally:
        disk.fd = file
        os.close(reader)
        os.close(writer)


def rings() -> int:
    """io_urings of this process."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[io_uring]"
        except OSError:
            continue
    return found


def offer(h: Harness, count: int = 1, *, indirect: bool = False) -> None:
    """Reads of 512 bytes."""
    for _ in range(count):
        h.queues[0].add([header(Request.IN)], [512, 1], indirect=indirect)
    h.queues[0].kick()


async def until(condition: Any) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - native code has no event for it
            await asyncio.sleep(0)


async def test_a_loop_has_one_ring_as_long_as_it_has_a_disk(tmp_path: Path) -> None:
    before = rings()
    disks = [make(tmp_path, number) for number in range(3)]
    for disk in disks:
        await disk.open()
        assert disk.io is IoKind.URING
        assert rings() == before + 1
    for disk in disks:
        assert rings() == before + 1
        await disk.close()
        await disk.close()
    assert rings() == before


async def test_every_completion_has_a_place(tmp_path: Path) -> None:
    """No ring is given away more than once over; the second has room for many more, and both go with their disks."""
    before, engines = rings(), []
    first = join(128)
    while (ring := join(128)) is first:
        engines.append(ring)
    assert rings() == before + 2
    places = first.native.uring.cq_entries
    assert (len(engines) + 1) * 128 + lib.AVMM_BLK_CANCELS <= places
    assert ring.native.uring.cq_entries == 8 * places
    for one in (ring, first, *engines):
        one.leave(128, None)
    assert rings() == before


async def test_a_disk_with_more_queues_than_a_ring_has_places_for(tmp_path: Path) -> None:
    async with Harness(make(tmp_path, num_queues=16, queue_size=256)) as h:
        for queue in range(16):
            assert await read(h, 0, 512, queue=queue) == b"\1" * 512


async def test_a_loop_in_another_thread_has_a_ring_of_its_own(tmp_path: Path) -> None:
    async def elsewhere() -> tuple[SharedRing, bytes]:
        async with Harness(make(tmp_path, 1)) as h:
            assert isinstance(h.device, BlkDevice)
            assert h.device._engine is not None
            assert h.device._engine.ring is not None
            return h.device._engine.ring, await read(h, 0, 512)

    async with Harness(make(tmp_path)) as h:
        there, data = await in_thread("another loop", lambda: asyncio.run(elsewhere()))
        assert data == b"\2" * 512
        assert await read(h, 0, 512) == b"\1" * 512
        assert isinstance(h.device, BlkDevice)
        assert h.device._disk.ring != there.native


async def test_where_another_ring_is_refused_threads_serve_the_disk(tmp_path: Path) -> None:
    """As with the last descriptor; those who have places keep them."""
    async with Harness(make(tmp_path)) as first:
        assert isinstance(first.device, BlkDevice)
        assert first.device._engine is not None
        ring = first.device._engine.ring
        assert ring is not None
        taken, ring.free = ring.free, 0
        disk = make(tmp_path, 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            await disk.open()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            ring.free = taken
        assert disk.io is IoKind.THREADS
        async with Harness(disk) as h:
            assert await read(h, 0, 512) == b"\2" * 512
        assert await read(first, 0, 512) == b"\1" * 512


async def test_a_disk_that_hangs_holds_up_nobody_and_its_reset_cancels_its_own_requests(tmp_path: Path) -> None:
    """Both disks hang with all that they can have in flight, a third one works; one is reset, the other goes on where it was."""
    async with harnesses(tmp_path, 3) as (reset, waits, works):
        with hanging(reset), hanging(waits) as writer:
            offer(reset, 40)
            offer(waits, 40)
            await until(lambda: reset.device._disk.in_flight == waits.device._disk.in_flight == 40)  # type: ignore[attr-defined]
            for _ in range(3):
                assert await read(works, 0, 4096) == b"\3" * 4096
            async with asyncio.timeout(HANGS):
                await reset.reset()
            assert waits.queues[0].poll() == []
            os.write(writer, b"w" * 40 * 512)
            assert {used.data for used in await waits.queues[0].used(40)} == {b"w" * 512 + b"\0"}
        await reset.start()
        assert await read(reset, 0, 512) == b"\1" * 512


async def test_overlays_of_one_base_do_not_cancel_each_others_reads(tmp_path: Path) -> None:
    """They read from one file: which of its requests are whose is known by more than that."""
    async with harnesses(tmp_path, 2) as (one, other):
        with hanging(one) as writer:
            file, other.device._disk.fd = other.device._disk.fd, one.device._disk.fd  # type: ignore[attr-defined]
            offer(one)
            offer(other)
            await until(lambda: one.device._disk.in_flight and other.device._disk.in_flight)  # type: ignore[attr-defined]
            async with asyncio.timeout(HANGS):
                await other.reset()
            other.device._disk.fd = file  # type: ignore[attr-defined]
            assert one.queues[0].poll() == []
            os.write(writer, b"w" * 512)
            (used,) = await one.queues[0].used()
            assert used.data == b"w" * 512 + b"\0"


async def test_more_than_the_kernel_takes_at_once_waits_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring's descriptor is another file's for some time, and the disks have more to submit than it has places for. A disk
    that is reset meanwhile takes back what waits of its own."""
    monkeypatch.setattr(blk_rings, "PATIENCE", 600.0)
    async with harnesses(tmp_path, 3) as (*disks, resets):
        ring = disks[0].device._disk.ring.uring  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        fd, ring.fd = ring.fd, -1
        try:
            for h in (*disks, resets, disks[1]):
                offer(h, 50 if h is resets else 40, indirect=True)
                await until(lambda h=h: h.device._disk.in_flight == h.queues[0].outstanding)
            assert ring.pending == ring.sq_entries == 128
            resetting = asyncio.ensure_future(resets.reset())
            await until(lambda: resets.device._disk.in_flight == 128 - 80)  # type: ignore[attr-defined]
        finally:
            ring.fd = fd
        await asyncio.wait_for(resetting, HANGS)
        for number, h in enumerate(disks):
            count = h.queues[0].outstanding
            answers = {used.data for used in await h.queues[0].used(count)}
            assert answers == {bytes([number + 1]) * 512 + b"\0"}


async def test_a_reset_hears_of_requests_that_end_while_it_cancels_others(tmp_path: Path) -> None:
    """There are more than can be cancelled at once, and the kernel takes nothing until the second step, which finds that all of
    them have ended. Nobody else looks."""
    async with harnesses(tmp_path, 1) as (h,):
        shared = h.device._engine.ring  # type: ignore[attr-defined]
        ring = shared.native.uring
        fd, ring.fd = ring.fd, -1
        try:
            offer(h, 40)
            await until(lambda: h.device._disk.in_flight == 40)  # type: ignore[attr-defined]
            resetting = asyncio.ensure_future(h.reset())
            await until(lambda: shared.native.cancels == lib.AVMM_BLK_CANCELS)
            asyncio.get_running_loop().remove_reader(fd)
            shared._retry.cancel()
        finally:
            ring.fd = fd
        await asyncio.wait([resetting], timeout=60)
        assert resetting.done()


@pytest.mark.parametrize("flushes", [0, 40])  # with them there are more than the ring has places for
async def test_where_the_kernel_takes_nothing_any_more_threads_do_it_and_everybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushes: int
) -> None:
    """Disks that have requests, one that has none and gets some later, and one that is reset at the time."""
    monkeypatch.setattr(blk_rings, "PATIENCE", 0.05)
    async with harnesses(tmp_path, 7) as all_disks:
        busy, other, idle, reset = disks = all_disks[3:]  # those before have their own ring, which is full
        native = busy.device._disk.ring  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        fd, native.uring.fd = native.uring.fd, -1
        try:
            for h in (busy, other, reset):
                offer(h, 16)
                for _ in range(flushes):
                    h.queues[0].add([header(Request.FLUSH)], [1])
                h.queues[0].kick()
                await until(lambda h=h: h.device._disk.in_flight == 16 + flushes)
            await asyncio.wait_for(reset.reset(), HANGS)
            assert {used.data for used in await busy.queues[0].used(16 + flushes)} - {b"\0"} == {b"\4" * 512 + b"\0"}
            assert await read(idle, 0, 512) == b"\6" * 512
            await reset.start()
            assert await read(reset, 0, 512) == b"\7" * 512
            assert [h.device.io for h in disks] == [IoKind.THREADS] * 4  # type: ignore[attr-defined]
            assert [str(told) for told in busy.reported] == [str(told) for told in idle.reported]
            assert "submitting to io_uring: Bad file descriptor" in str(busy.reported[0])
            async with Harness(make(tmp_path, 7)) as later:
                assert later.device.io is IoKind.URING  # type: ignore[attr-defined]
                assert await read(later, 0, 512) == b"\10" * 512
        finally:
            native.uring.fd = fd
        assert native.cancels == native.uring.pending == 0


async def test_all_requests_are_cancelled_however_many_completions_of_others_lie_ahead(tmp_path: Path) -> None:
    async with harnesses(tmp_path, 13) as all_disks:
        disks = all_disks[3:]  # those before have their own ring, which is full
        stops, others = disks[0], disks[1:]
        with ExitStack() as stack:
            stack.enter_context(hanging(stops))
            offer(stops, 40)
            writers = [stack.enter_context(hanging(h)) for h in others]
            for h in others:
                offer(h, 40)
            await until(lambda: all(h.device._disk.in_flight == 40 for h in disks))  # type: ignore[attr-defined]
            uring = stops.device._disk.ring.uring  # type: ignore[attr-defined]
            for writer in writers:
                os.write(writer, b"w" * 40 * 512)
            deadline = time.monotonic() + HANGS
            while uring.cq_ktail[0] - uring.cq_head < len(others) * lib.AVMM_BLK_WAITS:
                assert time.monotonic() < deadline
                time.sleep(0.001)  # noqa: ASYNC251 - and the loop takes none in
            stops.device._service._stop()  # type: ignore[attr-defined]
            await until(lambda: not stops.device._disk.in_flight)  # type: ignore[attr-defined]
            await stops.reset()
            for h in others:
                assert {used.data for used in await h.queues[0].used(40)} == {b"w" * 512 + b"\0"}


async def test_a_request_that_is_cancelled_and_nobody_asked_for_it_is_done_all_the_same(tmp_path: Path) -> None:
    """What is cancelled is known by its place, where there may be another request by then."""
    async with Harness(make(tmp_path)) as h:
        file = h.device._disk.fd  # type: ignore[attr-defined]
        with hanging(h):
            offer(h)
            await until(lambda: h.device._disk.in_flight)  # type: ignore[attr-defined]
            service = h.device._service  # type: ignore[attr-defined]
            h.device._disk.fd = file  # type: ignore[attr-defined]
            answer = asyncio.ensure_future(h.queues[0].used())
            async with asyncio.timeout(HANGS):
                while not answer.done():  # a cancellation may come too early for what is being begun
                    service.heed(service._queues[0].cancel())
                    await asyncio.sleep(0.001)
            (used,) = answer.result()
        assert used.data == b"\1" * 512 + b"\0"
        assert not h.reported


async def test_what_a_cancellation_has_missed_is_cancelled_again(tmp_path: Path) -> None:
    """The kernel finds nothing to cancel when it is asked for the first time, as with what is on its way from a thread of its to
    a poll."""
    async with Harness(make(tmp_path)) as h:
        with hanging(h):
            offer(h, 4)
            await until(lambda: h.device._disk.in_flight == 4)  # type: ignore[attr-defined]
            ring = h.device._disk.ring  # type: ignore[attr-defined]
            fd, ring.uring.fd = ring.uring.fd, -1
            try:
                resetting = asyncio.ensure_future(h.reset())
                await until(lambda: ring.cancels == ring.uring.pending == 4)
                for number in range(ring.uring.sq_entries):
                    sqe = ring.uring.sqes[number]
                    sqe.addr = 1 if sqe.opcode == ASYNC_CANCEL else sqe.addr
            finally:
                ring.uring.fd = fd
            await asyncio.wait_for(resetting, HANGS)
        assert not h.reported
        await h.start()
        assert await read(h, 0, 512) == b"\1" * 512


async def test_what_could_not_be_done_at_once_and_is_cancelled_then_is_no_failure(tmp_path: Path) -> None:
    """The host's file would have had whoever reads wait; meanwhile the disk is reset."""
    async with Harness(make(tmp_path)) as h:
        ring = h.device._disk.ring.uring  # type: ignore[attr-defined]
        with hanging(h):
            fd, ring.fd = ring.fd, -1
            try:
                offer(h)
                await until(lambda: ring.pending)
            finally:
                ring.fd = fd
            h.device._service._stop()  # type: ignore[attr-defined]
            await asyncio.wait_for(h.reset(), HANGS)
        assert not h.reported


async def test_a_flood_of_one_disk_leaves_the_others_their_turns(tmp_path: Path) -> None:
    async with harnesses(tmp_path, 2) as (floods, works):
        done = asyncio.Event()

        async def flood() -> None:
            offer(floods, 40)
            while not done.is_set():
                ended = await floods.queues[0].used()
                offer(floods, len(ended))

        task = asyncio.create_task(flood())
        for sector in range(20):
            await write(works, sector, bytes([sector]) * 512)
            assert await submit(works, Request.FLUSH) == (0, b"")
            assert await read(works, sector, 512) == bytes([sector]) * 512
        done.set()
        await asyncio.wait_for(task, HANGS)


async def test_what_fails_for_one_disk_is_not_another_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its completions are taken in when the other one is kicked, and it cannot interrupt."""
    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    async with harnesses(tmp_path, 2) as (fails, works):
        with hanging(fails) as writer:
            offer(fails)
            await until(lambda: fails.device._disk.in_flight)  # type: ignore[attr-defined]

            def pulse() -> None:
                raise OSError(errno.EIO, "no interrupts today")

            monkeypatch.setattr(fails.queues[0].irq, "pulse", pulse)
            service = works.device._service  # type: ignore[attr-defined]
            os.write(writer, b"w" * 512)
            offer(works)
            service._queues[0]._turn()  # before the loop hears of it
            (used,) = await works.queues[0].used()
            assert used.data == b"\2" * 512 + b"\0"
        await until(lambda: failures)
        assert [type(failure) for failure in failures] == [OSError]
        assert not fails.device._disk.in_flight  # type: ignore[attr-defined]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("new", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ring_goes_with_its_last_disk_also_when_its_loop_was_closed_before(
    new: Callable[[], asyncio.AbstractEventLoop], busy: bool, tmp_path: Path
) -> None:
    """Under a disk that serves a driver, and has something in flight. Who lets go of it does so on another loop."""
    before = rings()
    with ExitStack() as stack:

        async def begin() -> Harness:
            h = Harness(make(tmp_path))
            await h.__aenter__()
            assert await read(h, 0, 512) == b"\1" * 512
            if busy:
                stack.enter_context(hanging(h))
                offer(h, 2)
                await until(lambda: h.device._disk.in_flight == 2)  # type: ignore[attr-defined]
            return h

        loop = new()
        h = loop.run_until_complete(begin())
        disk = h.device
        assert isinstance(disk, BlkDevice)
        loop.close()
        del h, loop
        asyncio.run(disk.close())
        assert rings() == before
        known = weakref.ref(disk)
        del disk
    gc.collect()
    assert known() is None


async def test_what_fails_for_a_disk_that_is_kicked_costs_no_other_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harnesses(tmp_path, 2) as (waits, fails):
        with hanging(waits) as writer:
            offer(waits)
            await until(lambda: waits.device._disk.in_flight)  # type: ignore[attr-defined]
            service = fails.device._service  # type: ignore[attr-defined]

            def published(mask: int) -> None:
                raise OSError(errno.EIO, "no interrupts today")

            os.write(writer, b"w" * 512)
            fails.queues[0].add(
                [header(Request.GET_ID)], [20, 1]
            )  # answered in the turn itself, however slow storage is
            with monkeypatch.context() as patch:  # undone whatever comes, or the end would wait for ever
                patch.setattr(service, "published", published)
                with pytest.raises(OSError, match="no interrupts"):
                    service._queues[0]._turn()  # before the loop hears of it
            (used,) = await asyncio.wait_for(waits.queues[0].used(), HANGS)
            assert used.data == b"w" * 512 + b"\0"


async def test_a_disk_that_nobody_waits_for_is_there_until_its_requests_have_ended(tmp_path: Path) -> None:
    """Its coroutine is thrown away, as a loop does that does not end its tasks: what the kernel still writes to stays, and
    the guest hears nothing."""
    before = rings()
    async with Harness(make(tmp_path, 1)) as other:
        h = Harness(disk := make(tmp_path))
        async with h:
            native = disk._disk
            assert await read(h, 0, 512) == b"\1" * 512
            assert disk._service is not None
            service = disk._service
            with hanging(h) as writer:
                offer(h, 2)
                await until(lambda: native.in_flight == 2)
                service._let_go()  # what its coroutine does in the end, whoever ends it
                assert native.abandoned
                assert service._queues[0]._native.depth, "let go of with requests in flight"
                os.write(writer, b"w" * 1024)
                await until(lambda: not native.in_flight)
            assert not service._queues
            assert h.queues[0].poll() == []
        del h, disk, service
        gc.collect()
        assert await read(other, 0, 512) == b"\2" * 512
    assert rings() == before


@pytest.mark.parametrize(
    ("switch", "error", "said"),
    [
        ("2", errno.EPERM, "kernel.io_uring_disabled is 2, which forbids it: `sysctl kernel.io_uring_disabled=0`"),
        ("1", errno.EPERM, "is 1, which forbids it but to root and the group kernel.io_uring_group"),
        ("0", errno.EPERM, "a filter of system calls does that"),
        (None, errno.EPERM, "a filter of system calls does that"),
        ("2", errno.ENOSYS, "(Function not implemented)"),
    ],
)
async def test_a_host_that_refuses_rings_is_told_of_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    switch: str | None,
    error: int,
    said: str,
) -> None:
    """By its setting, a filter, or an old kernel; and threads serve all disks."""

    def refused(_places: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(engine, "join", refused)
    monkeypatch.setattr(engine, "_told", set())
    monkeypatch.setattr(engine, "_SWITCH", tmp_path / "switch")
    if switch is not None:
        (tmp_path / "switch").write_text(f"{switch}\n")
    for number in range(2):
        async with Harness(make(tmp_path, number)) as h:
            assert isinstance(h.device, BlkDevice)
            assert h.device.io is IoKind.THREADS
            assert await read(h, 0, 512) == bytes([number + 1]) * 512
    (record,) = [record for record in caplog.records if "io_uring" in record.message]
    assert record.levelname == "WARNING"
    assert said in record.message
    assert record.message.endswith("threads do disks' requests, which is slower")


KEPT = """
import asyncio, sys
from pathlib import Path

import uvloop

from aiovmm.config import DiskConfig
from aiovmm.confine.seccomp import confine_calls
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, rings
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import read

async def run(path):
    for _ in range(3):  # as over resets, and when one is added
        disks = [BlkDevice(DiskImage.open(f"{path}{number}")) for number in range(2)]
        async with Harness(disks[0]) as h, Harness(disks[1]) as other:
            found = [await read(each, 0, 512) for each in (h, other)]
            print(*(disk.io.value for disk in disks), *(data[:1] for data in found))
    try:
        rings.join(4096).leave(4096, None)
        print("made")
    except OSError as exc:
        print(exc.errno)

when, path = sys.argv[1:]
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    if when == "before":
        runner.run(run(path))
    rings.keep([DiskConfig(path=Path(path), queue_size=1024)])
    confine_calls()
    runner.run(run(path))
"""


@pytest.mark.parametrize("when", ["never", "before"])
def test_who_may_make_no_ring_any_more_keeps_those_that_there_are(when: str, tmp_path: Path) -> None:
    for name in ("disk0", "disk1"):
        (tmp_path / name).write_bytes(b"d" * SIZE)
    command = [sys.executable, "-c", KEPT, when, str(tmp_path / "disk")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.stderr == ""
    lines = ["io_uring io_uring b'd' b'd'"] * 3
    before = [*lines, "made"] if when == "before" else []
    assert done.stdout.splitlines() == [*before, *lines, str(errno.EPERM)]
