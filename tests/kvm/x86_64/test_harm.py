"""What a guest does to the whole host is told where KVM can: asked of it, and enabled before there is a vCPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm.kvm import Kvm
from aiovmm.kvm.exits import ContextLost, decode
from aiovmm.kvm.x86_64 import harm
from aiovmm.native import lib

BUS_LOCK, NOTIFY = 193, 219


class FakeVm:
    """Keeps what it is asked for."""

    fd = -1

    def __init__(self) -> None:
        self.enabled: list[tuple[int, int]] = []
        self.limits: list[int] = []

    def enable(self, cap: int, argument: int, _operation: str) -> None:
        self.enabled.append((cap, argument))

    def limit_harm(self, rate: int) -> None:
        self.limits.append(rate)


@pytest.mark.parametrize(
    ("offered", "enabled", "told"),
    [
        ({}, [], []),
        ({BUS_LOCK: -22, NOTIFY: -22}, [], []),
        ({BUS_LOCK: 1, NOTIFY: 1}, [], []),  # off, and a notification that is not for user space
        ({BUS_LOCK: 3}, [(BUS_LOCK, 2)], ["bus locks"]),
        ({NOTIFY: 3}, [(NOTIFY, 3)], ["notifies"]),
        ({BUS_LOCK: 3, NOTIFY: 3}, [(BUS_LOCK, 2), (NOTIFY, 3)], ["bus locks", "notifies"]),
    ],
)
def test_what_is_offered_is_enabled(
    offered: dict[int, int], enabled: list[tuple[int, int]], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harm, "try_call", lambda _fd, _request, cap: offered.get(cap, 0))
    vm: Any = FakeVm()
    assert harm.bound_harm(vm) == told
    assert vm.enabled == enabled
    assert bool(vm.limits) == bool(told)


def test_this_hosts_kvm_takes_what_it_offers(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    try:
        assert set(harm.bound_harm(vm)) <= {"bus locks", "notifies"}
    finally:
        vm.close()


def test_a_guest_that_the_processor_lost_ends_with_that() -> None:
    final = SimpleNamespace(kind=lib.AVMM_END_EXIT, code=37, detail=0, ndata=0, data=())
    assert decode(final) == ContextLost()
    assert "could not keep its state" in str(decode(final))
