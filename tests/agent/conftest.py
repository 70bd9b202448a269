"""The real agent on this machine, at a unix socket: what it does as a program needs no guest."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiovmm.agent import Agent, agent_binary
from aiovmm.agent.place import UnixPlace
from tests.limits import HANGS


@dataclass
class Guest:
    """A running agent."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def children(self) -> list[int]:
        """Processes that it has begun, ended ones among them."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    async def busy(self) -> None:
        """Until it has begun a process."""
        async with asyncio.timeout(HANGS):
            while not self.children:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)

    async def idle(self, descriptors: int) -> None:
        """Until it has no children and no more descriptors than before."""
        async with asyncio.timeout(HANGS):
            while self.children or self.descriptors > descriptors:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)


def running(command: bytes) -> bool:
    """Whether a process of this machine has this command line."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if process.read_bytes().rstrip(b"\0").replace(b"\0", b" ") == command:
                return True
    return False


async def gone(command: bytes) -> None:
    """Until no process has it: who was killed ends a moment later."""
    async with asyncio.timeout(HANGS):
        while running(command):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)


def listens(path: Path) -> bool:
    """Whether somebody does at that unix socket, whose name comes before that. Nobody hears of the question. See
    unix(7): /proc/net/unix."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == "00010000" for line in lines)


@pytest.fixture
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The agent's program as the package has it, once it has its socket."""
    path = tmp_path_factory.mktemp("agent") / "socket"
    process = subprocess.Popen([agent_binary(), "--unix", path], start_new_session=True)
    deadline = time.monotonic() + HANGS
    while not listens(path):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    yield Guest(process, path)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[Agent]:
    """Connected to it."""
    agent = Agent(UnixPlace(guest.path), patience=10)
    await agent.ready(10)
    yield agent
    agent.close()
