"""What a worker says is in the log, in lines, and bounded."""

from __future__ import annotations

import os
import sys
import time

import pytest

from aiovmm.pool.workers.voice import Voice
from aiovmm.runtime.child import Child


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_lines_in_pieces_and_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    voice = Voice("worker 0")
    for piece in (b"Trace", b"back:\n  File\n\n", b"Key\xffError\x1b[6n", b"'x'"):
        voice.hear(piece)
    voice.end()
    voice.end()
    assert lines(caplog) == [
        "a worker says: Traceback:: worker='worker 0'",
        "a worker says:   File: worker='worker 0'",
        "a worker says: Key\\xffError\\x1b[6n'x': worker='worker 0'",
    ]


def test_a_flood_is_neither_kept_nor_shown_nor_takes_long(caplog: pytest.LogCaptureFixture) -> None:
    voice = Voice("worker 0")
    before = time.thread_time()
    for _ in range(100):
        voice.hear(b"x\n" * 32_000)
    assert (time.thread_time() - before) / 100 < 0.005
    for _ in range(100):
        voice.hear(b"y" * 65536)
    assert len(voice._rest) <= 4096
    assert 200 < len(lines(caplog)) <= 257
    assert "lines before it are not shown" in caplog.text


async def test_both_streams_of_a_child_are_heard_and_none_is_the_programs() -> None:
    heard = bytearray()
    program = (
        "import os; print('out', flush=True); os.write(2, b'err'); os.write(1, os.readlink('/proc/self/fd/2').encode())"
    )
    child = Child([sys.executable, "-c", program], hear=heard.extend)
    assert await child.wait() == 0
    child.said(2, 0)
    await child.aclose()
    assert heard.startswith(b"out\nerrpipe:[")
    assert os.readlink("/proc/self/fd/2").encode() not in heard
