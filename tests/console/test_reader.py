from __future__ import annotations

import asyncio
import re
from asyncio import IncompleteReadError
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console import Console, ConsoleReader
from aiovmm.console.ring import HistoryRing
from aiovmm.errors import ConsoleEnded, ExpectTimeout, StateError, UsageError
from tests.limits import HANGS


def console_with(output: bytes, history: int = 1 << 20, ended: bool = False) -> Console:
    console = Console(history=history)
    console.feed(output)
    if ended:
        console.close()
    return console


async def after_waiting(console: Console, wait: Awaitable[bytes], *pieces: bytes) -> bytes:
    """The result of `wait`, which must need all of `pieces`."""
    task = asyncio.ensure_future(wait)
    for piece in pieces:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        console.feed(piece)
    return await asyncio.wait_for(task, HANGS)


async def test_reading_waits_for_output() -> None:
    console = Console()
    assert await after_waiting(console, console.read(3), b"hello") == b"hel"
    assert await console.read() == b"lo"
    assert await console.read(0) == b""
    assert await after_waiting(console, console.readexactly(4), b"ab", b"cdef") == b"abcd"
    assert await after_waiting(console, console.readuntil(b"--"), b"gh-", b"-ij") == b"efgh--"
    assert await after_waiting(console, console.readline(), b"kl", b"\nrest") == b"ijkl\n"
    assert console.unread == b"rest"


async def test_the_end_gives_what_is_left_and_then_nothing() -> None:
    assert await console_with(b"left", ended=True).readline() == b"left"
    with pytest.raises(IncompleteReadError) as caught:
        await console_with(b"left", ended=True).readexactly(5)
    assert caught.value.partial == b"left"
    console = console_with(b"left", ended=True)
    with pytest.raises(IncompleteReadError) as caught:
        await console.readuntil(b"\n")
    assert caught.value.partial == b"left"
    assert console.at_eof()
    assert await console.read() == await console.readline() == b""
    assert [chunk async for chunk in console] == []


async def test_the_end_wakes_who_waits() -> None:
    console = Console()
    task = asyncio.create_task(console.read())
    await asyncio.sleep(0)
    console.close()
    assert await asyncio.wait_for(task, HANGS) == b""


async def test_iterating_over_pieces_and_lines() -> None:
    console = console_with(b"one\ntwo\nthr", ended=True)
    assert [line async for line in console.reader().lines()] == [b"one\n", b"two\n", b"thr"]
    assert b"".join([chunk async for chunk in console]) == b"one\ntwo\nthr"


async def test_expect_moves_behind_the_match() -> None:
    console = console_with(b"Debian GNU/Linux 12\r\nlogin: extra")
    match = await console.expect(rb"Linux (\d+)")
    assert match[1] == b"12"
    match = await console.expect([rb"panic", re.compile(rb"login: ")])
    assert match.re.pattern == rb"login: "
    assert console.unread == b"extra"
    assert (await console.expect([b"ra", b"ex"])).group() == b"ex"


async def test_expect_waits_for_the_pieces_of_a_match() -> None:
    console = Console()

    async def matched() -> bytes:
        return (await console.expect(rb"log.n: ", timeout=HANGS)).group()

    assert await after_waiting(console, matched(), b"\r\nlo", b"gin", b": ") == b"login: "


async def test_expect_that_times_out_shows_what_arrived_and_leaves_it() -> None:
    console = console_with(b"kernel panic")
    with pytest.raises(ExpectTimeout, match="kernel panic") as caught:
        await console.expect(rb"login: ", timeout=0.01)
    assert (caught.value.pattern, caught.value.received) == (b"login: ", b"kernel panic")
    assert (await console.expect(b"panic", timeout=0)).group() == b"panic"


