"""Who may share a core of the host with a vCPU: what the kernel is asked."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiovmm import VM, CoreScheduling, CpusConfig, HostError, KvmError
from aiovmm.kvm import core_scheduling
from aiovmm.kvm.vcpu import ALONE, Vcpu
from aiovmm.native import lib
from tests.vm.guest import config, counts_on


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(index, core) of each vCPU as it is started, on a kernel that would keep them apart."""
    found: list[tuple[int, int]] = []
    original = Vcpu.start

    def start(self: Vcpu, nice: int = 0, *, core: int = 0) -> None:
        found.append((self.index, core))
        original(self, nice)

    monkeypatch.setattr(Vcpu, "start", start)
    monkeypatch.setattr(Vcpu, "core", property(lambda self: 1000 + self.index if self.running else 0))
    monkeypatch.setattr(core_scheduling, "lib", answering(0))
    return found


def answering(error: int) -> SimpleNamespace:
    return SimpleNamespace(avmm_has_core_scheduling=lambda: error)


def guest(what: CoreScheduling) -> VM:
    return VM(replace(config("s"), cpus=CpusConfig(3, core_scheduling=what)))


async def test_vcpus_of_a_guest_may_share_cores_with_each_other(started: list[tuple[int, int]]) -> None:
    """The boot processor is started last."""
    async with guest(CoreScheduling.VM) as vm:
        await vm.start()
    assert [index for index, _ in started] == [2, 1, 0]
    assert [core for _, core in started] in ([ALONE, 1002, 1002], [ALONE, 1002, 1001])


async def test_each_vcpu_may_have_cores_of_its_own(started: list[tuple[int, int]]) -> None:
    async with guest(CoreScheduling.VCPU) as vm:
        await vm.start()
    assert started == [(2, ALONE), (1, ALONE), (0, ALONE)]


async def test_who_does_not_ask_is_as_ever(started: list[tuple[int, int]]) -> None:
    async with guest(CoreScheduling.OFF) as vm:
        await vm.start()
    assert started == [(2, 0), (1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("error", "active", "refused"),
    [
        (errno.ENODEV, "1", False),  # cores have one thread each
        (errno.EINVAL, "0", False),
        (errno.EINVAL, "1", True),
        (errno.EINVAL, None, True),
    ],
)
async def test_a_kernel_that_keeps_nobody_apart(
    started: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: int,
    active: str | None,
    refused: bool,
) -> None:
    """Is an error where cores are shared, and where nobody says whether they are."""
    monkeypatch.setattr(core_scheduling, "lib", answering(error))
    if active is not None:
        (tmp_path / "active").write_text(f"{active}\n")
    monkeypatch.setattr(core_scheduling, "_SMT_ACTIVE", tmp_path / "active")
    async with guest(CoreScheduling.VM) as vm:
        if refused:
            with pytest.raises(HostError, match=r"CONFIG_SCHED_CORE\): switch SMT off"):
                await vm.start()
        else:
            await vm.start()
            assert started == [(2, 0), (1, 0), (0, 0)]


async def test_a_thread_is_kept_apart_before_it_enters_the_guest_or_does_not_enter_it() -> None:
    async with VM(config("s")) as vm:
        (vcpu,) = vm.machine.vcpus
        if lib.avmm_has_core_scheduling():
            with pytest.raises(KvmError, match="starting the thread of vCPU 0"):
                vcpu.start(core=ALONE)
            assert not vcpu.running
            assert vcpu.core == 0
            await vm.start()
            await counts_on(vm)
        else:
            vcpu.start(core=ALONE)
            assert vcpu.core in {int(name) for name in os.listdir("/proc/self/task")}
            vcpu.stop()
            await vcpu.join()
