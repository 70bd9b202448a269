"""A few threads of one's own: as many as are needed, each call once, and what goes wrong is its caller's."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

import pytest

from aiovmm.runtime.hands import Hands
from tests.limits import HANGS

ROOT = Path(__file__).resolve().parent.parent


def test_calls_are_made_in_as_many_threads_as_there_may_be_and_each_is_made_once() -> None:
    hands, together, made = Hands(3, "test"), threading.Barrier(3), list[int]()
    for waiting in [hands.submit(together.wait, 20) for _ in range(3)]:
        waiting.result(HANGS)
    for done in [hands.submit(made.append, number) for number in range(500)]:
        done.result(HANGS)
    hands.shutdown()
    assert sorted(made) == list(range(500))


def test_one_thread_makes_calls_in_order_and_what_was_asked_for_is_done_at_the_end() -> None:
    hands, go, made = Hands(1, "test"), threading.Event(), list[int]()
    hands.submit(go.wait, 20)
    for number in range(100):
        hands.submit(made.append, number)
    assert hands.waiting >= 99
    hands.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="ended"):
        hands.submit(made.append, -1)
    go.set()
    hands.shutdown()
    assert made == list(range(100))


def test_a_thread_that_waits_is_used_again() -> None:
    hands = Hands(4, "test")
    assert len({hands.submit(threading.get_ident).result(HANGS) for _ in range(50)}) <= 2, "one may not be back yet"
    assert {hands.submit(lambda: threading.current_thread().name).result(HANGS)} <= {"test_0", "test_1"}
    hands.shutdown()


def test_what_a_call_raises_is_its_callers() -> None:
    hands = Hands(1, "test")
    with pytest.raises(ZeroDivisionError):
        hands.submit(lambda: 1 // 0).result(HANGS)
    assert hands.submit(lambda: 3).result(HANGS) == 3
    hands.shutdown()


def test_what_failed_is_let_go_of_with_its_outcome() -> None:
    """No collector is needed for that, which may not run for long: a disk's request refers to its guest's memory."""

    class Memory:
        pass

    def fails(memory: Memory) -> None:
        raise OSError(memory)

    hands, memory = Hands(1, "test"), Memory()
    held = weakref.ref(memory)
    gc.collect()
    gc.disable()
    try:
        outcome = hands.submit(fails, memory)
        assert isinstance(outcome.exception(HANGS), OSError)
        hands.shutdown()
        del outcome, memory
        assert held() is None
    finally:
        gc.enable()


def test_where_threads_cannot_begin_their_calls_say_so() -> None:
    def begin() -> None:
        raise OSError("no such processor")

    hands = Hands(1, "test", begin)
    for _ in range(2):
        with pytest.raises(OSError, match="no such processor"):
            hands.submit(lambda: 3).result(HANGS)
    hands.shutdown()


def test_a_call_that_was_cancelled_is_not_made() -> None:
    hands, go, made = Hands(1, "test"), threading.Event(), list[int]()
    hands.submit(go.wait, 20)
    later: Future[None] = hands.submit(made.append, 1)
    assert later.cancel()
    go.set()
    hands.shutdown()
    assert made == []


def test_a_call_that_never_ends_does_not_keep_the_process() -> None:
    program = (
        "import threading; from aiovmm.runtime.hands import Hands; Hands(1, 'test').submit(threading.Event().wait)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False).returncode == 0
