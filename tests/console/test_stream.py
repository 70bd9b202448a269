"""The console as a whole: its two sides, what it costs, and what a cancelled await leaves behind."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from aiovmm.console import Console
from aiovmm.console.input import HIGH_WATER, INPUT_LIMIT
from aiovmm.errors import ConsoleEnded, StateError, UsageError
from tests.console.device import StubDevice
from tests.limits import HANGS


async def test_talking_to_a_guest() -> None:
    class Guest(StubDevice):
        def receive(self, data: bytes) -> int:
            console.feed(data.replace(b"\n", b"\r\n") + b"# ")
            return super().receive(data)

    console = Console(Guest(), name="serial")
    console.feed(b"login: ")
    await console.expect(rb"login: $", timeout=HANGS)
    console.write(b"root\n")
    await console.drain()
    await console.expect(rb"root\r\n# ", timeout=HANGS)
    await console.send(b"uname\n")
    assert await console.readuntil(b"# ") == b"uname\r\n# "
    assert console.history == b"login: root\r\n# uname\r\n# "
    assert repr(console) == "<Console serial open, 24 bytes out, 0 waiting to go in>"


async def test_the_end() -> None:
    console = Console(StubDevice())
    waiting = asyncio.create_task(console.wait_closed())
    console.feed(b"last")
    console.close()
    console.close()
    console.feed(b"never")
    await asyncio.wait_for(waiting, HANGS)
    assert console.closed
    assert not console.at_eof()
    assert await console.read() == b"last"
    assert console.at_eof()
    for write in (console.drain, lambda: console.send(b"x")):
        with pytest.raises(ConsoleEnded):
            await write()
    with pytest.raises(ConsoleEnded):
        console.write(b"x")
    assert console.history == b"last"


async def test_eight_megabytes_while_every_reader_is_stalled() -> None:
    console = Console(StubDevice())
    readers = [console.reader() for _ in range(100)]
    waiting = asyncio.create_task(console.expect(b"never", timeout=None))
    await asyncio.sleep(0)
    piece = bytes(range(256)) * 16
    tracemalloc.start()
    try:
        for _ in range(2048):
            console.feed(piece)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (1 << 20) * 1.25
    assert held < (1 << 20) * 1.25
    assert (len(console.history), console.history_lost) == (1 << 20, 7 << 20)
    assert console.history == piece * 256
    assert [reader.lost for reader in readers] == [7 << 20] * 100
    waiting.cancel()


async def test_a_hundred_megabytes_offered_to_a_guest_that_does_not_read() -> None:
    console = Console(StubDevice(room=0))
    offered = bytes(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(StateError):
            console.write(offered)
        sending = asyncio.create_task(console.send(offered))
        for _ in range(100):
            await asyncio.sleep(0)
        with pytest.raises(StateError):  # noqa: PT012
            while True:
                console.write(bytes(4096))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert INPUT_LIMIT - 4096 < console.input_waiting <= INPUT_LIMIT
    assert peak < 2 * INPUT_LIMIT
    console.feed(b"alive")
    assert await console.read() == b"alive"
    sending.cancel()


Wait = Callable[[Console], Awaitable[object]]
WAITS: list[tuple[Wait, bytes]] = [
    (lambda console: console.read(), b"abc"),
    (lambda console: console.readexactly(12), b"abcdefghij\nk"),
    (lambda console: console.readline(), b"abcdefghij\n"),
    (lambda console: console.readuntil(b"hi"), b"abcdefghi"),
    (lambda console: console.expect(rb"g.i"), b"abcdefghi"),
]


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize(("wait", "consumed"), WAITS)
async def test_a_wait_cancelled_at_any_step_has_read_all_or_nothing(wait: Wait, consumed: bytes, steps: int) -> None:
    console = Console(StubDevice())
    output = [b"abc", b"def", b"ghi", b"j\n", b"klm"]
    task = asyncio.ensure_future(wait(console))
    for step in range(steps):
        if step % 2 and output:
            console.feed(output.pop(0))
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    for piece in output:
        console.feed(piece)
    rest = b"abcdefghij\nklm" if task.cancelled() else b"abcdefghij\nklm".removeprefix(consumed)
    assert await console.read() == rest


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_send_has_sent_a_beginning(steps: int) -> None:
    device = StubDevice(room=0)
    console = Console(device)
    data = bytes(range(256)) * 1024
    task = asyncio.create_task(console.send(data))
    for _ in range(steps):
        await asyncio.sleep(0)
        device.make_room(HIGH_WATER - 1000)
    task.cancel()
    await asyncio.wait([task])
    device.make_room(len(data))
    assert data.startswith(device.received)
    console.write(b"next")
    device.make_room(100)
    assert device.received.endswith(b"next")
    assert console.input_waiting == 0


async def test_a_new_device_takes_over() -> None:
    old, new = StubDevice(room=0), StubDevice()
    console = Console(old)
    console.resize(80, 24)
    console.write(b"typed during the reboot")
    console.connect(new)
    assert new.received == b"typed during the reboot"
    assert new.sizes == [(80, 24)]
    old.make_room(100)
    assert old.received == b""


async def test_a_device_that_takes_all_is_given_large_pieces() -> None:
    sizes: list[int] = []

    class Greedy(StubDevice):
        def receive(self, data: bytes) -> int:
            sizes.append(len(data))
            return len(data)

    await Console(Greedy()).send(bytes(60 << 10))
    assert sum(sizes) == 60 << 10
    assert len(sizes) <= 5


async def test_what_one_console_says_is_said_at_another_to_the_last_byte() -> None:
    source, target = Console(), Console()
    source.feed(b"before ")
    source.copy_to(target)
    source.feed(b"hvc0 ")
    target.feed(b"ttyS0 ")
    source.feed(b"last")
    source.close()
    assert target.history == b"hvc0 ttyS0 last"
    assert source.history == b"before hvc0 last"


async def test_what_is_no_bytes_is_refused_before_anything_is_taken() -> None:
    console = Console()
    for wrong in ("uname", 5, None, ["a"]):
        with pytest.raises(UsageError, match=f"takes bytes, not {type(wrong).__name__}"):
            console.write(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"takes bytes, not {type(wrong).__name__}"):
            await console.send(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"b'uname', or .encode\(\)"):
        console.write("uname")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="speaks bytes"):
        await console.readuntil("x")  # type: ignore[arg-type]
    assert console.input_waiting == 0


@pytest.mark.parametrize("timeout", [float("nan"), "5", True])
async def test_a_time_out_that_is_none_is_refused(timeout: float) -> None:
    """NaN would never come."""
    with pytest.raises(UsageError, match="is not a number of seconds"):
        await asyncio.wait_for(Console().expect(rb"x", timeout), HANGS)
