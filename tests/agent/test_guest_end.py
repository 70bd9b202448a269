"""What is under way when the guest ends: the place of an agent tells, as a VM's does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from aiovmm import AgentLost, ExitReason, ExitStatus
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.process import create
from aiovmm.agent.run import run
from tests.agent.conftest import Guest
from tests.limits import HANGS


class EndingPlace(UnixPlace):
    """A guest that ends, and whose connections stay."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest.path)
        self.stopped = asyncio.Event()
        self.ending: ExitStatus | None = None

    def end(self) -> None:
        self.ending = ExitStatus(ExitReason.PANIC, "its kernel panicked")
        self.stopped.set()

    def status(self) -> ExitStatus | None:
        return self.ending

    def console_tail(self) -> bytes:
        return b"Kernel panic - not syncing"

    def ended(self) -> Coroutine[Any, Any, object] | None:
        return self.stopped.wait()


async def test_all_that_waits_hears_how_the_guest_ended(guest: Guest) -> None:
    place = EndingPlace(guest)
    agent = Agent(place)
    process = await create(agent, ["sleep", "60"], (-1, -1, -1))
    tasks = [asyncio.create_task(work) for work in (run(agent, ["sleep", "60"]), process.wait(), process.communicate())]
    await guest.busy()
    place.end()
    for task in tasks:
        with pytest.raises(
            AgentLost, match=r"ended \(panic: its kernel panicked\); its console ends: b'Kernel"
        ) as info:
            await asyncio.wait_for(task, HANGS)
        assert info.value.status == place.ending
    with pytest.raises(AgentLost, match="panic"):
        await run(agent, ["true"])
    with pytest.raises(AgentLost, match="panic"):
        await agent.ready(1)
    agent.close()


async def test_a_connection_keeps_nobody(guest: Guest) -> None:
    """The event loop has it: an agent that its program has forgotten, and with it its VM, is forgotten all the same."""
    place = EndingPlace(guest)
    agent = Agent(place)
    await run(agent, ["true"])
    await asyncio.sleep(0)
    forgotten, stopped = weakref.ref(place), place.stopped
    del agent, place
    gc.collect()
    assert forgotten() is None
    stopped.set()
