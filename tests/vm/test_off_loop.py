"""What a reset costs the host is paid by threads of ours: memory unmapped, KVM's VM and vCPUs closed and made again. On the loop
each GiB and each vCPU would hold up all other guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    EventKind,
    ExitReason,
    ExitStatus,
    NetConfig,
    PmemConfig,
    RebootPolicy,
)
from aiovmm.errors import StateError
from aiovmm.kvm import Kvm, Vcpu, VmFd
from aiovmm.machine import processors
from aiovmm.memory import GuestMemory
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, event

pytestmark = pytest.mark.kvm
HAS_TUN = os.path.exists("/dev/net/tun") and os.geteuid() == 0


async def test_a_machine_is_made_and_taken_apart_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    here, calls = threading.get_ident(), []

    def watch(kind: type, name: str) -> None:
        real: Callable[..., Any] = getattr(kind, name)

        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, kind.__name__, threading.get_ident()))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, noted)

    for kind, name in (
        (Kvm, "create_vm"),
        (VmFd, "create_vcpu"),
        (VmFd, "set_memory"),
        (VmFd, "close"),
        (GuestMemory, "close"),
    ):
        watch(kind, name)
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 3)
        await vm.kill()
    lives = sum(name == "create_vm" for name, _, _ in calls)
    assert lives >= 4
    assert sum((name, kind) == ("close", "VmFd") for name, kind, _ in calls) == lives
    assert sum((name, kind) == ("close", "GuestMemory") for name, kind, _ in calls) == lives
    assert not [call for call in calls if call[2] == here]


async def test_a_full_executor_of_the_embedders_holds_up_no_guest(tmp_path: Path) -> None:
    """Built, reset and ended while every thread of the event loop's executor sleeps: it is not ours to wait for."""
    loop, wake, executor = asyncio.get_running_loop(), threading.Event(), ThreadPoolExecutor(2)
    loop.set_default_executor(executor)
    for _ in range(8):
        executor.submit(wake.wait)
    give_up = loop.call_later(30, wake.set)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "pmem").write_bytes(bytes(2 << 20))
    everything = config(
        "r",
        on_reboot=RebootPolicy.RESTART,
        disks=(DiskConfig(path=tmp_path / "disk"),),
        pmems=(PmemConfig(file=tmp_path / "pmem"),),
        nets=(NetConfig(tap="aiovmmfull"),) if HAS_TUN else (),
        serial=ConsoleConfig(ConsoleMode.FILE, tmp_path / "serial"),
    )
    try:
        async with VM(everything) as vm:
            await vm.start()
            await event(vm, EventKind.REBOOTED, 2)
        assert not wake.is_set()
    finally:
        give_up.cancel()
        wake.set()
        executor.shutdown()


async def test_many_vcpus_are_started_in_turns_and_the_boot_processor_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a thread; with a hundred of them a guest that resets itself would hold up the others each time."""
    monkeypatch.setattr(processors, "TURN", 0.0)  # a turn for each
    turns, started, real = 0, [], Vcpu.start

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    def noted(self: Vcpu, nice: int, *, core: int) -> None:
        started.append((self.index, turns))
        real(self, nice, core=core)

    monkeypatch.setattr(Vcpu, "start", noted)
    async with VM(config("x", cpus=8)) as vm:
        count()
        await vm.start()
        await counts_on(vm)
    assert [index for index, _ in started] == [*range(7, 0, -1), 0]
    assert len({turn for _, turn in started}) == 8


@pytest.mark.parametrize("resets", [0, 1])
async def test_a_guest_that_is_killed_while_its_vcpus_are_started_runs_no_instruction(
    monkeypatch: pytest.MonkeyPatch, resets: int
) -> None:
    monkeypatch.setattr(processors, "TURN", 0.0)
    lives, killed, real = 0, list[asyncio.Future[ExitStatus]](), Vcpu.start

    def noted(self: Vcpu, nice: int, *, core: int) -> None:
        nonlocal lives
        assert not killed or self.index != 0, "the boot processor comes last"
        lives += self.index == 7
        real(self, nice, core=core)
        if self.index == 5 and lives > resets:
            killed.append(asyncio.ensure_future(vm.kill("in the middle")))

    monkeypatch.setattr(Vcpu, "start", noted)
    async with VM(config("r" if resets else "x", cpus=8, on_reboot=RebootPolicy.RESTART)) as vm:
        with contextlib.nullcontext() if resets else pytest.raises(StateError):
            await vm.start()
        status = await asyncio.wait_for(vm.wait(), HANGS)
        await asyncio.gather(*killed)
    assert (status.reason, status.detail) == (ExitReason.KILLED, "in the middle")
    assert lives == resets + 1


@pytest.mark.parametrize("resets", [0, 1])
async def test_an_end_that_comes_while_vcpus_are_started_is_told(monkeypatch: pytest.MonkeyPatch, resets: int) -> None:
    """A processor that waits for its start-up message may fail, too."""
    monkeypatch.setattr(processors, "TURN", 0.0)
    lives, real = 0, Vcpu.start

    def noted(self: Vcpu, nice: int, *, core: int) -> None:
        nonlocal lives
        lives += self.index == 7
        real(self, nice, core=core)
        if self.index == 5 and lives > resets:
            vm.machine.board.ended(ExitReason.ERROR, "vCPU 5: broken")

    monkeypatch.setattr(Vcpu, "start", noted)
    async with VM(config("r" if resets else "x", cpus=8, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), HANGS)
    assert (status.reason, status.detail) == (ExitReason.ERROR, "vCPU 5: broken")
