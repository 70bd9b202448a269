"""The life of a VM: every transition, the first reason stays, and events reach every subscriber."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from aiovmm.errors import StateError
from aiovmm.events import LIMIT, EventStream
from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus, Lifecycle, VMState
from aiovmm.runtime.tasks import TaskScope, finish, in_thread
from tests.limits import HANGS


def test_transitions_are_idempotent_and_stopped_is_final() -> None:
    life = Lifecycle()
    assert life.move(VMState.RUNNING)
    assert not life.move(VMState.RUNNING)
    assert life.move(VMState.PAUSED)
    assert life.move(VMState.RUNNING)
    assert life.end(ExitStatus(ExitReason.SHUTDOWN, "by the guest"))
    assert not life.end(ExitStatus(ExitReason.KILLED))
    assert life.status is not None
    assert life.status.reason is ExitReason.SHUTDOWN
    with pytest.raises(StateError, match=r"stopped \(shutdown: by the guest\)"):
        life.move(VMState.RUNNING)


def test_a_created_vm_cannot_be_paused() -> None:
    with pytest.raises(StateError, match="created"):
        Lifecycle().move(VMState.PAUSED)


def _event(detail: str) -> Event:
    return Event(EventKind.STARTED, "vm", 0.0, detail)


async def test_every_subscriber_gets_every_event_and_an_end() -> None:
    stream = EventStream[Event]()
    first = stream.subscribe()
    stream.emit(_event("a"))
    late, from_start = stream.subscribe(), stream.subscribe(from_start=True)
    stream.emit(_event("b"))
    stream.end()
    assert [e.detail async for e in first] == ["a", "b"]
    assert [e.detail async for e in late] == ["b"]
    assert [e.detail async for e in from_start] == ["a", "b"]
    assert [e.detail async for e in stream.subscribe(from_start=True)] == ["a", "b"]


async def test_a_subscriber_that_does_not_read_costs_bounded_memory() -> None:
    stream = EventStream[Event]()
    sub = stream.subscribe()
    for i in range(LIMIT + 5):
        stream.emit(_event(str(i)))
    assert sub.lost == 5
    assert (await anext(sub)).detail == "5"


async def test_a_waiting_subscriber_wakes() -> None:
    stream = EventStream[Event]()
    waiting = asyncio.ensure_future(anext(stream.subscribe()))
    await asyncio.sleep(0)
    stream.emit(_event("x"))
    assert (await asyncio.wait_for(waiting, HANGS)).detail == "x"


async def test_a_failing_task_is_reported_and_its_siblings_live() -> None:
    errors: list[tuple[str, BaseException]] = []
    scope = TaskScope(lambda name, error: errors.append((name, error)))
    release = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no")

    sibling = scope.create(release.wait(), "sibling")
    await asyncio.wait([scope.create(fail(), "failing")])
    assert [(n, str(e)) for n, e in errors] == [("failing", "no")]
    assert not sibling.done()
    await scope.aclose()
    assert sibling.cancelled()
    with pytest.raises(StateError, match="too late"):
        scope.create(release.wait(), "late")


async def test_what_must_finish_does_so_before_the_cancellation_goes_on() -> None:
    go_on = asyncio.Event()
    steps: list[str] = []

    async def work() -> str:
        await go_on.wait()
        steps.append("done")
        return "result"

    task = asyncio.ensure_future(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["done"]
    assert await finish(work()) == "result"


async def test_an_error_of_what_must_finish_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(work())


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(HANGS)
        ended.set()

    task = asyncio.ensure_future(in_thread("test", work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_subscription_that_is_dropped_costs_nothing_more() -> None:
    stream = EventStream[Event]()
    for _ in range(100):
        stream.subscribe()
    gc.collect()
    assert not stream._subscriptions


async def test_nothing_comes_after_the_end() -> None:
    stream = EventStream[Event]()
    stream.emit(_event("a"))
    stream.end()
    stream.emit(_event("late"))
    assert [e.detail async for e in stream.subscribe(from_start=True)] == ["a"]
