"""The agent's program on this machine, without a guest: what its protocol costs, beside a raw stream over a unix socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from aiovmm.agent import Agent, agent_binary
from aiovmm.agent.place import UnixPlace
from benchmarks.agent_rows import P, rows
from benchmarks.guest import connect
from benchmarks.harness import Options, Result
from benchmarks.network import serving
from benchmarks.programs import program


class _Here:
    """See agent_rows.Place."""

    def __init__(self, agent: Agent, pid: int, server: Path) -> None:
        self.agent = agent
        self._pid = pid
        self._children = Path(f"/proc/{pid}/task/{pid}/children")
        self._server = server

    async def connect(self, factory: Callable[[], P]) -> P:
        """See agent_rows.Place."""
        _, protocol = await asyncio.get_running_loop().create_unix_connection(factory, str(self._server))
        return protocol

    async def descriptors(self) -> int:
        """See agent_rows.Place."""
        return len(os.listdir(f"/proc/{self._pid}/fd")) + len(self._children.read_text().split())


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        path, server = Path(name, "agent"), Path(name, "server")
        with (
            subprocess.Popen([agent_binary(), "--unix", path]) as process,
            serving(program("traffic"), f"unix:{server}"),
        ):
            for one in (path, server):
                connect(one).close()
            agent = Agent(UnixPlace(path))
            try:
                runner.run(agent.ready())
                yield from rows(runner, _Here(agent, process.pid, server), options)
            finally:
                agent.close()
                process.kill()
