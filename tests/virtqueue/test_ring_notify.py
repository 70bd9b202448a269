"""Kicks and interrupts are asked for and suppressed as VIRTIO 1.2 §2.7.6, §2.7.7 and §2.7.10 say, and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from tests.virtqueue.pair import RingPair

FLAGS_ONLY = VERSION_1 | INDIRECT_DESC
BOTH = pytest.mark.parametrize("features", [FLAGS_ONLY, FLAGS_ONLY | EVENT_IDX], ids=["flags", "event_idx"])


def serve(pair: RingPair) -> int:
    chains = pair.pop()
    for chain in chains:
        pair.push(chain)
    return len(chains)


@BOTH
def test_a_device_that_waits_is_kicked_once(memory: GuestMemory, features: int) -> None:
    pair = RingPair(memory, features=features)
    assert not lib.avmm_queue_enable_notify(pair.queue)
    pair.driver.add([b"x"])
    assert pair.driver.kick()
    lib.avmm_queue_disable_notify(pair.queue)
    pair.driver.add([b"x"])
    assert not pair.driver.kick()


@BOTH
def test_a_chain_that_comes_before_the_wait_is_seen_by_it(memory: GuestMemory, features: int) -> None:
    pair = RingPair(memory, features=features)
    lib.avmm_queue_disable_notify(pair.queue)
    pair.driver.add([b"x"])
    assert lib.avmm_queue_enable_notify(pair.queue)


@BOTH
def test_a_driver_that_waits_is_interrupted_once(memory: GuestMemory, features: int) -> None:
    pair = RingPair(memory, features=features)
    for _ in range(3):
        pair.driver.add([b"x"])
    assert pair.driver.enable_interrupts()
    serve(pair)
    assert pair.needs_interrupt()
    assert not pair.needs_interrupt()  # nothing new


@BOTH
def test_a_driver_that_polls_is_left_alone(memory: GuestMemory, features: int) -> None:
    pair = RingPair(memory, features=features)
    pair.driver.add([b"x"])
    pair.driver.enable_interrupts()
    serve(pair)
    assert pair.needs_interrupt()
    pair.driver.disable_interrupts()
    for _ in range(5):
        pair.driver.poll()
        pair.driver.add([b"x"])
        serve(pair)
        assert not pair.needs_interrupt()


def test_the_driver_may_ask_for_an_interrupt_further_on(memory: GuestMemory) -> None:
    """used_event: only when that many more have been used (Linux's delayed callbacks)."""
    pair = RingPair(memory)
    for _ in range(4):
        pair.driver.add([b"x"])
    lib.avmm_store16(memory.host_address(pair.driver.avail, 64) + 4 + 2 * 16, 2)
    verdicts = []
    for chain in pair.pop():
        pair.push(chain)
        verdicts.append(pair.needs_interrupt())
    assert verdicts == [False, False, True, False]


def test_a_resumed_queue_interrupts_once_to_be_safe(memory: GuestMemory) -> None:
    pair = RingPair(memory, start=100)
    assert pair.needs_interrupt()
    assert not pair.needs_interrupt()


def test_an_interrupt_that_65536_chains_waited_for_is_given(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=32)
    pair.driver.enable_interrupts()
    for _ in range(65536 // 32):
        for _ in range(32):
            pair.driver.add([b"x"])
        serve(pair)
        pair.driver.poll()
    assert pair.needs_interrupt()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([0, 65530, 32765]),
    event_idx=st.booleans(),
    steps=st.lists(st.sampled_from(["add", "kick", "serve", "sleep", "interrupt", "poll", "arm"]), max_size=60),
)
def test_nobody_sleeps_while_there_is_work(memory: GuestMemory, start: int, event_idx: bool, steps: list[str]) -> None:
    """A side that went to sleep after asking to be woken is woken by the first step of the other that gives it work."""
    pair = RingPair(memory, size=8, features=FLAGS_ONLY | (EVENT_IDX if event_idx else 0), start=start)
    pair.needs_interrupt()
    device_sleeps = driver_sleeps = False
    unkicked = untold = 0  # chains that came since the other side went to sleep
    for step in steps:
        if step == "add" and pair.driver.free:
            pair.driver.add([b"x"])
            unkicked += 1
        elif step == "kick":
            rung = pair.driver.kick()
            assert rung or not (device_sleeps and unkicked)
            unkicked = 0
            if rung:
                device_sleeps = False
                lib.avmm_queue_disable_notify(pair.queue)
        elif step == "serve" and not device_sleeps:
            untold += serve(pair)
        elif step == "sleep" and not device_sleeps:
            device_sleeps = not lib.avmm_queue_enable_notify(pair.queue)
            unkicked = 0
        elif step == "interrupt":
            raised = pair.needs_interrupt()
            assert raised or not (driver_sleeps and untold)
            untold = 0
            if raised:
                driver_sleeps = False
                pair.driver.disable_interrupts()
        elif step == "poll" and not driver_sleeps:
            pair.driver.poll()
        elif step == "arm" and not driver_sleeps:
            driver_sleeps = pair.driver.enable_interrupts()
            untold = 0
