"""The simulator of the guest's side is strict with the device, and leaves no memory behind."""

from __future__ import annotations

import pytest

from aiovmm.errors import UsageError
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.testing import Harness
from aiovmm.virtqueue import Queue, VirtioDevice
from aiovmm.virtqueue.driver import Arena
from aiovmm.virtqueue.features import VERSION_1
from tests.virtqueue.pair import RingPair


def test_a_head_that_was_never_offered_is_an_error(memory: GuestMemory) -> None:
    pair = RingPair(memory)
    first = pair.driver.add([b"x", b"y"])
    pair.driver.add([b"z"])
    pair.pop()
    lib.avmm_queue_push_one(pair.queue, first + 1, 0)  # the second descriptor of the first chain
    with pytest.raises(UsageError, match="not outstanding"):
        pair.driver.poll()


def test_a_full_ring_is_an_error_and_empties_again(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=4)
    pair.driver.add([b"a", b"b", b"c"])
    with pytest.raises(UsageError, match="2 descriptors wanted, 1 are free"):
        pair.driver.add([b"d"], [1])
    assert pair.driver.outstanding == 1
    (chain,) = pair.pop()
    pair.push(chain)
    pair.driver.poll()
    assert pair.driver.outstanding == 0
    assert len(pair.driver.free) == 4


def test_buffers_are_used_again(memory: GuestMemory) -> None:
    pair = RingPair(memory)
    for _ in range(5000):  # 20 MB in all, of 1 MB
        pair.driver.add([b"x" * 2000], [2000], indirect=True)
        (chain,) = pair.pop()
        pair.push(chain)
        pair.driver.poll()


def test_an_arena_has_an_end() -> None:
    arena = Arena(0x1001, 0x100)
    assert arena.take(16) == 0x1010
    with pytest.raises(UsageError):
        arena.take(0x100)


def test_shapes_that_cannot_be_are_refused(memory: GuestMemory) -> None:
    pair = RingPair(memory, features=VERSION_1)
    with pytest.raises(UsageError):
        pair.driver.add()
    with pytest.raises(UsageError):
        pair.driver.add([b"x"], indirect=True)
    with pytest.raises(UsageError):
        RingPair(memory).driver.add([b"x"], indirect=True, direct=1)


class Silent(VirtioDevice):
    device_id = 42
    queue_sizes = (8,)
    features = 1

    async def run(self, queues: list[Queue], features: int) -> None:
        async for chain in queues[0]:
            if features & 1:
                queues[0].push(chain)

    def accepts(self, features: int) -> bool:
        return not features & 2


async def test_a_device_that_does_not_answer_is_a_timeout() -> None:
    async with Harness(Silent(), features=VERSION_1) as h:
        with pytest.raises(TimeoutError):
            await h.request(0, [b"x"], timeout=0.05)
        with pytest.raises(TimeoutError):
            await h.broken(timeout=0.05)


async def test_features_that_the_device_refuses_are_told() -> None:
    with pytest.raises(UsageError, match="refuses"):
        async with Harness(Silent(), features=VERSION_1 | 2):
            pass


async def test_an_error_that_the_test_did_not_look_for_is_raised_at_the_end() -> None:
    class Wrong(Silent):
        async def run(self, queues: list[Queue], features: int) -> None:
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        async with Harness(Wrong()) as h:
            await h.config_irq.wait()
