"""What a guest's kernel does to its own processor: KVM knows it, or ends it. Either way it can be paused and ended from outside,
and what ends by itself has said how. The other guests of the process notice nothing."""

from __future__ import annotations

import asyncio

import pytest

from aiovmm.kvm import Kvm
from aiovmm.kvm.exits import FinalExit, InternalError, Shutdown, Stopped
from tests.guests.machine import Machine
from tests.limits import HANGS

_OWN_ENDS: dict[str, type[FinalExit]] = {
    "I": InternalError,  # the processor begins where firmware would be
    "N": Shutdown,
}


async def does(m: Machine, what: str) -> None:
    m.device.answer = lambda offset, size: what.encode()[:size]
    m.start()
    await m.until(lambda: bool(m.log))
    if (
        what != "H"
    ):  # some are for KVM itself to know, and where it is one that emulates guests it goes on with none of them
        await m.until(lambda: m.written.endswith(b"E") or bool(m.exits))


@pytest.mark.parametrize("what", ["I", "S", "H", "O", "M", "N"])
async def test_it_is_paused_and_ended_from_outside(kvm: Kvm, what: str) -> None:
    async with Machine("hello", kvm=kvm) as neighbour, Machine("itself", kvm=kvm) as m:
        await does(m, what)
        async with asyncio.timeout(HANGS):
            await m.cpu.pause()
            m.cpu.resume()
            m.cpu.stop()
            end = await m.cpu.join()
        assert isinstance(end, Stopped | _OWN_ENDS.get(what, Stopped))
        assert str(end)
        assert not m.errors
        neighbour.start()
        await neighbour.until(lambda: b"E" in neighbour.written)
