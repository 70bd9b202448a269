"""Messages to local APICs as KVM takes them: those of PCI functions, and the I/O APIC's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiovmm.errors import KvmError
from aiovmm.kvm.vmfd import VmFd
from aiovmm.machine.interrupts import Message, OffLoop
from aiovmm.pci.services import Place

__all__ = ["IoApicSink", "message_for_kvm"]


def message_for_kvm(address: int, data: int, _place: Place) -> Message | None:
    """Local APICs do not ask who sends it. None for an address that none has: bits 39:32 must be zero, and KVM would refuse the
    whole table for it."""
    return None if address >> 32 & 0xFF else Message(_for_kvm(address), data)


class IoApicSink:
    """What the I/O APIC sends: messages at once, and routes for its level-triggered pins so that KVM tells of their EOI.

    A change of routes takes KVM milliseconds, so `off_loop` makes it, and what is signalled meanwhile waits for it: of an
    interrupt whose route is not there yet nobody would tell the end. Nor is a route taken away before another is changed: a pin
    that is masked and opened again, as drivers do all the time, then costs nothing.
    """

    def __init__(self, vm: VmFd, off_loop: OffLoop) -> None:
        self.refused: Callable[[int, int], None] | None = None
        self._vm = vm
        self._off_loop = off_loop
        self._routes: dict[int, tuple[int, int]] = {}  # as KVM has them, or will when what was asked for is done
        self._unused: set[int] = set()  # of these, pins that need none any more
        self._changing = 0
        self._held: dict[tuple[int, int], None] = {}  # in order; twice the same is one interrupt to the local APICs

    def signal(self, address: int, data: int) -> bool:
        """Deliver a message; whether it was taken, as far as is known: of one that had to wait `refused` is told. A destination
        that is not there is the guest's mistake and drops it."""
        if self._changing:
            self._held[address, data] = None
            return True
        return self._send(address, data)

    def route(self, pin: int, address: int, data: int | None) -> Awaitable[None] | None:
        """Route `pin` to a message, or let its route go. The result is done when KVM has it."""
        if data is None:
            self._unused.add(pin)
            return None
        self._unused.discard(pin)
        if self._routes.get(pin) == (address, data):
            return None
        self._routes[pin] = address, data
        return self._change({pin: (address, data)})

    def ended_in_vain(self) -> None:
        """KVM tells of the end of an interrupt that is no pin's: by a route, perhaps, that is not used any more."""
        if self._unused:
            self._change({})

    def _change(self, wanted: dict[int, tuple[int, int]]) -> Awaitable[None] | None:
        unused, self._unused = self._unused, set()
        for pin in unused:
            self._routes.pop(pin, None)
        self._changing += 1
        return self._off_loop(partial(self._commit, unused, wanted), self._changed)

    def _commit(self, unused: set[int], wanted: dict[int, tuple[int, int]]) -> None:
        routing = self._vm.routing
        assert routing is not None
        for pin in unused:
            routing.clear(pin)
        for pin, (address, data) in wanted.items():
            routing.set_msi(pin, _for_kvm(address), data)
        routing.commit()

    def _changed(self, error: BaseException | None) -> None:
        self._changing -= 1
        if error is not None:  # nobody knows now what KVM has, so the next ones are told again
            self._routes.clear()
        if self._changing == 0:
            held, self._held = self._held, {}
            for address, data in held:
                if not self._send(address, data) and self.refused is not None:
                    self.refused(address, data)

    def _send(self, address: int, data: int) -> bool:
        try:
            return self._vm.signal_msi(_for_kvm(address), data)
        except KvmError:
            return False  # KVM refuses a message to no processor: on hardware it would be lost on the bus as well


def _for_kvm(address: int) -> int:
    """KVM wants bits 14:8 of the destination in bits 46:40; a guest has only 32 bits, and puts them into bits 11:5."""
    return address & ~(0x7F << 5) | (address >> 5 & 0x7F) << 40
