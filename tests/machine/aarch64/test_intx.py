"""Pins for PCI functions on arm64: shared wires, the end of interrupts, and that nobody is asked for it too early."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiovmm.machine.aarch64 import intx
from aiovmm.machine.aarch64.intx import IntxPins
from tests.limits import HANGS


class FakeRouting:
    """Remembers pins."""

    def __init__(self) -> None:
        self.pins: list[tuple[int, int, int]] = []
        self.commits = 0

    def set_pin(self, gsi: int, chip: int, pin: int) -> None:
        """See GsiRouting."""
        self.pins.append((gsi, chip, pin))

    def commit(self) -> None:
        """See GsiRouting."""
        self.commits += 1


class FakeVm:
    """A VM with an interrupt controller: levels by pin as KVM would have them, and the eventfds that it signals."""

    closed = False

    def __init__(self) -> None:
        self.routing = FakeRouting()
        self.levels: dict[int, bool] = {}
        self.ends: dict[int, int] = {}
        self.triggers: dict[int, int] = {}

    def end(self, number: int) -> None:
        """The guest ends the interrupt of a pin."""
        self.levels[number] = False
        os.eventfd_write(self.ends[number], 1)


class FakeLine:
    """See kvm.aarch64.pins.SpiLine."""

    def __init__(self, vm: FakeVm, number: int) -> None:
        self._vm, self._number = vm, number
        self._level = False

    def set_level(self, asserted: bool) -> None:
        """Told to the VM if it is news."""
        if asserted != self._level:
            self._level = self._vm.levels[self._number] = asserted


class FakeEnd:
    """See kvm.aarch64.pins.EndOfInterrupt."""

    def __init__(self, vm: FakeVm, number: int, *, trigger: int | None = None, fd: int | None = None) -> None:
        assert (number, 0, number) in vm.routing.pins
        assert vm.routing.commits
        self._vm, self._number = vm, number
        self.fd = vm.ends[number] = os.eventfd(0, os.EFD_NONBLOCK) if fd is None else fd
        if trigger is not None:
            vm.triggers[number] = trigger

    def close(self) -> None:
        """KVM forgets it."""
        del self._vm.triggers[self._number], self._vm.ends[self._number]

    def drop(self) -> None:
        """Close it."""
        os.close(self.fd)


class Later:
    """An `off_loop` that does nothing until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], None], Callable[[BaseException | None], None] | None]] = []

    def __call__(
        self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None = None
    ) -> Awaitable[None] | None:
        self.waiting.append((work, then))
        return None

    def run(self) -> None:
        """All of it."""
        waiting, self.waiting = self.waiting, []
        for work, then in waiting:
            error: BaseException | None = None
            try:
                work()
            except OSError as exc:
                error = exc
            if then is not None:
                then(error)


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> FakeVm:
    monkeypatch.setattr(intx, "SpiLine", FakeLine)
    monkeypatch.setattr(intx, "EndOfInterrupt", FakeEnd)
    return FakeVm()


def pins_of(vm: Any, later: Later, numbers: range = range(16, 18)) -> IntxPins:
    return IntxPins(vm, numbers, later)


async def turns(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0)


async def test_functions_get_pins_in_turn_and_kvm_is_asked_nothing_until_one_interrupts(vm: FakeVm) -> None:
    later = Later()
    pins = pins_of(vm, later)
    lines = [pins.line(lambda: None) for _ in range(5)]
    assert [line.gsi for line in lines] == [16, 17, 16, 17, 16]
    assert not later.waiting
    lines[0].set_level(True)
    assert len(later.waiting) == 1
    assert vm.levels == {}, "an interrupt whose end nobody would be told of is not given"
    later.run()
    assert vm.levels == {16: True}
    pins.close()


