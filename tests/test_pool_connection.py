"""The connection of a pool with a worker, which a guest may have taken over: it may say as much as it likes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from typing import Any

from aiovmm.pool.workers.connection import connect
from aiovmm.pool.workers.frames import FROM_WORKER, encode
from tests.limits import HANGS

COUNT = 30_000


def said(sock: socket.socket, data: bytes) -> threading.Thread:
    def say() -> None:
        with sock:
            sock.sendall(data)

    thread = threading.Thread(target=say)
    thread.start()
    return thread


async def test_a_flood_of_messages_leaves_the_loop_to_others() -> None:
    """256 KiB of them are 10,000, or 50 ms: few are heard in a turn of the loop, and all in the end, also if it goes then."""
    ours, theirs = socket.socketpair()
    turn, heard = 0, Counter[int]()

    def hear(message: Any, _data: bytes) -> None:
        assert message == {"op": "x", "n": heard.total()}
        heard[turn] += 1

    connection = await connect(ours, hear)
    saying = said(theirs, b"".join(encode({"op": "x", "n": n}) for n in range(COUNT)))
    async with asyncio.timeout(HANGS):
        while not connection.over.is_set():
            await asyncio.sleep(0)
            turn += 1
    saying.join()
    assert heard.total() == COUNT
    assert max(heard.values()) <= 64
    assert connection.error is None


async def test_what_comes_behind_what_is_none_is_not_heard() -> None:
    ours, theirs = socket.socketpair()
    heard = list[Any]()
    connection = await connect(ours, lambda message, data: heard.append(message["op"]))
    saying = said(theirs, encode({"op": "x"}) * 40 + b"\xff" * 8 + encode({"op": "y"}) * 40)
    async with asyncio.timeout(HANGS):
        await connection.over.wait()
    saying.join()
    assert heard == ["x"] * 40
    assert "a frame of" in str(connection.error)


async def test_an_abort_is_heard_at_once() -> None:
    ours, theirs = socket.socketpair()
    heard = list[Any]()

    def hear(message: Any, _data: bytes) -> None:
        heard.append(message)
        connection.abort()

    connection = await connect(ours, hear)
    theirs.sendall(encode({"op": "x"}) * 100)
    async with asyncio.timeout(HANGS):
        await connection.over.wait()
    theirs.close()
    assert len(heard) == 1


async def test_large_messages_are_heard_one_by_one() -> None:
    """Sixteen of 256 KiB would be several milliseconds for each turn of the loop."""
    ours, theirs = socket.socketpair()
    turn, heard = 0, Counter[int]()

    def hear(_message: Any, _data: bytes) -> None:
        heard[turn] += 1

    connection = await connect(ours, hear)
    saying = said(theirs, encode({"op": "x", "a": ["y" * 16] * 4000}, bound=FROM_WORKER) * 30)
    async with asyncio.timeout(HANGS):
        while not connection.over.is_set():
            await asyncio.sleep(0)
            turn += 1
    saying.join()
    assert heard.total() == 30
    assert max(heard.values()) == 1
    assert connection.error is None


async def test_what_trips_us_up_ends_the_connection_and_is_told() -> None:
    """Else nobody would hear it any more, and it would live on."""
    ours, theirs = socket.socketpair()
    told = list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def hear(_message: Any, _data: bytes) -> None:
        raise RecursionError("so deep")

    connection = await connect(ours, hear)
    theirs.sendall(encode({"op": "x"}))
    async with asyncio.timeout(HANGS):
        await connection.over.wait()
    theirs.close()
    assert "so deep" in str(connection.error)
    assert [type(error) for error in told] == [RecursionError]
