"""The order in which the interrupt controller is made, and what is said where a host has none."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import ioctl
from aiovmm.kvm.aarch64 import host
from aiovmm.kvm.aarch64.gic import SPIS, Gic
from aiovmm.native import ffi, lib

V3, ITS = 7, 8


class FakeKvm:
    """What KVM is asked for; devices of the types in `there`."""

    def __init__(self, there: tuple[int, ...]) -> None:
        self.there = there
        self.calls: list[tuple[str, int, int, int | None]] = []
        self._types: dict[int, str] = {}

    def ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        """See kvm.ioctl.try_call."""
        if request == lib.KVM_CREATE_DEVICE:
            return self._create(argument)
        if request == lib.KVM_SET_DEVICE_ATTR:
            width = "uint32_t *" if argument.group == 3 else "uint64_t *"
            value = int(ffi.cast(width, argument.addr)[0]) if argument.addr else None
            self.calls.append((self._types[fd], argument.group, argument.attr, value))
            return 0
        assert request == lib.KVM_CHECK_EXTENSION
        return 4096

    def _create(self, argument: Any) -> int:
        if argument.type not in self.there:
            return -errno.ENODEV
        if not argument.flags & 1:  # KVM_CREATE_DEVICE_TEST
            argument.fd = os.eventfd(0)
            self._types[argument.fd] = {V3: "gic", ITS: "its"}[argument.type]
        return 0


class FakeVm:
    """As far as it is looked at."""

    fd = 3
    routing: Any = None


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> FakeKvm:
    fake = FakeKvm((V3, ITS))
    for module in ("ioctl", "aarch64.device", "aarch64.gic"):
        monkeypatch.setattr(f"aiovmm.kvm.{module}.try_call", fake.ioctl)
    assert ioctl.try_call == fake.ioctl
    return fake


def make(vm: Any) -> None:
    Gic(vm, distributor=0x08FF0000, redistributors=0x08FD0000, its=0x08FB0000).close()


def test_places_come_before_numbers_and_both_before_the_controller_is_ready(kvm: FakeKvm) -> None:
    vm = FakeVm()
    make(vm)
    assert kvm.calls == [
        ("gic", 0, 2, 0x08FF0000),
        ("gic", 0, 3, 0x08FD0000),
        ("its", 0, 4, 0x08FB0000),
        ("its", 4, 0, None),
        ("gic", 3, 0, 256),
        ("gic", 4, 0, None),
    ]
    assert vm.routing.allocate() == SPIS, "those below are pins"


def test_a_host_with_an_older_controller_is_told_so(kvm: FakeKvm) -> None:
    kvm.there = ()
    vm: Any = FakeVm()
    with pytest.raises(
        KvmError, match=r"creating the interrupt controller \(GICv3\).*no GICv3: guests need a host that has one"
    ):
        make(vm)
    said = host.shortcomings(vm)
    assert [what for what, _ in said] == [
        "this host's KVM has no GICv3 interrupt controller for guests",
        "this host's KVM has no ITS (messages) for guests",
    ]
    assert all("Raspberry Pi 4" in what_to_do for _, what_to_do in said)


def test_a_host_with_the_right_one_lacks_nothing(kvm: FakeKvm) -> None:
    vm: Any = FakeVm()
    assert host.shortcomings(vm) == []
    assert kvm.calls == []
