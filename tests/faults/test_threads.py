"""The system has a thread for us, and Python no memory for its first step: whoever started it is told, or does without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.library import build

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, errno, os, threading
from contextlib import suppress
import uvloop
from aiovmm.devices.virtio.blk.engine import Engine, IoKind
from aiovmm.devices.virtio.rng.source import ThreadedSource
from aiovmm.errors import HostError
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.threads import Thread
from aiovmm.runtime.watchdog import Watchdog
from aiovmm.runtime.worker import Worker
from tests.faults.library import Kind, arm, calls

def refused(start):
    arm(Kind.STACK, 1, errno.ENOMEM)
    try:
        return start()
    finally:
        assert calls() >= 1, "no thread was started"
        arm(-1, 0, 0)

def raises(error, start):
    try:
        refused(start)
    except error as exc:
        return exc
    raise AssertionError(f"{start} has begun")

def crew_of_none(made):
    with suppress(StopIteration):
        in_thread("test", lambda: made.append(threading.get_ident())).send(None)

async def main():
    before = threading.active_count()
    thread = Thread(lambda: None, name="test")
    assert "memory" in str(raises(RuntimeError, thread.start))
    assert threading.active_count() == before, "it is taken for one that lives"
    loop, made = asyncio.get_running_loop(), []

    refused(lambda: crew_of_none(made))
    assert made == [threading.get_ident()], "slow is better than never"
    assert await refused(lambda: Worker("test").submit(threading.get_ident)) == threading.get_ident()
    assert await in_thread("test", threading.get_ident) != threading.get_ident()

    engine = Engine(IoKind.THREADS, 8, "test")
    raises(HostError, lambda: engine.submit(os.getpid))
    assert await engine.call(os.getpid) == os.getpid()
    engine.close()

    raises(RuntimeError, lambda: Watchdog(loop))
    read, write = os.pipe()
    source, fds = ThreadedSource(read, "pipe"), len(os.listdir("/proc/self/fd"))
    raises(HostError, lambda: source._start(1))
    assert len(os.listdir("/proc/self/fd")) == fds
    os.write(write, b"x")
    assert await source._start(1) == b"x"

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
print("done")
"""


def test_nobody_waits_for_a_thread_that_never_begins(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(build(tmp_path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.split(), done.returncode) == (["done"], 0), done.stderr[-3000:]