async def test_a_pin_is_asserted_while_any_wire_is(vm: FakeVm) -> None:
    later = Later()
    pins = pins_of(vm, later, range(16, 17))
    one, other = pins.line(lambda: None), pins.line(lambda: None)
    one.set_level(True)
    other.set_level(True)
    later.run()
    one.set_level(False)
    assert vm.levels[16]
    other.close()
    assert not vm.levels[16]
    pins.close()


async def test_the_end_of_an_interrupt_is_told_to_those_who_asserted_it(vm: FakeVm) -> None:
    later, told = Later(), list[str]()
    pins = pins_of(vm, later, range(16, 17))
    device = pins.line(lambda: told.append("device"))

    def again() -> None:
        told.append("still")
        still.set_level(True)

    still = pins.line(again)
    pins.line(lambda: told.append("idle"))
    device.set_level(True)
    still.set_level(True)
    later.run()
    vm.end(16)
    await turns(lambda: len(told) == 2)
    assert told == ["device", "still"]
    assert not device.asserted
    assert vm.levels[16], "the one that still has a reason"
    still.set_level(False)
    assert not vm.levels[16]
    pins.close()


async def test_a_wire_works_where_kvm_cannot_tell_of_the_end(vm: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_vm: FakeVm, _number: int) -> None:
        raise OSError("too many")

    monkeypatch.setattr(intx, "EndOfInterrupt", refused)
    later = Later()
    pins = pins_of(vm, later)
    line = pins.line(lambda: None)
    line.set_level(True)
    later.run()
    assert vm.levels == {16: True}
    pins.close()


async def test_what_was_asked_for_comes_after_the_machine_has_gone(vm: FakeVm) -> None:
    later = Later()
    pins = pins_of(vm, later)
    pins.line(lambda: None).set_level(True)
    pins.close()
    later.run()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(vm.ends[16])
    assert vm.levels == {}


async def test_a_wire_that_is_alone_can_be_left_to_kvm(vm: FakeVm) -> None:
    later = Later()
    pins = pins_of(vm, later, range(16, 19))
    host = pins.line(lambda: None)
    circuit = host.circuit()
    assert circuit is not None
    circuit.connect(100, 101)
    assert (vm.triggers, vm.ends) == ({16: 100}, {16: 101})
    assert [pins.line(lambda: None).gsi for _ in range(3)] == [17, 18, 17], "nobody else is on that pin"
    host.set_level(True)
    later.run()
    assert vm.levels == {}, "it is KVM's"
    circuit.disconnect()
    circuit.disconnect()
    assert (vm.triggers, vm.ends) == ({}, {})
    host.close()
    assert pins.line(lambda: None).gsi == 16
    pins.close()


async def test_a_wire_that_is_not_alone_or_was_used_goes_by_the_loop(vm: FakeVm) -> None:
    later = Later()
    pins = pins_of(vm, later)
    one, used, other = (pins.line(lambda: None) for _ in range(3))
    assert one.circuit() is None
    assert other.circuit() is None
    used.set_level(True)
    later.run()
    assert used.circuit() is None, "KVM tells this process of its ends"
    pins.close()


async def test_one_pin_at_least_is_left_for_all_others(vm: FakeVm) -> None:
    pins = pins_of(vm, Later())
    first, last = pins.line(lambda: None), pins.line(lambda: None)
    assert first.circuit() is not None
    assert last.circuit() is None
    assert pins.line(lambda: None).gsi == last.gsi
    pins.close()


async def test_pins_and_wires_that_were_closed_are_in_no_circle(vm: FakeVm) -> None:
    """What the machine had goes at once, and not some time with the garbage collector."""

    class Function:
        """It knows its wire, which tells it of ends."""

        def __init__(self, pins: IntxPins) -> None:
            self.line = pins.line(self.ended)

        def ended(self) -> None:
            """Of an interrupt."""

    pins = pins_of(vm, Later())
    function = Function(pins)
    gone: list[weakref.ref[Any]] = [weakref.ref(pins), weakref.ref(function)]
    gc.disable()
    try:
        function.line.close()
        pins.close()
        del function, pins
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
