"""What the command says on a standard error whose reader is slow."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiovmm.cli import messages
from aiovmm.cli.messages import say, settle
from tests.limits import HANGS

FULL = 1 << 16


@contextmanager
def full_standard_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of a pipe that is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    assert os.write(writing, bytes(FULL)) == FULL
    os.set_blocking(writing, True)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield reading
    os.close(reading)


async def test_a_loop_goes_on_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_PATIENCE", HANGS)
    with full_standard_error(monkeypatch) as reader:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        say("one line")
        say("another")
        assert loop.time() - begun < HANGS / 2
        assert os.read(reader, FULL) == bytes(FULL)
        os.set_blocking(reader, False)
        shown = b""
        async with asyncio.timeout(HANGS):
            while not shown.endswith(b"another\n"):
                await asyncio.sleep(0.01)
                try:
                    shown += os.read(reader, FULL)
                except BlockingIOError:
                    continue
        assert shown == b"aiovmm: one line\naiovmm: another\n"


def test_what_was_said_last_on_a_loop_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_PATIENCE", HANGS)
    with full_standard_error(monkeypatch) as reader:

        async def end() -> None:
            say("the guest ended")

        asyncio.run(end())
        settling = threading.Thread(target=settle)
        settling.start()
        assert os.read(reader, FULL) == bytes(FULL)
        assert os.read(reader, FULL) == b"aiovmm: the guest ended\n"
        settling.join(HANGS)
        assert not settling.is_alive()


async def test_who_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_PATIENCE", 0.02)
    with full_standard_error(monkeypatch) as reader:
        say("lost")
        await asyncio.sleep(0.1)
        assert os.read(reader, FULL) == bytes(FULL)
        say("found")
        assert os.read(reader, FULL) == b"aiovmm: found\n"


async def test_a_file_whose_storage_stands_still_holds_no_loop_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes, write = threading.Event(), os.write

    def stands_still(fd: int, data: bytes) -> int:
        assert goes.wait(HANGS)
        return write(fd, data)

    fd = os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    with os.fdopen(fd, "w", encoding="utf-8") as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", err)
        patch.setattr(os, "write", stands_still)
        for number in range(100):
            say(f"word {number}")
        goes.set()
        await asyncio.to_thread(messages._hands().submit(len, "").result, HANGS)
    words = [int(line.removeprefix("aiovmm: word ")) for line in (tmp_path / "err").read_text().splitlines()]
    assert words[:16] == list(range(16))
    assert words == sorted(words)
    assert len(words) <= 18, "and one may be that was said when the first was in hand, which may be late"


async def test_what_a_loop_and_a_thread_say_at_once_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the thread that writes a file's events does, of which the disk is full."""
    reading, writing = os.pipe()
    written, words = threading.Event(), iter(["the loop's", "the thread's"])

    def is_overtaken(fd: int, data: bytes) -> int:
        count = os.write(fd, data)
        if next(words, None) == "the loop's":
            thread.start()
            written.wait(0.5)  # for the other to be as far: it is kept from it
        written.set()
        return count

    thread = threading.Thread(target=say, args=("the thread's",))
    monkeypatch.setattr(messages, "write_now", is_overtaken)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        say("the loop's")
        await asyncio.to_thread(thread.join, HANGS)
        assert not thread.is_alive()
    with os.fdopen(reading, "rb") as shown:
        assert shown.read() == b"aiovmm: the loop's\naiovmm: the thread's\n"


def test_a_value_that_nobody_reads_to_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    """What went wrong stands before it, and what to do after it."""
    say(f"--name: {'x' * 70_000} is too long (at most 64)")
    said = capfd.readouterr().err
    assert said.startswith("aiovmm: --name: xxx")
    assert said.endswith("xxx is too long (at most 64)\n")
    assert len(said) < 2100
    assert "[... of 70033 characters ...]" in said
