"""The end of a session whose processes fork while they are looked for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiovmm.agent import Agent, agent_binary
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.process import create
from tests.agent.conftest import gone, running

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
BEHIND = f"""
import os, random, sys, time
def last(number):
    with open({str(LAST_PID)!r}, "w") as file:
        file.write(str(number))
def idle():
    os.setpgid(0, 0)
    os.execvp("sleep", ["sleep", sys.argv[1]])
for _ in range(300):  # whom to look at takes a while
    if os.fork() == 0:
        idle()
last(30000)
if os.fork() == 0:
    os.setpgid(0, 0)
    for number in range(20000, 1000, -1):
        last(number)
        if os.fork() == 0:
            idle()
        if number == 19900:
            print("forks", flush=True)
time.sleep(1000)
"""
"""A process with a high number begins others with low ones, which a single look has passed by."""


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Path]:
    """Where an agent listens whose numbers of processes are its own, so that a test may choose them."""
    if not LAST_PID.exists():
        pytest.skip("this kernel lets nobody choose the numbers of processes (CONFIG_CHECKPOINT_RESTORE)")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += ["sh", "-c", '"$0" --unix "$1" & wait', str(agent_binary()), str(tmp_path / "s")]  # process 1 is an init
    with subprocess.Popen(command, start_new_session=True) as process:
        yield tmp_path / "s"
        process.kill()


@pytest.fixture
async def alone(apart: Path) -> AsyncIterator[Agent]:
    agent = Agent(UnixPlace(apart), patience=20)
    await agent.ready(20)
    yield agent
    agent.close()


async def test_who_forks_behind_our_back_is_killed_too(alone: Agent) -> None:
    seconds = f"98{os.getpid()}"
    words = [sys.executable, "-c", BEHIND, seconds]
    process = await create(alone, words, (None, asyncio.subprocess.PIPE, None))
    assert process.stdout is not None
    assert await process.stdout.readline() == b"forks\n"
    assert running(b"sleep " + seconds.encode())
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await gone(b"sleep " + seconds.encode())
