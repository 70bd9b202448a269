"""What a reset costs the host is paid by threads of ours: memory unmapped, KVM's VM and vCPUs closed and made again. On the loop
each GiB and each vCPU would hold up all other guests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from aiovmm import VM, EventKind, RebootPolicy
from aiovmm.kvm import Kvm, VmFd
from aiovmm.memory import GuestMemory
from tests.vm.guest import config, event

pytestmark = pytest.mark.kvm


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
