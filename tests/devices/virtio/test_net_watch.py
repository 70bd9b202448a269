"""A descriptor served by a plain function, from the loop's callbacks."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from aiovmm.devices.virtio.net.watch import FdWatch
from aiovmm.virtqueue.serving import Next
from tests.devices.virtio.net_guest import until
from tests.limits import HANGS

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


class Reader:
    """Takes at most `most` messages a turn."""

    def __init__(self, sock: socket.socket, most: int = 4) -> None:
        self.sock = sock
        self.most = most
        self.turns = 0
        self.seen: list[bytes] = []

    def __call__(self) -> Next:
        self.turns += 1
        for _ in range(self.most):
            try:
                data = self.sock.recv(100)
            except BlockingIOError:
                return Next.KICK
            self.seen.append(data)
            if data == b"return":
                return Next.RETURN
            if data == b"raise":
                raise OSError("a test")
        return Next.TURN


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0.001)


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_input_is_a_turn_and_nothing_else_is(pair: Pair) -> None:
    reader, watch = Reader(pair[0]), FdWatch(pair[0].fileno())
    task = asyncio.create_task(watch.serve(reader))
    await rest()
    assert reader.turns == 1
    for number in range(3):
        pair[1].send(b"%d" % number)
        await rest()
        assert reader.turns == 2 + number
    assert reader.seen == [b"0", b"1", b"2"]
    await stopped(task)
    watch.close()


async def test_what_is_more_than_a_turn_leaves_the_loop_its_own(pair: Pair) -> None:
    for _ in range(20):
        pair[1].send(b"x")
    reader, watch = Reader(pair[0], 1), FdWatch(pair[0].fileno())
    task = asyncio.create_task(watch.serve(reader))
    for number in range(1, 10):
        await asyncio.sleep(0)
        assert number - 1 <= len(reader.seen) <= 2 * number
    await until(lambda: len(reader.seen) == 20)
    await stopped(task)
    watch.close()


async def test_a_turn_returns_and_the_next_one_is_at_once(pair: Pair) -> None:
    reader, watch = Reader(pair[0]), FdWatch(pair[0].fileno())
    for message in (b"return", b"1", b"return", b"2"):
        pair[1].send(message)
    await asyncio.wait_for(watch.serve(reader), HANGS)
    await asyncio.wait_for(watch.serve(reader), HANGS)
    assert reader.seen == [b"return", b"1", b"return"]
    task = asyncio.create_task(watch.serve(reader))
    await rest()
    pair[1].send(b"return")
    await asyncio.wait_for(task, HANGS)
    watch.close()


async def test_what_a_turn_raises_is_raised(pair: Pair) -> None:
    reader, watch = Reader(pair[0]), FdWatch(pair[0].fileno())
    pair[1].send(b"raise")
    with pytest.raises(OSError, match="a test"):
        await watch.serve(reader)
    task = asyncio.create_task(watch.serve(reader))
    await rest()
    pair[1].send(b"raise")
    with pytest.raises(OSError, match="a test"):
        await asyncio.wait_for(task, HANGS)
    watch.close()


async def test_input_that_nobody_takes_wakes_nobody(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    awake = FdWatch._on_readable

    def count(watch: FdWatch) -> None:
        nonlocal wakes
        wakes += 1
        awake(watch)

    monkeypatch.setattr(FdWatch, "_on_readable", count)
    reader, watch = Reader(pair[0]), FdWatch(pair[0].fileno())
    task = asyncio.create_task(watch.serve(reader))
    await rest()
    watch.ignore()  # as one who waits for something else
    pair[1].send(b"1")
    await rest()
    assert wakes == 0
    await stopped(task)
    task = asyncio.create_task(watch.serve(reader))
    await rest()
    assert reader.seen == [b"1"]
    await stopped(task)
    pair[1].send(b"2")
    await rest()
    assert wakes < 3
    assert reader.seen == [b"1"]
    watch.close()


async def test_a_cancellation_ends_turns_that_are_due(pair: Pair) -> None:
    reader, watch = Reader(pair[0], 1), FdWatch(pair[0].fileno())
    for _ in range(20):
        pair[1].send(b"x")
    task = asyncio.create_task(watch.serve(reader))
    await asyncio.sleep(0)
    await stopped(task)
    turns = reader.turns
    assert turns < 5
    await rest()
    assert reader.turns == turns
    watch.close()


async def test_nothing_is_watched_once_it_is_closed(pair: Pair) -> None:
    watch = FdWatch(pair[0].fileno())
    task = asyncio.create_task(watch.serve(Reader(pair[0])))
    await rest()
    await stopped(task)
    watch.close()
    watch.close()
    assert not asyncio.get_running_loop().remove_reader(pair[0].fileno())


async def test_a_descriptor_that_cannot_be_watched_is_an_error_of_who_serves_it() -> None:
    fd = os.open("/proc/self/exe", os.O_RDONLY)
    watch = FdWatch(fd)
    with pytest.raises(OSError):
        await asyncio.wait_for(watch.serve(lambda: Next.KICK), HANGS)
    watch.close()
    os.close(fd)
