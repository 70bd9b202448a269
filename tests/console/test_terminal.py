from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import termios
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest

from aiovmm.console import AttachEnd, Console, Terminal, modes
from aiovmm.console.input import HIGH_WATER
from aiovmm.errors import UsageError
from aiovmm.runtime.awake import awake_timeout
from tests.console.device import StubDevice
from tests.console.screen import Screen, eventually, screen_of
from tests.limits import HANGS


@pytest.fixture
async def screen() -> AsyncIterator[Screen]:
    with screen_of() as screen:
        yield screen


async def attached(console: Console, screen: Screen, **options: object) -> asyncio.Task[AttachEnd]:
    """An attachment that is known to have begun."""
    before = screen.state()
    task = asyncio.create_task(console.attach(screen.terminal, **options))  # type: ignore[arg-type]
    await eventually(lambda: task.done() or screen.state() != before)
    return task


def test_a_terminal_that_is_lost_while_its_modes_are_set_has_those_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when this process is stopped just then, and goes on in the background."""
    master, slave = os.openpty()
    before, ours = termios.tcgetattr(slave), iter([True, False, True, True])
    monkeypatch.setattr(modes, "in_foreground", lambda fd: next(ours))
    setter = modes.ModeSetter(slave, modes.raw, flush=False)
    assert not setter.look()
    assert termios.tcgetattr(slave) == before
    assert setter.look(), "and again once it is"
    assert termios.tcgetattr(slave) != before
    os.close(master)
    os.close(slave)


async def stop(task: asyncio.Task[AttachEnd]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_session_shows_history_and_output_and_carries_keys(screen: Screen) -> None:
    device = StubDevice()
    console = Console(device)
    console.feed(b"boot messages\r\n")
    before = screen.state()
    task = await attached(console, screen)
    await screen.until(b"boot messages\r\n")
    console.feed(b"login: ")
    await screen.until(b"login: ")
    await screen.type(b"root\r\x03\x1a\x1c\x04\x13\x11")  # enter, then ctrl-c z \ d s q: all the guest's
    await eventually(lambda: device.received == b"root\r\x03\x1a\x1c\x04\x13\x11")
    assert not task.done()
    await screen.type(b"x\x10\x11never")
    assert await task is AttachEnd.DETACHED
    assert device.received.endswith(b"\x11x")
    assert screen.state() == before


async def test_detaching_and_attaching_again(screen: Screen) -> None:
    console = Console(StubDevice())
    for round_ in (b"one", b"two", b"three"):
        task = await attached(console, screen)
        console.feed(round_)
        await screen.until(round_)
        await screen.type(b"\x10")
        await screen.type(b"\x11")
        assert await task is AttachEnd.DETACHED
        console.feed(b"+unseen+")
    task = await attached(console, screen)
    await screen.until(b"one+unseen+two+unseen+three+unseen+")
    console.close()
    assert await task is AttachEnd.GUEST_ENDED


async def test_without_history_only_what_is_new_is_shown(screen: Screen) -> None:
    console = Console(StubDevice())
    console.feed(b"old")
    task = await attached(console, screen, history=False)
    console.feed(b"new")
    assert await screen.until(b"new") == b"new"
    await stop(task)


async def test_the_guests_last_words_are_shown(screen: Screen) -> None:
    console = Console(StubDevice())
    before = screen.state()
    task = await attached(console, screen)
    console.feed(b"x" * 100_000 + b"Power down")
    console.close()
    await screen.until(b"Power down")
    assert await task is AttachEnd.GUEST_ENDED
    assert screen.state() == before


async def test_a_cancelled_session_restores_the_terminal(screen: Screen) -> None:
    console = Console(StubDevice())
    before = screen.state()
    task = await attached(console, screen)
    assert screen.state() != before
    await stop(task)
    assert screen.state() == before


async def test_a_device_that_fails_restores_the_terminal(screen: Screen) -> None:
    class Broken(StubDevice):
        def receive(self, data: bytes) -> int:
            raise RuntimeError("broken device")

    before = screen.state()
    task = await attached(Console(Broken()), screen)
    await screen.type(b"x")
    with pytest.raises(RuntimeError, match="broken device"):
        await task
    assert screen.state() == before


async def test_a_terminal_that_is_closed_ends_the_session(screen: Screen) -> None:
    task = await attached(Console(StubDevice()), screen)
    screen.hang_up()
    assert await asyncio.wait_for(task, HANGS) is AttachEnd.TERMINAL_CLOSED


async def test_the_flags_of_the_shells_descriptor_never_change(screen: Screen) -> None:
    task = await attached(Console(StubDevice()), screen)
    assert os.get_blocking(screen.slave)
    await stop(task)


async def test_the_flags_are_restored_where_the_terminal_cannot_be_opened_again(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    before = screen.state()
    task = await attached(Console(StubDevice()), screen)
    assert not os.get_blocking(screen.slave)
    await screen.type(b"\x10\x11")
    assert await task is AttachEnd.DETACHED
    assert screen.state() == before


async def test_the_detach_keys_work_when_the_guest_takes_no_input(screen: Screen) -> None:
    device = StubDevice(room=0)
    console = Console(device)
    task = await attached(console, screen)
    await screen.type(b"p" * (3 * HIGH_WATER))
    assert console.input_waiting <= HIGH_WATER
    await screen.type(b"\x10\x11")
    assert await asyncio.wait_for(task, HANGS) is AttachEnd.DETACHED


async def test_what_is_pasted_waits_for_the_guest(screen: Screen) -> None:
    device = StubDevice(room=0)
    console = Console(device)
    task = await attached(console, screen)
    pasted = bytes(b"0123456789abcde\n" * 12_000)
    await screen.type(pasted)
    while len(device.received) < len(pasted):
        await asyncio.sleep(0)
        device.make_room(1000)
    assert device.received == pasted
    await stop(task)


async def test_endless_typing_to_a_deaf_guest_rings_the_bell(screen: Screen) -> None:
    task = await attached(Console(StubDevice(room=0)), screen)
    ringing = asyncio.create_task(screen.until(b"\a"))
    await screen.type(b"z" * (3 << 20))
    await ringing
    await screen.type(b"\x10\x11")
    assert await asyncio.wait_for(task, HANGS) is AttachEnd.DETACHED


async def test_what_is_typed_before_the_detach_keys_goes_to_a_slow_guest(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its time to take it in which this process can run; here it has no processor but for moments."""
    lingers = asyncio.Event()

    def limit(seconds: float | None) -> AbstractAsyncContextManager[asyncio.Timeout]:
        lingers.set()
        return awake_timeout(seconds)

    monkeypatch.setattr("aiovmm.console.session._LINGER", 0.2)
    monkeypatch.setattr("aiovmm.console.session.awake_timeout", limit)
    device = StubDevice(room=0)
    task = await attached(Console(device), screen)
    typed = b"p" * (3 * HIGH_WATER)
    await screen.type(typed + b"\x10\x11")
    await asyncio.wait_for(lingers.wait(), HANGS)
    for _ in range(10):
        time.sleep(0.25)  # noqa: ASYNC251 - nobody runs
        device.make_room(1024)
        await asyncio.sleep(0)
    device.make_room(len(typed))
    assert await asyncio.wait_for(task, HANGS) is AttachEnd.DETACHED
    await eventually(lambda: device.received == typed)


