"""Memory that comes from elsewhere than the snapshot's directory: all of it, whatever the order, or an error and no guest."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ConsoleConfig, HostError, SnapshotError, UsageError
from aiovmm.architecture import AARCH64, X86_64, host
from aiovmm.runtime.forks import let_go
from aiovmm.snapshot import base
from aiovmm.snapshot.pages import extents
from aiovmm.snapshot.template import Template
from tests.vm.guest import config, counter, counts_on
from tests.vm.remains import Remains

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm_there")]
PAGE = 4096


class Storage:
    """The memory's file, taken out of the directory; it is given in pieces of so many pages, the last first."""

    def __init__(self, path: Path, pages: int = 3) -> None:
        (file,) = path.glob("memory-*")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            self.pieces = [
                (at, os.pread(opened.fileno(), min(pages * PAGE, offset + length - at), at))
                for offset, length in extents(opened.fileno(), 0, size)
                for at in range(offset, offset + length, pages * PAGE)
            ]
        file.unlink()
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        try:
            for piece in reversed(self.pieces):
                await asyncio.sleep(0)
                yield piece
        finally:
            self.closed += 1


async def saved(path: Path, **changes: Any) -> int:
    """How far it had counted at most."""
    async with VM(config("s", **changes)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(path)
        return counter(vm)


async def test_a_guest_goes_on_from_it(tmp_path: Path) -> None:
    seen = await saved(tmp_path / "s", console=ConsoleConfig())
    storage = Storage(tmp_path / "s")
    for verify in (False, True):
        async with VM.restore(tmp_path / "s", pages=storage, verify=verify) as vm:
            assert 0 < counter(vm) <= seen
            await vm.resume()
            await counts_on(vm)
    assert storage.closed == 2
    with pytest.raises(SnapshotError, match="has no memory-"):
        async with VM.restore(tmp_path / "s"):
            pass


async def test_in_more_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.snapshot.received._BATCH", 2 * PAGE)
    await saved(tmp_path / "s")
    async with VM.restore(tmp_path / "s", pages=Storage(tmp_path / "s", 1)) as vm:
        await vm.resume()
        await counts_on(vm)


async def test_forks_have_it_in_common(tmp_path: Path) -> None:
    await saved(tmp_path / "s")
    storage = Storage(tmp_path / "s")
    async with (
        await Template.open(tmp_path / "s", pages=storage) as template,
        template.fork() as one,
        template.fork() as other,
    ):
        for child in (one, other):
            await child.resume()
            await counts_on(child)
        assert await one.memory.own() < 1 << 20
    assert storage.closed == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pieces: pieces[0:0], "not what was saved"),
        (lambda pieces: pieces[1:], "not what was saved"),
        (lambda pieces: [(pieces[0][0], bytes(PAGE)), *pieces[1:]], "not what was saved"),
        (lambda pieces: [(1, bytes(PAGE))], "pages gave 4096 bytes at 1: whole pages"),
        (lambda pieces: [(0, bytes(5))], "pages gave 5 bytes at 0"),
        (lambda pieces: [(-PAGE, bytes(PAGE))], "bytes at -4096"),
        (lambda pieces: [(1 << 40, bytes(PAGE))], "in 4194304 bytes of memory"),
        (lambda pieces: [(True, bytes(PAGE))], "bytes at True"),
        (lambda pieces: [(0, "text")], "pages gave tuple, not"),
        (lambda pieces: [5], "pages gave int, not"),
    ],
)
async def test_what_it_is_not(tmp_path: Path, change: Callable[[list[object]], list[object]], said: str) -> None:
    await saved(tmp_path / "s")
    storage = Storage(tmp_path / "s", 4)
    before = Remains.now()
    storage.pieces = change(storage.pieces)  # type: ignore[arg-type, assignment]
    with pytest.raises(SnapshotError, match=said):
        async with VM.restore(tmp_path / "s", pages=storage):
            pass
    assert storage.closed == 1
    await before.check()


async def test_an_error_of_the_source_is_its_guests_alone(tmp_path: Path) -> None:
    await saved(tmp_path / "s")
    storage = Storage(tmp_path / "s")

    async def fails() -> AsyncIterator[tuple[int, bytes]]:
        yield storage.pieces[0]
        raise ConnectionResetError("the bucket is gone")

    async with VM.restore(tmp_path / "s", pages=storage, name="other") as other:
        await other.resume()
        before = bases()
        with pytest.raises(ConnectionResetError, match="the bucket is gone"):
            async with VM.restore(tmp_path / "s", pages=fails()):
                pass
        assert bases() == before > 0
        await counts_on(other)


def bases() -> int:
    """How many there are of guests' memory in this process: descriptors."""
    return sum("aiovmm-base" in str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


async def test_who_does_not_want_to_wait_is_let_go(tmp_path: Path) -> None:
    await saved(tmp_path / "s")
    storage = Storage(tmp_path / "s")
    ended = asyncio.Event()

    async def never() -> AsyncIterator[tuple[int, bytes]]:
        try:
            yield storage.pieces[0]
            await asyncio.Event().wait()
        finally:
            ended.set()

    before = Remains.now()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), VM.restore(tmp_path / "s", pages=never()):
            pass
    assert ended.is_set()
    await before.check()


async def test_what_is_no_source(tmp_path: Path) -> None:
    await saved(tmp_path / "s")
    with pytest.raises(UsageError, match="pages is list: it is an async iterator"):
        async with VM.restore(tmp_path / "s", pages=[]):  # type: ignore[arg-type]
            pass
    storage = Storage(tmp_path / "s")
    with pytest.raises(HostError, match="No such file"):
        async with VM.restore(tmp_path / "none", pages=storage):
            pass


@pytest.mark.usefixtures("writes_are_known")
async def test_an_increment_alone_is_refused(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "0", track=True)
        await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
    with pytest.raises(SnapshotError, match="it is an increment: give the pages of a whole snapshot"):
        async with VM.restore(tmp_path / "1", pages=Storage(tmp_path / "0")):
            pass


async def test_its_end_does_not_keep_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await saved(tmp_path / "s")
    closed_by = whoever_closes(monkeypatch)
    async with VM.restore(tmp_path / "s", pages=Storage(tmp_path / "s")) as vm:
        await vm.resume()
        assert not closed_by
    assert len(closed_by) == 1
    assert closed_by[0] is not threading.main_thread()


async def test_nor_does_the_end_of_one_that_is_no_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory has come by the time that is found out."""
    await saved(tmp_path / "s")
    closed_by = whoever_closes(monkeypatch)
    storage = Storage(tmp_path / "s")
    with pytest.raises(UsageError):
        async with VM.restore(tmp_path / "s", pages=storage, overrides={"nothing": 1}):
            pass
    assert len(closed_by) == 1
    monkeypatch.setattr("aiovmm.snapshot.restoring.host", lambda: X86_64 if host() is AARCH64 else AARCH64)
    with pytest.raises(SnapshotError, match="it is of a guest for"):
        await Template.open(tmp_path / "s", pages=storage)
    assert len(closed_by) == 2
    assert threading.main_thread() not in closed_by


def whoever_closes(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that have closed a guest's memory."""
    closed_by: list[threading.Thread] = []

    def note(fd: int) -> int:
        closed_by.append(threading.current_thread())
        return let_go(fd)

    monkeypatch.setattr(base, "let_go", note)
    return closed_by
