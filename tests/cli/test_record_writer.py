"""Events to readers that are slow, leave, or come later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiovmm.cli.record_writer import RecordWriter

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


def test_a_reader_that_is_slow_gets_whole_events_and_later_ones(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    writer = RecordWriter(writing)
    for _ in range(200):  # more than a pipe holds
        writer.write(EVENT)
    seen = drained(reading)
    writer.write(b"later\n")
    seen += drained(reading)
    lines = seen.splitlines(keepends=True)
    assert lines[-1] == b"later\n"
    assert set(lines[:-1]) == {EVENT}
    assert 40 < len(lines) < 200
    assert not capsys.readouterr().err
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
