"""Memory of a guest has nothing of whoever had the host's before: not of another guest, nor of itself before a reset."""

from __future__ import annotations

import pytest

from aiovmm import VM, EventKind, MemoryConfig, RebootPolicy
from aiovmm.memory import GuestMemory
from tests.vm.guest import config, counts_on, event

SECRET = b"what nobody else is to know\0" * 1000
AT = 0x300000  # where none of these guests has anything


def holds(memory: GuestMemory) -> bool:
    """Whether any of it is there."""
    return any(SECRET[:28] in memory.read(region.gpa, region.size) for region in memory.regions)


def memory(shared: bool) -> MemoryConfig:
    """Of either kind: the process's own, or a file's that others may map."""
    return MemoryConfig(4 << 20, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
async def test_what_a_guest_had_is_in_no_others_memory(shared: bool) -> None:
    for _ in range(8):
        async with VM(config("s", memory=memory(shared))) as vm:
            await vm.start()
            await counts_on(vm)
            assert not holds(vm.machine.memory)
            vm.machine.memory.write(AT, SECRET)
            assert holds(vm.machine.memory)
            await vm.kill()


@pytest.mark.parametrize("shared", [False, True])
async def test_nor_in_its_own_after_a_reset(shared: bool) -> None:
    async with VM(config("er", memory=memory(shared), on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        before = vm.machine.memory
        before.write(AT, SECRET)
        assert holds(before)
        vm.serial.write(b"q")
        await event(vm, EventKind.REBOOTED)
        assert vm.machine.memory is not before
        assert not holds(vm.machine.memory)
        await vm.kill()
