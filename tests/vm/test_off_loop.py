"""What a reset costs the host is paid by threads of ours: memory unmapped, KVM's VM and vCPUs closed and made again. On the loop
each GiB and each vCPU would hold up all other guests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, EventKind, NetConfig, PmemConfig, RebootPolicy
from aiovmm.kvm import Kvm, VmFd
from aiovmm.memory import GuestMemory
from tests.vm.guest import config, event

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
