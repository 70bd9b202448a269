"""Events to readers that are slow, leave, or come later, and to files whose storage stands still."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiovmm.cli import record_writer
from aiovmm.cli.event_monitor import EventMonitor
from aiovmm.cli.record_writer import ROOM, RecordWriter
from tests.faults.stalling import Stalling, stalling
from tests.limits import HANGS

EVENT = b'{"event": "' + b"x" * 1000 + b'"}\n'


def drained(fd: int) -> bytes:
    data = b""
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def test_a_reader_that_is_slow_gets_whole_events_and_is_told_how_many_it_has_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    writer = RecordWriter(writing)
    for _ in range(200):  # more than a pipe holds
        writer.write(EVENT)
    seen = drained(reading)
    writer.write(b"later\n")
    seen += drained(reading)
    lines = seen.splitlines(keepends=True)
    assert set(lines[:-2]) == {EVENT}
    assert 40 < len(lines) < 200
    assert lines[-2:] == [b"aiovmm: lines lost here: %d\n" % (200 - len(lines[:-2])), b"later\n"]
    assert not capsys.readouterr().err
    os.close(reading)
    os.close(writing)


def test_what_is_lost_at_the_end_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    writer = RecordWriter(writing)
    for _ in range(200):
        writer.write(EVENT)
    writer.finish_now()
    begun = -(-len(drained(reading)) // len(EVENT))
    assert capsys.readouterr().err.startswith(f"aiovmm: events: {200 - begun} were lost")
    os.close(reading)
    os.close(writing)


def test_who_opens_a_fifo_again_gets_what_comes_then(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    first = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    writer = RecordWriter(writing)
    os.close(first)
    writer.write(b"lost\n")
    again = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer.write(b"seen\n")
    assert drained(again) == b"seen\n"
    os.close(again)
    os.close(writing)


def test_a_place_that_takes_nothing_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = RecordWriter(full.fileno())
        writer.write(EVENT)
        writer.write(EVENT)
    assert capsys.readouterr().err.count("No space left") == 1


# -- storage that stands still


class Storage:
    """Of a file that is there, in the place of os.write."""

    def __init__(self) -> None:
        self.stands_still = False
        self._write = os.write

    def write(self, fd: int, data: bytes) -> int:
        until = time.monotonic() + HANGS
        while self.stands_still and time.monotonic() < until:
            time.sleep(0.001)
        return self._write(fd, data)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    found = Storage()
    monkeypatch.setattr(os, "write", found.write)
    monkeypatch.setattr(record_writer, "_PATIENCE", HANGS)
    yield found
    found.stands_still = False


async def flooded(write: Callable[[], object], storage: Storage) -> int:
    """More than there is room for, on the loop, which it does not keep. How many times."""
    storage.stands_still = True
    before = time.monotonic()
    for _ in range(count := 3 * ROOM // len(EVENT)):
        write()
    assert time.monotonic() - before < HANGS / 2  # nobody has waited for storage
    storage.stands_still = False
    return count


async def test_a_file_whose_storage_stands_still_keeps_nobody_and_what_is_lost_is_told(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    writer = RecordWriter(fd)
    count = await flooded(lambda: writer.write(EVENT), storage)
    await writer.finish()
    writer.write(b"later\n")
    await writer.finish()
    os.close(fd)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    whole = lines.count(EVENT)
    assert 0 < whole <= ROOM // len(EVENT)
    assert lines[-1] == b"later\n"
    assert (
        capsys.readouterr().err
        == f"aiovmm: events: {count - whole} were lost at the end: where they go to takes no more\n"
    )


async def test_the_event_monitor_tells_in_its_own_words_how_many_are_lost(storage: Storage, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "events", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    monitor = EventMonitor(fd)
    count = await flooded(lambda: monitor.tell("aiovmm", "x" * 1000), storage)
    objects: list[Any] = [{"event": ""}]
    while objects[-1]["event"] != "later":  # until there is room for it
        monitor.tell("vm", "later")
        await asyncio.sleep(0.01)
        text = await asyncio.to_thread((tmp_path / "events").read_text)
        objects = [json.loads(part) for part in text.rpartition("\n\n")[0].split("\n\n")]
    os.close(fd)
    lost = sum(int(row["properties"]["events"]) for row in objects if row["event"] == "lost")
    assert lost > 0
    assert lost + sum(row["source"] == "aiovmm" and row["event"] != "lost" for row in objects) >= count


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
async def test_a_file_system_that_never_answers_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record_writer, "_PATIENCE", 0.1)
    (tmp_path / "stalling").mkdir()
    with stalling(tmp_path / "stalling", 1 << 20) as mounted:
        await never_answers(mounted)
    assert "events: 2 were lost" in capsys.readouterr().err


async def never_answers(mounted: Stalling) -> None:
    fd = os.open(mounted.disk, os.O_WRONLY | os.O_CLOEXEC)
    writer = RecordWriter(fd)
    writer.write(EVENT)
    await writer.finish()
    mounted.stall()
    writer.write(EVENT)
    await asyncio.to_thread(mounted.await_victim)
    writer.write(EVENT)
    await writer.finish()
    await asyncio.to_thread(mounted.go)
    await asyncio.wrap_future(writer._flushed())
    os.close(fd)
