"""`run`: a command from its start to its end."""

from __future__ import annotations

from aiovmm.agent import Agent
from aiovmm.agent.run import run


async def test_status_and_output(agent: Agent) -> None:
    done = await run(agent, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_input(agent: Agent) -> None:
    data = bytes(range(256)) * 5000
    assert (await run(agent, ["cat"], input=data)).stdout == data
