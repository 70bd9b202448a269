"""The real agent behind the real vsock device, with a driver that hands the guest's side to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from aiovmm import AgentLost, BootTimeout, ExitReason, ExitStatus
from aiovmm.agent import AGENT_PORT, Agent
from aiovmm.agent.guest_place import GuestPlace
from aiovmm.agent.run import run
from aiovmm.virtqueue.harness import Harness
from tests.agent.conftest import Guest as AgentProcess
from tests.devices.virtio.vsock.guest import Guest, Sock, make_device


async def bridge(sock: Sock, agent: AgentProcess) -> None:
    """What the kernel of a guest does between its vsock and the program that listens."""
    reader, writer = await asyncio.open_unix_connection(agent.path)

    async def out() -> None:
        while data := await reader.read(1 << 15):
            await sock.send(data)
        await sock.close()

    sending = asyncio.create_task(out())
    try:
        while data := await sock.recv():
            writer.write(data)
            await writer.drain()
    finally:
        sending.cancel()
        writer.transport.abort()


@pytest.fixture
async def vm(guest: AgentProcess) -> AsyncIterator[SimpleNamespace]:
    """As much of a VM as an agent's place looks at."""
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as driver:
        silent = SimpleNamespace(history=b"")
        yield SimpleNamespace(
            name="guest", vsock=device.streams, status=None, serial=silent, console=silent, driver=driver, device=device
        )


async def test_commands_over_vsock(vm: SimpleNamespace, guest: AgentProcess) -> None:
    stopped = asyncio.Event()
    agent = Agent(GuestPlace(vm, stopped), patience=20)  # type: ignore[arg-type]
    with pytest.raises(BootTimeout) as info:
        await agent.ready(0.2)
    assert info.value.stage == "agent"
    vm.driver.listen(AGENT_PORT)
    waiting = asyncio.create_task(agent.ready(20))
    bridging = asyncio.create_task(bridge(await vm.driver.accept(AGENT_PORT), guest))
    await waiting
    data = bytes(range(256)) * 2000
    assert (await run(agent, ["cat"], input=data)).stdout == data
    assert (await run(agent, ["sh", "-c", "exit 5"])).returncode == 5
    running = asyncio.create_task(run(agent, ["sleep", "60"]))
    await guest.busy()
    assert "does not answer any more; the guest runs on" in str(await agent.lost("asking"))
    vm.status = ExitStatus(ExitReason.KILLED, "for the test")
    stopped.set()
    with pytest.raises(AgentLost, match="for the test"):
        await running
    agent.close()
    bridging.cancel()
    with suppress(asyncio.CancelledError, ConnectionError, EOFError):
        await bridging
