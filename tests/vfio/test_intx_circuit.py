"""INTx of a host device where the interrupt controller is KVM's: from the device's pin to the guest and back, and no step of it
is this process's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiovmm.memory import GuestMemory
from aiovmm.pci.services import Place
from aiovmm.testing.pci import RecordedIntxLine
from tests.vfio import guest as guests
from tests.vfio.guest import ADDRESS, Guest, Services, plug
from tests.vfio.kernel import CONFIG, INTX, MSIX, FakeKernel

INTX_OFF = 0x0400


class Circuit:
    """As KVM closes it. `level` is the guest's pin."""

    def __init__(self) -> None:
        self.level = False
        self.fds: tuple[int, int] | None = None
        self.refuse = False

    def connect(self, trigger: int, ended: int) -> None:
        """See pci.services.IntxCircuit."""
        if self.refuse:
            raise OSError("no")
        assert self.fds is None
        self.fds = trigger, ended

    def disconnect(self) -> None:
        """Likewise."""
        self.fds, self.level = None, False

    def look(self) -> None:
        """KVM hears of what was signalled."""
        if self.fds is not None:
            try:
                os.eventfd_read(self.fds[0])
            except BlockingIOError:
                return
            self.level = True

    def end(self) -> None:
        """The guest ends the interrupt."""
        assert self.level
        assert self.fds is not None
        self.level = False
        os.eventfd_write(self.fds[1], 1)


class Line(RecordedIntxLine):
    """Of an interrupt controller that has one."""

    def __init__(self, circuit: Circuit, ended: Callable[[], None]) -> None:
        super().__init__(16, ended)
        self._circuit = circuit

    def circuit(self) -> Any:
        """It."""
        return self._circuit


@pytest.fixture
def circuit(monkeypatch: pytest.MonkeyPatch) -> Circuit:
    made = Circuit()

    class WithCircuit(Services):
        def intx_line(self, ended: Callable[[], None], place: Place) -> Any:
            return Line(made, ended)

    monkeypatch.setattr(guests, "Services", WithCircuit)
    return made


@pytest.fixture
async def guest(kernel: FakeKernel, memory: GuestMemory, circuit: Circuit) -> AsyncIterator[Guest]:
    made = await plug(kernel, memory, kernel.add(ADDRESS))
    yield made
    await made.root.close()
    made.host.close()
    assert circuit.fds is None
    assert not kernel.open_fds


async def test_interrupts_come_and_end_without_a_turn_of_the_loop(guest: Guest, circuit: Circuit) -> None:
    hardware = guest.hardware
    for _ in range(3):
        hardware.set_pin(True)
        circuit.look()
        assert circuit.level
        assert hardware.masked
        hardware.set_pin(False)  # the handler has quieted it
        circuit.end()
        hardware.hear()
        assert not hardware.masked
        circuit.look()
        assert not circuit.level
    assert hardware.unmasked == 0, "nobody was asked to"


async def test_a_device_that_is_not_quieted_interrupts_again(guest: Guest, circuit: Circuit) -> None:
    guest.hardware.set_pin(True)
    for _ in range(4):
        circuit.look()
        circuit.end()
        guest.hardware.hear()
    circuit.look()
    assert circuit.level


async def test_messages_take_its_place_and_give_it_back(guest: Guest, circuit: Circuit) -> None:
    hardware, before = guest.hardware, circuit.fds
    assert before is not None
    at = _capability(guest, 0x11)
    guest.set_config(at + 2, 2, 0x8000)
    assert (circuit.fds, MSIX in hardware.irqs, INTX in hardware.irqs) == (None, True, False)
    assert hardware.unmasked_by == -1
    guest.set_config(at + 2, 2, 0)
    assert circuit.fds is not None
    assert hardware.irqs[INTX] == {0: circuit.fds[0]}
    assert hardware.unmasked_by == circuit.fds[1]


async def test_a_guest_that_turns_it_off_hears_nothing(guest: Guest, circuit: Circuit) -> None:
    guest.set_config(4, 2, guest.config(4, 2) | INTX_OFF)
    guest.hardware.set_pin(True)
    circuit.look()
    assert not circuit.level
    guest.set_config(4, 2, guest.config(4, 2) & ~INTX_OFF)
    circuit.look()
    assert circuit.level


async def test_a_kvm_that_refuses_is_reported_and_the_device_is_quiet(guest: Guest, circuit: Circuit) -> None:
    at = _capability(guest, 0x11)
    guest.set_config(at + 2, 2, 0x8000)
    circuit.refuse = True
    guest.set_config(at + 2, 2, 0)
    await guest.heard.wait()
    [(_, error)] = guest.errors
    assert isinstance(error, OSError)
    assert INTX not in guest.hardware.irqs


def _capability(guest: Guest, number: int) -> int:
    at = guest.config(0x34, 1)
    while guest.hardware.bytes_at(CONFIG, at, 1)[0] != number and guest.config(at, 1) != number:
        at = guest.config(at + 1, 1)
    return at
