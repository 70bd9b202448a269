"""The smallest device of one's own: it answers every chain with its readable bytes, upside down."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.errors import ChainError, StateError
from aiovmm.testing import Harness
from aiovmm.virtqueue import Queue, VirtioDevice
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, RING_FEATURES, VERSION_1


class Echo(VirtioDevice):
    device_id = 42
    name = "echo"
    queue_sizes = (16,)

    async def run(self, queues: list[Queue], features: int) -> None:
        async for chain in queues[0]:
            chain.write(chain.read_all()[::-1])
            queues[0].push(chain)


async def test_a_request_is_answered() -> None:
    async with Harness(Echo()) as h:
        assert await h.request(0, [b"hello ", b"world"], [3, 60]) == b"dlrow olleh"


@pytest.mark.parametrize("indirect", [False, True])
async def test_many_requests_in_turn(indirect: bool) -> None:
    async with Harness(Echo()) as h:
        for i in range(200):
            text = b"%d" % i
            assert await h.request(0, [text], [8], indirect=indirect) == text[::-1]


async def test_an_answer_that_does_not_fit_breaks_the_device_and_nothing_else() -> None:
    async with Harness(Echo()) as h:
        h.queues[0].add([b"too long"], [4])
        h.queues[0].kick()
        assert isinstance(await h.broken(), ChainError)
        await h.reset()
        await h.start()
        assert await h.request(0, [b"again"], [5]) == b"niaga"


async def test_a_request_to_a_device_that_breaks_raises_its_error() -> None:
    async with Harness(Echo()) as h:
        with pytest.raises(ChainError, match="room for 1"):
            await h.request(0, [b"too long"], [1])
        with pytest.raises(StateError):
            await h.request(0, [b"x"], [1])


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(st.tuples(st.lists(st.binary(max_size=50), max_size=4), st.booleans()), min_size=1, max_size=40),
    features=st.sampled_from([VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | INDIRECT_DESC, RING_FEATURES]),
    start=st.sampled_from([0, 65530]),
    seed=st.integers(0, 1 << 20),
)
async def test_requests_of_every_shape_overlapping_in_time(
    requests: list[tuple[list[bytes], bool]], features: int, start: int, seed: int
) -> None:
    rand = random.Random(seed)
    async with Harness(Echo(), features=features, start=start, shuffle=rand) as h:
        q = h.queues[0]
        expected: dict[int, bytes] = {}

        async def reap(count: int) -> None:
            q.kick()
            for used in await q.used(count):
                assert used.data == expected.pop(used.head)

        for parts, indirect in requests:
            indirect = indirect and bool(features & INDIRECT_DESC)
            text = b"".join(parts)
            writable = [rand.randint(0, len(text)), len(text)]
            while len(q.free) < (1 if indirect else len(parts) + 2):
                await reap(1)
            expected[q.add(parts, writable, indirect=indirect)] = text[::-1]
            if rand.random() < 0.5:
                q.kick()
        await reap(q.outstanding)
        assert not expected