@pytest.mark.parametrize("ended", [False, True])
async def test_expect_fails_at_once_when_the_guest_is_gone(ended: bool) -> None:
    console = console_with(b"last words", ended=ended)
    task = asyncio.create_task(console.expect(rb"login: ", timeout=None))
    await asyncio.sleep(0)
    console.close()
    with pytest.raises(ConsoleEnded, match=r"login: .*last words") as caught:
        await asyncio.wait_for(task, HANGS)
    assert caught.value.received == b"last words"
    assert (await console.expect(b"words")).group() == b"words"


WAITS: list[Callable[[ConsoleReader], Awaitable[object]]] = [
    lambda reader: reader.readexactly(100),
    lambda reader: reader.readuntil(b"never"),
    lambda reader: reader.readline(),
    lambda reader: reader.expect(b"never"),
    lambda reader: anext(reader.lines()),
]


@pytest.mark.parametrize("wait", WAITS)
async def test_cancelling_a_wait_leaves_the_output_to_be_read(wait: Callable[..., Awaitable[object]]) -> None:
    console = console_with(b"before")
    reader = console.reader()
    task = asyncio.ensure_future(wait(reader))
    await asyncio.sleep(0)
    console.feed(b"+after")
    await asyncio.sleep(0)
    task.cancel()
    console.feed(b"+late")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reader.read() == b"before+after+late"
    assert reader.lost == 0


async def test_a_read_cancelled_as_output_comes_loses_none() -> None:
    console = Console()
    task = asyncio.create_task(console.read())
    await asyncio.sleep(0)
    console.feed(b"x")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await console.read() == b"x"


async def test_two_tasks_cannot_wait_on_one_reader() -> None:
    console = Console()
    task = asyncio.create_task(console.read())
    await asyncio.sleep(0)
    with pytest.raises(StateError, match=r"Console\.reader\(\)"):
        await console.readline()
    assert await after_waiting(console, console.reader().read(), b"x") == b"x"
    assert await task == b"x"


async def test_a_reader_from_now_on_sees_no_history() -> None:
    console = console_with(b"old")
    now, late = console.reader(from_history=False), console.reader()
    console.feed(b"new")
    assert await now.read() == b"new"
    assert await late.read() == await console.read() == b"oldnew"


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    console = console_with(b"0123456789", history=8)
    assert (console.history, console.history_lost, console.lost) == (b"23456789", 2, 2)
    fast, slow = console.reader(), console.reader()
    assert fast.lost == 0
    await fast.read()
    console.feed(b"abcd")
    assert (await slow.read(), slow.lost) == (b"6789abcd", 4)
    assert (await fast.read(), fast.lost) == (b"abcd", 0)
    assert console.lost == 6


async def test_a_hostile_line_and_a_slow_pattern_leave_the_loop_to_others() -> None:
    """`.*x` takes time with the square of the line's length, here 64 KiB: it is searched in steps, others run between."""
    console = console_with(b"a" * (64 << 10))
    task = asyncio.create_task(console.expect(rb".*login: ", timeout=None))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 4:
            assert not task.done()
            console.feed(b"login: ")
    assert turns > 4
    assert (await task).group().endswith(b"alogin: ")


async def lines_of(console: Console) -> int:
    return sum([1 async for _ in console.lines()])


async def lines_expected(console: Console) -> int:
    lines = 0
    while not console.at_eof():
        await console.expect(b"\n")
        lines += 1
    return lines


@pytest.mark.parametrize("count", [lines_of, lines_expected])
async def test_one_who_takes_a_flood_of_short_lines_apart_leaves_the_loop_to_others(
    count: Callable[[Console], Awaitable[int]],
) -> None:
    """Each is there at once: the guest has printed them in less time than it takes to look at the first ones."""
    console = console_with(b"\n" * 20_000, ended=True)
    task = asyncio.ensure_future(count(console))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert await task == 20_000
    assert turns > 20


