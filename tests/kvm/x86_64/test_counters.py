"""Performance counters are taken from a VM where KVM can take them."""

from __future__ import annotations

from typing import Any

import pytest

from aiovmm.kvm import Kvm
from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.x86_64 import counters
from aiovmm.native import lib
from tests.kvm.x86_64.test_harm import FakeVm

CAP = 212


@pytest.mark.parametrize(("offered", "enabled"), [(-22, []), (0, []), (2, []), (1, [(CAP, 1)])])
def test_they_are_taken_where_they_can_be(
    offered: int, enabled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "try_call", lambda _fd, _request, cap: offered if cap == CAP else -22)
    vm: Any = FakeVm()
    assert counters.take_counters(vm) == bool(enabled)
    assert vm.enabled == enabled


def test_this_hosts_kvm_takes_them_if_it_says_so(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    try:
        offered = max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, CAP), 0)
        assert counters.take_counters(vm) == bool(offered & 1)
    finally:
        vm.close()
