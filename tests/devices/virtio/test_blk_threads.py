"""A host that has no thread for a disk: requests fail, none is lost, and the device can be reset."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import Engine, IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.errors import HostError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import read, segments, submit
from tests.limits import HANGS


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def disk(tmp_path: Path) -> BlkDevice:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    return BlkDevice(DiskImage.open(path), io=IoKind.THREADS)


@pytest.mark.parametrize(
    ("kind", "data", "room"),
    [
        (Request.IN, b"", 512),
        (Request.OUT, bytes(512), 0),
        (Request.FLUSH, b"", 0),
        (Request.DISCARD, segments((0, 8, 0)), 0),
        (Request.WRITE_ZEROES, segments((0, 8, 0)), 0),
    ],
    ids=lambda v: v.name if isinstance(v, Request) else "",
)
async def test_requests_fail_and_the_next_is_served(
    disk: BlkDevice, monkeypatch: pytest.MonkeyPatch, kind: Request, data: bytes, room: int
) -> None:
    async with Harness(disk) as h:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                assert (await submit(h, kind, 0, data, room))[0] is Status.IOERR
            assert disk._disk.in_flight == 0
            await asyncio.wait_for(h.reset(), HANGS)
            await h.start()
        assert len(await read(h, 0, 512)) == 512
        assert disk.counters.errors == 3


async def test_work_that_was_refused_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(IoKind.THREADS, 1, "disk")
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(HostError):
            engine.submit(done.append, "refused")
    await engine.call(done.append, "accepted")
    engine.close()
    assert done == ["accepted"]


async def test_a_thread_that_there_is_does_the_work_of_one_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(IoKind.THREADS, 1, "disk")
    go = threading.Event()
    done: list[str] = []
    first = engine.submit(go.wait)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = engine.submit(done.append, "later")
    assert not second.done()
    go.set()
    await asyncio.wait_for(asyncio.gather(first, second), HANGS)
    engine.close()
    assert done == ["later"]


KINDS_OF_WORK = [(Request.OUT, b"x" * 512), (Request.DISCARD, segments((0, 8, 0)))]


@pytest.mark.parametrize(("kind", "data"), KINDS_OF_WORK)
async def test_a_fault_of_ours_in_handing_work_over_breaks_the_device_and_a_reset_ends(
    disk: BlkDevice, monkeypatch: pytest.MonkeyPatch, kind: Request, data: bytes
) -> None:
    async with Harness(disk) as h:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "submit", lambda *_, **__: 1 // 0)
            assert (await submit(h, kind, 0, data))[0] is Status.IOERR
            assert isinstance(await h.broken(), ZeroDivisionError)
        assert disk._disk.in_flight == 0
        await asyncio.wait_for(h.reset(), HANGS)
        await h.start()
        assert len(await read(h, 0, 512)) == 512


@pytest.mark.parametrize(("kind", "data"), KINDS_OF_WORK)
async def test_work_that_fails_with_a_fault_of_ours_is_answered_and_told(
    disk: BlkDevice, monkeypatch: pytest.MonkeyPatch, kind: Request, data: bytes
) -> None:
    submit_ = Engine.submit

    def faulty(engine: Engine, work: object, *arguments: object, **named: Any) -> asyncio.Future[Any]:
        return submit_(engine, lambda: 1 // 0, **named)

    async with Harness(disk) as h:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "submit", faulty)
            assert (await submit(h, kind, 0, data))[0] is Status.IOERR
        assert ZeroDivisionError in [type(error) for error in h.reported]
        assert disk._disk.in_flight == 0
        assert len(await read(h, 0, 512)) == 512
