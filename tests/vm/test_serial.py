"""The serial port under load: neither a guest that does not read nor a program that does not costs memory or the guest's time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleEnded, ExitReason, StateError
from aiovmm.console.input import HIGH_WATER
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

MIB = 1 << 20
PAGE = bytes(i & 0xFF for i in range(4096))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def flood(pieces: int) -> bytes:
    """What the guest prints for `F`: pieces of 256 KiB, pages of all bytes, each stamped with its number."""
    return b"".join(n.to_bytes(4, "little") + PAGE[4:] for n in range(pieces * 64))


async def test_a_hundred_megabytes_for_a_guest_that_does_not_read() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        data = b"x" * (100 * MIB)  # the program's own
        before = resident()
        with pytest.raises(StateError, match="drain"):
            vm.serial.write(data)
        assert vm.serial.input_waiting == 0
        sending = asyncio.ensure_future(vm.serial.send(data))
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        assert vm.serial.input_waiting <= HIGH_WATER
        await counts_on(vm)
        assert resident() - before < 8 * MIB
        await vm.kill()
        with pytest.raises(ConsoleEnded):
            await sending


async def test_input_arrives_whole_once_the_guest_reads() -> None:
    data = os.urandom(20_000).replace(b"q", b"Q") + b"q"
    async with VM(config("eo")) as vm:
        await vm.start()
        await vm.serial.send(data)
        await asyncio.wait_for(vm.wait(), HANGS)
        assert vm.serial.history == data


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pieces", [5, pytest.param(32, marks=pytest.mark.thorough)], ids=["1.25 MiB", "8 MiB"])
async def test_output_while_nobody_reads(pieces: int) -> None:
    """It goes round the history either way. Each byte is an exit, since KVM hands over `rep outsb` byte by byte: 8 to 14 us where
    it emulates, which makes one or two minutes of 8 MiB."""
    expected = flood(pieces)
    async with VM(config(f"F{chr(ord('0') + pieces)}o")) as vm:
        stalled = vm.serial.reader()
        before = resident()
        await vm.start()
        most = before
        while vm.status is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(vm.wait(), 0.1)
            most = max(most, resident())
        assert vm.status.reason is ExitReason.SHUTDOWN
        assert most - before < 12 * MIB
        assert vm.serial.history == expected[-MIB:]
        assert vm.serial.history_lost == len(expected) - MIB
        assert await stalled.readexactly(MIB) == expected[-MIB:]
        assert stalled.lost == len(expected) - MIB
        assert stalled.at_eof()