async def test_a_line_costs_its_length_and_not_all_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest prints a MiB of short lines: to copy what is left of it for each takes minutes."""
    console, copied, read = console_with(b"short\n" * 100_000), 0, HistoryRing.read

    def counted(ring: HistoryRing, offset: int, size: int | None = None) -> bytes:
        nonlocal copied
        data = read(ring, offset, size)
        copied += len(data)
        return data

    monkeypatch.setattr(HistoryRing, "read", counted)
    for _ in range(100):
        assert await console.readline() == b"short\n"
    assert copied < 100 * 10_000


@pytest.mark.parametrize("before", [0, 8190, 8191, 8192, 8193, 16_384, 100_000])
async def test_a_separator_is_found_wherever_it_lies(before: int) -> None:
    console = console_with(b"x" * before + b"-=-rest-=-")
    assert len(await console.readuntil(b"-=-")) == before + 3
    reader = console.reader()
    reader.close()
    console.feed(b"-=-")
    assert await reader.readuntil(b"rest") == b"x" * before + b"-=-rest"
    with pytest.raises(IncompleteReadError):
        await reader.readuntil(b"-=--=-")


async def test_expect_goes_on_over_what_was_lost() -> None:
    console = console_with(b"xxxx", history=8)
    task = asyncio.create_task(console.expect(rb"[a-z]+\."))
    await asyncio.sleep(0)
    console.feed(b"x" * 50)
    console.feed(b"end.")
    assert (await asyncio.wait_for(task, HANGS)).group() == b"xxxxend."
    assert console.lost == 50


async def test_a_line_longer_than_the_history_comes_shortened() -> None:
    console = Console(history=8)
    task = asyncio.create_task(console.readline())
    for _ in range(5):
        await asyncio.sleep(0)
        console.feed(b"123456")
    console.feed(b"\n")
    assert await asyncio.wait_for(task, HANGS) == b"6123456\n"
    assert console.lost == 23


async def test_a_closed_reader_ends_where_the_output_was() -> None:
    console = console_with(b"before")
    reader = console.reader()
    reader.close()
    console.feed(b"after\n")
    assert (reader.unread, reader.at_eof()) == (b"before", False)
    assert await reader.readline() == b"before"
    assert await reader.read() == b""
    assert reader.at_eof()
    waiting = console.reader(from_history=False)
    task = asyncio.create_task(waiting.read())
    await asyncio.sleep(0)
    waiting.close()
    assert await asyncio.wait_for(task, HANGS) == b""


async def test_a_closed_reader_that_was_overrun_just_ends() -> None:
    console = console_with(b"before", history=8)
    reader = console.reader()
    reader.close()
    console.feed(b"much more than the ring")
    assert await reader.readline() == b""
    with pytest.raises(ConsoleEnded):
        await reader.expect(b"more")


async def test_sizes_that_cannot_be_are_refused() -> None:
    console = Console(history=8)
    with pytest.raises(UsageError):
        await console.read(-1)
    for size in (-1, 9):
        with pytest.raises(UsageError):
            await console.readexactly(size)


@given(
    history=st.integers(1, 20),
    steps=st.lists(st.one_of(st.binary(max_size=30), st.tuples(st.integers(0, 1), st.integers(1, 30))), max_size=40),
)
def test_readers_see_the_output_in_order_less_what_they_are_told(
    history: int, steps: list[bytes | tuple[int, int]]
) -> None:
    """Two readers at their own pace: what each has read and lost is the output, and nothing else."""

    async def run() -> None:
        console, everything = Console(history=history), b""
        readers, read = [console.reader(), console.reader()], [0, 0]
        for step in steps:
            if isinstance(step, bytes):
                console.feed(step)
                everything += step
                continue
            which, size = step
            reader = readers[which]
            if reader.unread:
                data = await reader.read(size)
                read[which] += len(data)
                assert 0 < len(data) <= min(size, history)
                assert data == everything[reader.position - len(data) : reader.position]
        for reader, total in zip(readers, read, strict=True):
            assert reader.unread == everything[reader.position :]
            assert reader.position == total + reader.lost

    asyncio.run(run())
