"""Routes of the I/O APIC's pins: asked of KVM only where they change, and messages that wait for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.devices.ioapic import IoApic
from aiovmm.errors import KvmError
from aiovmm.kvm.routing import GsiRouting
from aiovmm.machine.x86_64.interrupts import IoApicSink

A, B = (0xFEE00000, 0xC041), (0xFEE00000, 0xC042)


class Vm:
    """KVM's end."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.refuses = False
        self.routing = self
        self.now: dict[int, tuple[int, int]] = {}
        self.takes = True

    def clear(self, pin: int) -> None:
        del self.now[pin]

    def set_msi(self, pin: int, address: int, data: int) -> None:
        self.now[pin] = address, data

    def commit(self) -> None:
        if self.refuses:
            raise KvmError("setting routes", 22)
        self.log.append(dict(self.now))

    def signal_msi(self, address: int, data: int) -> bool:
        self.log.append((address, data))
        return self.takes


class Later:
    """off_loop: calls wait until they are `made`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], None], Callable[[BaseException | None], None] | None]] = []

    def __call__(
        self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None = None
    ) -> Awaitable[None] | None:
        self.calls.append((work, then))
        return None

    def make(self) -> None:
        work, then = self.calls.pop(0)
        error = None
        try:
            work()
        except KvmError as exc:
            error = exc
        assert then is not None
        then(error)


def sink() -> tuple[IoApicSink, Vm, Later]:
    vm, later = Vm(), Later()
    return IoApicSink(vm, later), vm, later  # type: ignore[arg-type]


def test_a_pin_that_is_masked_and_opened_again_without_end_asks_nothing_of_kvm() -> None:
    s, vm, later = sink()
    s.route(9, *A)
    later.make()
    for _ in range(1000):
        s.route(9, 0, None)
        s.route(9, *A)
    assert later.calls == []
    assert vm.log == [{9: A}]


def test_messages_wait_for_the_routes_before_them_and_keep_their_order() -> None:
    s, vm, later = sink()
    s.route(9, *A)
    s.signal(*A)
    s.route(10, *B)
    s.signal(*B)
    s.signal(*A)
    assert vm.log == []
    later.make()
    assert vm.log == [{9: A}]
    later.make()
    assert vm.log == [{9: A}, {9: A, 10: B}, A, B]
    s.signal(*B)
    assert vm.log[-1] == B


def test_a_route_that_is_not_used_any_more_goes_with_the_next_change_or_when_it_is_noticed() -> None:
    s, vm, later = sink()
    s.route(9, *A)
    s.route(9, 0, None)
    s.route(10, *B)
    s.route(10, 0, None)
    for _ in range(2):
        later.make()
    assert vm.log[-1] == {10: B}
    s.ended_in_vain()
    s.ended_in_vain()
    later.make()
    assert later.calls == []
    assert vm.log[-1] == {}
    s.route(10, *B)
    later.make()
    assert vm.log[-1] == {10: B}


def test_what_kvm_refused_is_asked_again() -> None:
    s, vm, later = sink()
    vm.refuses = True
    s.route(9, *A)
    s.signal(*A)
    later.make()
    assert vm.log == [A], "better an interrupt whose end nobody hears of than none"
    vm.refuses = False
    s.route(9, *A)
    later.make()
    assert vm.log[-1] == {9: A}


def test_routes_that_are_as_kvm_has_them_are_not_committed() -> None:
    routing = GsiRouting(-1, 24, 100)  # no VM: an ioctl would fail
    routing.set_msi(30, *A)
    routing.clear(30)
    routing.commit()


def test_a_message_that_waited_and_that_nobody_took_leaves_its_pin_open_for_the_next() -> None:
    s, vm, later = sink()
    ioapic = IoApic(s)
    vm.takes = False
    ioapic.write(0, (0x10 + 2 * 9).to_bytes(4, "little"))
    ioapic.write(0x10, (1 << 15 | 0x41).to_bytes(4, "little"))
    ioapic.set_level(9, True)
    assert ioapic.snapshot().entries[9] & 1 << 14, "on its way"
    later.make()
    assert vm.log[-1] == A
    assert not ioapic.snapshot().entries[9] & 1 << 14
