"""Messages of functions on their way to KVM: what the board makes of them, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aiovmm.machine.interrupts import KvmMsiLine, Message
from aiovmm.machine.pci import KvmPciServices
from aiovmm.pci.services import LineChange, Place

REFUSED = 0xBAD


class Routing:
    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int, int | None]] = {}

    def allocate(self) -> int:
        return 40

    def set_msi(self, gsi: int, address: int, data: int, device: int | None) -> None:
        self.routes[gsi] = address, data, device

    def commit(self) -> None: ...

    def release(self, gsi: int) -> None:
        del self.routes[gsi]


class Vm:
    """As far as messages go."""

    closed = False

    def __init__(self) -> None:
        self.routing = Routing()
        self.sent: list[tuple[int, int, int | None]] = []
        self.joined: set[int] = set()

    def message(self, address: int, data: int, device: int | None) -> Callable[[], None]:
        return lambda: self.sent.append((address, data, device))

    def irqfd(self, gsi: int, _fd: int) -> Any:
        self.joined.add(gsi)
        vm = self

        class Joined:
            def close(self) -> None:
                vm.joined.discard(gsi)

        return Joined()


def to_kvm(address: int, data: int, place: Place) -> Message | None:
    """An interrupt controller that asks who sends, and knows all addresses but one."""
    return None if address == REFUSED else Message(address, data, place.segment << 8 | place.requester_id)


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def services(vm: Vm) -> KvmPciServices:
    nobody: Any = None
    return KvmPciServices(vm, nobody, nobody, nobody, nobody, to_kvm, nobody)  # type: ignore[arg-type]


def test_a_message_says_where_its_function_is(vm: Vm, services: KvmPciServices) -> None:
    place = Place()
    place.segment, place.slot = 2, 3
    services.message(0x0807_0040, 7, place)()
    services.message(REFUSED, 7, place)()
    assert vm.sent == [(0x0807_0040, 7, 0x218)]


def test_so_does_a_line_which_is_made_before_its_function_has_a_place(vm: Vm, services: KvmPciServices) -> None:
    place = Place()
    line = services.msi_line("a line", place)
    assert isinstance(line, KvmMsiLine)
    place.segment, place.slot = 1, 4
    services.set_lines([LineChange(line, 0x0807_0040, 9, masked=False)])
    assert (vm.routing.routes, vm.joined) == ({40: (0x0807_0040, 9, 0x120)}, {40})
    services.set_lines([LineChange(line, REFUSED, 9, masked=False)])
    assert vm.joined == set(), "it goes nowhere"
    line.close()
    assert vm.routing.routes == {}
