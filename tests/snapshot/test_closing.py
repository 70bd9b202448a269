"""A VM that is closed while a snapshot of it is written, or it becomes a template, is not held up by that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ExitReason, StateError, VMState
from aiovmm.machine import release
from aiovmm.memory import GuestMemory
from aiovmm.snapshot.directory import Written
from aiovmm.snapshot.pages import Copying, Kept, keep
from aiovmm.snapshot.taking import SavedMemory
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm_there")]


class Slow:
    """Wraps a call that a thread makes: it stands until `go`, or until what it copies was given up."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._reached, self.go = threading.Event(), threading.Event()

    def made(self, given: Copying | None, *args: Any, **kwargs: Any) -> Any:
        self._reached.set()
        while not self.go.wait(0.01) and not (given and given.native.given_up):
            pass
        return self._call(*args, **kwargs)

    def again(self) -> None:
        """Stand once more."""
        self._reached.clear()
        self.go.clear()

    async def under_way(self) -> None:
        async with asyncio.timeout(HANGS):
            await asyncio.to_thread(self._reached.wait)


@pytest.fixture
def slow_copy(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Of the memory of a guest that is saved."""
    slow = Slow(SavedMemory.take)
    monkeypatch.setattr(SavedMemory, "take", lambda saved: slow.made(saved.copying, saved))
    return slow


@pytest.fixture
def slow_freeze(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow(keep)

    def copied(memory: GuestMemory, out: int, *, release: bool, copying: Copying) -> Kept:
        kept: Kept = slow.made(copying, memory, out, release=release, copying=copying)
        return kept

    monkeypatch.setattr("aiovmm.snapshot.base.keep", copied)
    return slow


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that waits for anything of a snapshot's fails."""
    monkeypatch.setattr(release, "PATIENCE", 5.0)


@asynccontextmanager
async def running() -> AsyncIterator[VM]:
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        yield vm


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("base", [None, "base"])
async def test_who_closes_it_while_memory_is_copied_waits_for_a_moment(
    tmp_path: Path, slow_copy: Slow, base: str | None
) -> None:
    async with running() as vm:
        if base is not None:
            slow_copy.go.set()
            await vm.snapshot(tmp_path / base, track=True)
            slow_copy.again()
        saving = asyncio.ensure_future(vm.snapshot(tmp_path / "s", base=tmp_path / base if base else None))
        await closed(vm, slow_copy, saving)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_patience")
async def test_who_closes_it_while_it_is_frozen_waits_for_a_moment(slow_freeze: Slow) -> None:
    async with running() as vm:
        await closed(vm, slow_freeze, asyncio.ensure_future(vm.freeze()))


async def closed(vm: VM, slow: Slow, copy: asyncio.Future[Any]) -> None:
    await slow.under_way()
    async with asyncio.timeout(HANGS):
        assert (await vm.kill()).reason is ExitReason.KILLED
        assert not copy.done()
        await vm.aclose()
    with pytest.raises(StateError, match="closed while its memory was copied"):
        await copy


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("step", ["open", "commit"])
async def test_what_storage_takes_its_time_for_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Neither who pauses and resumes, nor who closes it; and what has all of the memory becomes a snapshot."""
    slow = Slow(getattr(Written, step))
    monkeypatch.setattr(Written, step, lambda *args: slow.made(None, *args))
    async with running() as vm:
        saving = asyncio.ensure_future(vm.snapshot(tmp_path / "s"))
        await slow.under_way()
        async with asyncio.timeout(HANGS):
            await vm.pause()
            await vm.resume()
            await counts_on(vm)
            await vm.aclose()
        assert not saving.done()
        slow.go.set()
        if step == "open":
            with pytest.raises(StateError):
                await saving
            return
        await saving
    async with VM.restore(tmp_path / "s", verify=True) as again:
        await again.resume()
        await counts_on(again)


async def test_one_snapshot_is_written_after_the_other(tmp_path: Path) -> None:
    async with running() as vm:
        await asyncio.gather(*(vm.snapshot(tmp_path / name, track=True) for name in "abc"))
        await vm.snapshot(tmp_path / "d", base=tmp_path / "c")
        assert vm.state is VMState.RUNNING


async def test_who_gives_up_a_snapshot_waits_for_a_moment(tmp_path: Path, slow_copy: Slow) -> None:
    async with running() as vm:
        saving = asyncio.ensure_future(vm.snapshot(tmp_path / "s"))
        await slow_copy.under_way()
        saving.cancel()
        async with asyncio.timeout(HANGS):
            with pytest.raises(asyncio.CancelledError):
                await saving
        await counts_on(vm)
