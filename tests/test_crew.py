"""Threads that make calls for whoever asks: used again, as many as are busy, none that stays for nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import weakref

import pytest

from aiovmm.runtime import crew
from aiovmm.runtime.tasks import in_thread
from tests.limits import HANGS


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == crew.NAME]


async def test_one_call_after_the_other_is_made_by_the_same_thread() -> None:
    made = {await in_thread("test", threading.get_ident) for _ in range(20)}
    assert len(made) == 1
    assert made != {threading.get_ident()}


async def test_calls_that_block_hold_up_nobody_elses() -> None:
    may_end = threading.Event()
    blocked = [asyncio.create_task(in_thread("test", may_end.wait, 30)) for _ in range(40)]
    await asyncio.sleep(0)
    assert await in_thread("test", lambda: 3) == 3
    may_end.set()
    assert all(await asyncio.gather(*blocked))


async def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread("test", lambda: 1 // 0)
    assert await in_thread("test", lambda: 1) == 1, "the thread has gone on"


@pytest.mark.parametrize("name", ["\udcff: tap open", "web: \udcff", "\ud800", ""])
async def test_a_name_that_is_no_utf_8_keeps_nobody_from_work(name: str) -> None:
    """A TAP may be called so, on whose opening a guest's start waits."""
    assert await asyncio.wait_for(in_thread(name, lambda: 5), HANGS) == 5


async def test_who_has_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "IDLE", 0.01)
    monkeypatch.setattr(crew, "_idle", [])
    await asyncio.gather(*(in_thread("test", time.sleep, 0.01) for _ in range(5)))
    deadline = time.monotonic() + HANGS
    while crew._idle and time.monotonic() < deadline:  # noqa: ASYNC110 (no event tells)
        await asyncio.sleep(0.01)
    assert crew._idle == []
    for _ in range(200):  # some of them while the thread is about to go
        assert await in_thread("test", lambda: 1) == 1
        await asyncio.sleep(0.0099)


async def test_without_room_for_a_thread_a_call_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(crew, "_idle", [])
    monkeypatch.setattr(crew._Hand, "start", none)
    assert await in_thread("test", threading.get_ident) == threading.get_ident()


async def test_a_forked_child_has_threads_of_its_own() -> None:
    await in_thread("test", lambda: None)
    assert threads()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if not crew._idle and asyncio.run(in_thread("test", lambda: 3)) == 3 else 1)
        except BaseException:
            os._exit(2)
    _, status = await in_thread("test", os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


async def test_what_a_call_referred_to_is_let_go_of() -> None:
    class Thing:
        def __call__(self) -> None: ...

    import weakref

    thing = Thing()
    gone = weakref.ref(thing)
    await in_thread("test", thing)
    del thing
    deadline = time.monotonic() + HANGS
    while gone() is not None and time.monotonic() < deadline:  # noqa: ASYNC110 (no event tells)
        await asyncio.sleep(0.001)
    assert gone() is None


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_a_call_that_failed_had_made_goes_at_once(cancelled: bool) -> None:
    """Memory of a guest, or descriptors: not when garbage is next collected."""
    made: list[weakref.ref[threading.Event]] = []
    may_end = threading.Event()

    def call() -> None:
        thing = threading.Event()
        made.append(weakref.ref(thing))
        may_end.wait(HANGS)
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(in_thread("test", call))
        await asyncio.sleep(0)
        if cancelled:
            task.cancel()
        may_end.set()
        await asyncio.wait([task])
        assert task.cancelled() == cancelled
        assert cancelled or isinstance(task.exception(), ValueError)
        del task
        deadline = time.monotonic() + HANGS
        while made[0]() is not None and time.monotonic() < deadline:  # noqa: ASYNC110 (no event tells that the thread has let go)
            await asyncio.sleep(0.001)
        assert made[0]() is None
    finally:
        gc.enable()


def test_who_ends_for_want_of_work_does_what_is_for_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "IDLE", 0.01)
    done = threading.Event()
    monkeypatch.setattr(crew, "at_rest", [done.set])
    crew.run("web: anything", lambda: lambda: None)
    assert done.wait(HANGS)


def test_what_is_not_done_yet_when_all_is_quiet_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "IDLE", 0.01)
    calls: list[float] = []
    done = threading.Event()

    def call() -> bool:
        calls.append(time.monotonic())
        if len(calls) == 3:
            done.set()
        return len(calls) < 3

    monkeypatch.setattr(crew, "at_rest", [call])
    crew.run("web: anything", lambda: lambda: None)
    assert done.wait(HANGS)
    assert len(calls) == 3
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(calls))
