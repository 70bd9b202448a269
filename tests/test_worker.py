"""Calls that take long, made off the loop: in order, all of them, and nobody waits who need not."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest

from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.worker import Worker
from tests.limits import HANGS


async def test_calls_are_made_in_order_one_at_a_time_and_told_on_the_loop() -> None:
    worker, made, told = Worker("test"), list[tuple[int, int, str]](), list[int]()
    here, inside = threading.get_ident(), threading.Lock()

    def work(number: int) -> int:
        assert inside.acquire(blocking=False), "two calls at once"
        made.append((number, threading.get_ident(), threading.current_thread().name))
        inside.release()
        return number

    def then(error: BaseException | None) -> None:
        assert error is None
        assert threading.get_ident() == here
        told.append(len(told))

    futures = []
    for n in range(200):
        futures.append(worker.submit(lambda n=n: work(n), then))  # type: ignore[misc]
        if n % 7 == 0:
            await asyncio.sleep(0)
        if n % 40 == 0:
            await futures[-1]
    assert await asyncio.gather(*futures) == list(range(200))
    assert [n for n, _, _ in made] == told == list(range(200))
    assert here not in {thread for _, thread, _ in made}
    assert {name for _, _, name in made} == {"test"}
    await worker.aclose()
    await worker.aclose()


async def test_the_loop_goes_on_while_a_call_blocks() -> None:
    worker, may_end = Worker("test"), threading.Event()
    future = worker.submit(lambda: may_end.wait(HANGS))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not future.done()
    may_end.set()
    assert await future is True
    await worker.aclose()


async def test_what_a_call_raises_is_its_waiters_and_the_next_one_is_made() -> None:
    worker, heard = Worker("test"), list[BaseException | None]()

    def broken() -> None:
        raise OSError("refused")

    future = worker.submit(broken, heard.append)
    ignored = worker.submit(broken)  # by nobody, and nobody complains
    assert await worker.submit(lambda: 7) == 7
    with pytest.raises(OSError, match="refused"):
        await future
    assert ignored.done()
    assert [str(e) for e in heard] == ["refused"]
    await worker.aclose()


async def test_a_waiter_that_is_cancelled_takes_nothing_back() -> None:
    worker, may_go, made = Worker("test"), threading.Event(), []
    worker.submit(lambda: may_go.wait(HANGS))
    future = worker.submit(lambda: made.append("work"), lambda error: made.append("then"))

    async def wait() -> None:
        await future

    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    may_go.set()
    await worker.aclose()
    assert made == ["work", "then"]


async def test_workers_without_calls_have_no_threads() -> None:
    before = threading.active_count()
    workers = [Worker(f"guest{n}") for n in range(300)]
    for worker in workers:
        assert await worker.submit(threading.get_ident) != threading.get_ident()
    assert threading.active_count() <= before + 1, "each used the one that the last had left"
    for worker in workers:
        await worker.aclose()


async def test_a_worker_whose_call_blocks_holds_up_no_other() -> None:
    may_end = threading.Event()
    stuck = [Worker(f"stuck{n}") for n in range(20)]
    blocked = [worker.submit(lambda: may_end.wait(HANGS)) for worker in stuck]
    free = Worker("free")
    for n in range(50):
        assert await asyncio.wait_for(free.submit(lambda n=n: n), HANGS) == n  # type: ignore[misc]
    assert not any(future.done() for future in blocked)
    may_end.set()
    await asyncio.gather(*blocked)


async def test_without_room_for_a_thread_the_call_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    worker, made = Worker("test"), list[object]()

    def work() -> int:
        made.append("work")
        return 2

    assert await worker.submit(work, made.append) == 2
    assert made == ["work", None]
    await worker.aclose()


async def test_blocking_calls_of_ours_need_no_executor_of_the_embedders() -> None:
    """Theirs may be full for as long as they like."""
    may_end = threading.Event()
    full = [asyncio.get_running_loop().run_in_executor(None, may_end.wait, 30) for _ in range(64)]
    async with asyncio.timeout(HANGS):
        assert await in_thread("test", lambda: 3) == 3
    may_end.set()
    await asyncio.gather(*full)


async def test_who_waits_is_answered_whatever_becomes_of_what_is_told() -> None:
    """A vCPU may wait for the call: an error in what follows on the loop must not leave it waiting for ever."""
    worker, loop, errors = Worker("test"), asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def broken(_: BaseException | None) -> None:
        raise ValueError("broken")

    assert await asyncio.wait_for(worker.submit(lambda: 7, broken), HANGS) == 7
    await worker.aclose()
    assert [str(e) for e in errors] == ["broken"]


async def test_what_a_call_that_failed_had_made_goes_at_once() -> None:
    """Memory of a guest, or descriptors: not when garbage is next collected."""
    worker, made = Worker("test"), list[weakref.ref[threading.Event]]()

    def work() -> None:
        thing = threading.Event()
        made.append(weakref.ref(thing))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        future = worker.submit(work)
        await asyncio.wait([future])
        assert isinstance(future.exception(), ValueError)
        del future
        deadline = time.monotonic() + HANGS
        while made[0]() is not None and time.monotonic() < deadline:  # noqa: ASYNC110 (no event tells that the thread has let go)
            await asyncio.sleep(0.001)
        assert made[0]() is None
    finally:
        gc.enable()
    await worker.aclose()
