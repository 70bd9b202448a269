"""Opening /dev/kvm: what works, and what the errors tell one to do."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from aiovmm.errors import HostError, KvmError
from aiovmm.kvm import Kvm, system
from aiovmm.kvm.ioctl import error, try_call
from aiovmm.kvm.x86_64 import probe
from aiovmm.kvm.x86_64.irqchip import split_irqchip
from aiovmm.native import lib
from tests.open_files import descriptors


def test_what_this_kvm_offers(kvm: Kvm) -> None:
    assert kvm.missing_capabilities() == []
    assert kvm.max_vcpus >= 4
    assert kvm.run_size >= 4096
    assert kvm.capability(99_999) == 0
    assert kvm.emulates_guest_code() in (True, False)
    assert kvm.emulates_guest_code() == kvm._emulates


def test_the_probe_leaves_nothing_behind(kvm: Kvm) -> None:
    probe.emulates_guest_code(kvm.create_vm())
    before = descriptors()
    for _ in range(20):
        probe.emulates_guest_code(kvm.create_vm())
    assert descriptors() <= before


def test_no_kvm_module(tmp_path: Path) -> None:
    with pytest.raises(KvmError, match="kvm_intel or kvm_amd") as caught:
        Kvm.open(str(tmp_path / "kvm"))
    assert caught.value.errno == errno.ENOENT
    assert str(tmp_path / "kvm") in str(caught.value)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmError, match="group that owns it"):
        Kvm.open()


def test_not_a_kvm_device() -> None:
    before = descriptors()
    with pytest.raises(KvmError, match="newer kernel"):
        Kvm.open("/dev/null")
    assert descriptors() <= before


def test_another_version_of_the_interface(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "call", lambda *args: 11)
    with pytest.raises(KvmError, match="speaks version 11, not 12"):
        Kvm.open()


def test_a_missing_capability_is_named(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    real = try_call
    monkeypatch.setattr(
        system,
        "try_call",
        lambda fd, request, arg: 0 if request == lib.KVM_CHECK_EXTENSION and arg == 121 else real(fd, request, arg),
    )
    with pytest.raises(KvmError, match=r"lacks KVM_CAP_SPLIT_IRQCHIP; Linux 4\.11"):
        Kvm.open()


def test_too_many_vcpus(kvm: Kvm) -> None:
    for count in (0, kvm.max_vcpus + 1):
        with pytest.raises(KvmError, match=f"allows 1 to {kvm.max_vcpus}"):
            kvm.create_vm(count)


def test_every_errno_keeps_its_own_text() -> None:
    exc = error("doing it", errno.EBUSY, {errno.EBUSY: "special"})
    assert str(exc) == "doing it: Device or resource busy (special)"
    assert "ulimit -n" in str(error("doing it", errno.EMFILE, {errno.EMFILE: "special"})), (
        "what helps, whatever it was for"
    )
    assert str(error("doing it", errno.EIO)) == "doing it: Input/output error"


def take_all_but(free: int) -> list[int]:
    """Use up the process's file descriptors, `free` of them excepted."""
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for _ in range(free):
            os.close(taken.pop())
    return taken


async def test_out_of_descriptors_at_any_step_leaks_none(kvm: Kvm) -> None:
    used = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, limits[1]))
    refusals: list[HostError] = []
    try:
        for free in range(8):
            taken = take_all_but(free)
            vm = None
            try:
                vm = kvm.create_vm(2)  # takes two
                split_irqchip(vm)
                vm.create_vcpu(0)
                vm.irqfd(24).close()
                vm.create_vcpu(1)
                vm.irqfd(24).close()
            except HostError as exc:
                refusals.append(exc)
            finally:
                for fd in taken:
                    os.close(fd)
                if vm is not None:
                    vm.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(refusals) == 5
    assert {exc.errno for exc in refusals} == {errno.EMFILE}
    assert all("ulimit -n" in exc.hint for exc in refusals)
    steps = [
        "creating a VM",
        "creating the exit eventfd of a VM",
        "creating vCPU 0",
        "creating an irqfd",
        "creating an irqfd",
    ]
    assert [exc.operation for exc in refusals] == steps
    assert descriptors() <= used


def test_the_process_has_it_open_once_for_all_who_hold_it() -> None:
    first, second = Kvm.hold(), Kvm.hold()
    assert first is second
    first.close()
    assert second.fd >= 0
    assert second.missing_capabilities() == []
    second.close()
    assert second.fd < 0
    third = Kvm.hold()
    assert third is not first
    third.close()
    third.close()


def test_who_holds_it_checks_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Kvm] = []
    monkeypatch.setattr(Kvm, "_check", lambda self: checks.append(self))
    monkeypatch.setattr(Kvm, "_seen", set())
    for _ in range(3):
        Kvm.hold().close()
    assert len(checks) == 1
    monkeypatch.setattr(Kvm, "identity", (1, 2, 3, 4))  # as of a module that was loaded anew
    Kvm.hold().close()
    assert len(checks) == 2
    assert Kvm._held is None


def test_a_forked_child_opens_its_own() -> None:
    """What it has of its parent is /dev/null by then."""
    held = Kvm.hold()
    child = os.fork()
    if not child:
        try:
            own = Kvm.hold()
            os._exit(0 if own is not held and own.create_vm().fd >= 0 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    held.close()