async def test_a_first_detach_key_alone_reaches_the_guest(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.console.attach._HOLD", 0.05)
    device = StubDevice()
    task = await attached(Console(device), screen)
    await screen.type(b"\x10")
    await eventually(lambda: device.received == b"\x10")
    assert not task.done()
    await stop(task)


async def test_other_detach_keys_and_none(screen: Screen) -> None:
    device = StubDevice()
    task = await attached(Console(device), screen, detach=b"\x1d")
    await screen.type(b"\x10\x11\x1d")
    assert await task is AttachEnd.DETACHED
    assert device.received == b"\x10\x11"
    task = await attached(Console(device), screen, detach=b"")
    await screen.type(b"\x10\x11\x1d")
    await eventually(lambda: device.received == b"\x10\x11\x10\x11\x1d")
    await stop(task)


async def test_the_window_size_reaches_the_guest_at_once_and_when_it_changes(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovmm.console.terminal._SIZE_POLL", 0.02)
    device = StubDevice()
    screen.resize(80, 24)
    console = Console(device)
    task = await attached(console, screen)
    await eventually(lambda: device.sizes == [(80, 24)])
    screen.resize(132, 50)
    await eventually(lambda: device.sizes == [(80, 24), (132, 50)])
    other = StubDevice()
    console.connect(other)
    assert other.sizes == [(132, 50)]
    await stop(task)


async def test_a_program_that_handles_sigwinch_says_so_at_once(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.console.terminal._SIZE_POLL", 3600)
    device = StubDevice()
    screen.resize(80, 24)
    task = await attached(Console(device), screen)
    await eventually(lambda: device.sizes)
    screen.resize(132, 50)
    screen.terminal.resized()
    await eventually(lambda: device.sizes == [(80, 24), (132, 50)])
    await stop(task)


async def test_a_terminal_that_does_not_read_loses_output_and_is_told(screen: Screen) -> None:
    console = Console(StubDevice(), history=4096)
    task = await attached(console, screen)
    for _ in range(100):
        console.feed(b"." * 4096)
        await asyncio.sleep(0)
    console.feed(b"latest")
    shown = await screen.until(b"latest")
    assert b" bytes of earlier output are not shown]\r\n" in shown
    assert not task.done()
    await stop(task)


async def test_history_asks_the_terminal_nothing_again(screen: Screen) -> None:
    console = Console(StubDevice())
    console.feed(b"\x1b[1m# \x1b[6n\x1b[c")
    task = await attached(console, screen)
    assert await screen.until(b"# ") == b"\x1b[1m# "
    console.feed(b"\x1b[6n")
    assert await screen.until(b"n") == b"\x1b[6n"
    await stop(task)


async def test_the_screen_is_left_in_its_ordinary_modes(screen: Screen) -> None:
    console = Console(StubDevice())
    task = await attached(console, screen)
    console.feed(b"\x1b[?1049h\x1b[?25l editor")
    await screen.until(b"editor")
    await screen.type(b"\x10\x11")
    await task
    left = await screen.until(b"\x1b>")
    assert left.startswith(b"\x1b[?1049l")
    assert b"\x1b[?25h" in left


async def test_two_terminals_see_the_same_and_type_to_the_same(screen: Screen) -> None:
    device = StubDevice()
    console = Console(device)
    with screen_of() as other:
        tasks = [await attached(console, one) for one in (screen, other)]
        console.feed(b"hello")
        await screen.until(b"hello")
        await other.until(b"hello")
        await screen.type(b"a")
        await other.type(b"a")
        await eventually(lambda: device.received == b"aa")
        await screen.type(b"\x10\x11")
        assert await tasks[0] is AttachEnd.DETACHED
        assert not tasks[1].done()
        await stop(tasks[1])


async def test_what_is_no_terminal_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(UsageError, match="not a terminal"):
            await Console(StubDevice()).attach(Terminal(reading, writing))
    finally:
        os.close(reading)
        os.close(writing)


async def test_an_output_alone_is_shown_as_the_guest_prints_it(screen: Screen) -> None:
    """`aiovmm run </dev/null` in a terminal: no CR is added to the guest's own, and the interrupt key is the shell's yet."""
    console = Console(StubDevice())
    before = screen.state()
    with open("/dev/null", "rb") as nothing:  # noqa: ASYNC230
        task = asyncio.create_task(console.attach(Terminal(nothing.fileno(), screen.slave)))
        await eventually(lambda: screen.state() != before)
        assert termios.tcgetattr(screen.slave)[3] & termios.ISIG
        console.feed(b"one\r\ntwo\r\n")
        assert await screen.until(b"two\r\n") == b"one\r\ntwo\r\n"
        assert not task.done(), "the end of a file does not end the session"
        console.close()
        assert await task is AttachEnd.GUEST_ENDED
    assert screen.state() == before


async def test_an_input_alone_types_to_the_guest(screen: Screen) -> None:
    """`aiovmm run | tee log`: keys go as they are typed, and detach; the output goes on as it is."""
    device = StubDevice()
    console = Console(device)
    reading, writing = os.pipe()
    before = screen.state()
    try:
        task = asyncio.create_task(console.attach(Terminal(screen.slave, writing)))
        await eventually(lambda: screen.state() != before)
        console.feed(b"hello\r\n")
        await screen.type(b"\x03x")
        await eventually(lambda: device.received == b"\x03x")
        said = await asyncio.to_thread(os.read, reading, 100)
        await screen.type(b"\x10\x11")
        assert await task is AttachEnd.DETACHED
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            said += os.read(reading, 100)
        assert said == b"hello\r\n", "and nothing for a terminal that it is not"
    finally:
        os.close(reading)
        os.close(writing)
    assert screen.state() == before


async def test_a_pipe_into_a_session_waits_for_the_guest(screen: Screen) -> None:
    """Megabytes for a guest that takes them slowly: none is refused, as a person's would be with a bell."""
    device = StubDevice(room=0)
    reading, writing = os.pipe()
    sent = os.urandom(3 << 20)
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        task = asyncio.create_task(Console(device).attach(Terminal(source.fileno(), screen.slave)))
        feeding = asyncio.create_task(asyncio.to_thread(sink.write, sent[: 1 << 20]))
        for start in range(0, 3 << 20, 1 << 20):
            while len(device.received) < start + (1 << 20):
                device.make_room(50_000)
                await asyncio.sleep(0)
            assert await feeding == 1 << 20
            feeding = asyncio.create_task(asyncio.to_thread(sink.write, sent[start + (1 << 20) : start + (2 << 20)]))
        await feeding
        assert device.received == sent
        await stop(task)


def waits_to_be_read(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


async def test_answers_to_the_guests_questions_are_not_left_to_the_shell(screen: Screen) -> None:
    """The terminal answers a moment after the guest has ended: where the cursor is, which would be typed to the shell."""
    console = Console(StubDevice())
    task = await attached(console, screen)
    console.feed(b"bye\x1b[6n")
    console.close()
    await screen.until(b"\x1b[6n")
    await screen.type(b"\x1b[24;80R")
    assert await task is AttachEnd.GUEST_ENDED
    assert waits_to_be_read(screen.slave) == 0


async def test_what_was_typed_before_the_end_is_the_guests(screen: Screen) -> None:
    """Not even what it did not take is left to the shell (TCSAFLUSH)."""
    console = Console(StubDevice())
    task = await attached(console, screen)
    os.write(screen._master.fileno(), b"rm -r everything\r")
    task.cancel()  # before the loop has seen it
    with pytest.raises(asyncio.CancelledError):
        await task
    attributes = termios.tcgetattr(screen.slave)
    attributes[3] &= ~termios.ICANON  # so that it would count
    termios.tcsetattr(screen.slave, termios.TCSANOW, attributes)
    assert waits_to_be_read(screen.slave) == 0


async def test_an_output_that_breaks_is_told_once_and_the_session_goes_on(screen: Screen) -> None:
    device, told = StubDevice(), list[OSError]()
    console = Console(device)
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230
        terminal = Terminal(screen.slave, full.fileno(), on_output_lost=told.append)
        before = screen.state()
        task = asyncio.create_task(console.attach(terminal))
        await eventually(lambda: screen.state() != before)
        for _ in range(3):
            console.feed(b"lost")
            await eventually(lambda: told)
        await screen.type(b"x")
        await eventually(lambda: device.received == b"x")
        assert [error.errno for error in told] == [errno.ENOSPC]
        await stop(task)


async def test_a_terminal_that_is_filtered_is_asked_nothing_and_shown_what_draws(screen: Screen) -> None:
    console = Console(StubDevice())
    console.feed(b"\x1b[6nhistory ")
    screen.terminal.filtered = True
    task = await attached(console, screen)
    await screen.until(b"history ")
    console.feed(b"\x1b]52;c;cm0gLXJmIC8K\x07\x1b[31mred\x1b[c")
    console.feed(b"\x1b[m done")
    assert await screen.until(b"done") == b"\x1b[31mred\x1b[m done"
    await stop(task)
