"""Pins of the interrupt controller for interrupt pins of PCI functions: level-triggered, shared where there are many.

Whoever asserts a wire is told when the guest has ended the interrupt, by which time the pin is released: a host device is
then asked again, a virtio function asserts it again if it still has a reason. KVM tells of that where it has been asked to,
which takes it milliseconds and which no guest needs that uses messages. So it is asked when a wire is asserted for the first
time.

A wire that is alone on its pin can leave it to KVM: who signals it and who is told of the end are then others than this process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial

from aiovmm.kvm.aarch64.pins import EndOfInterrupt, SpiLine
from aiovmm.kvm.vmfd import VmFd
from aiovmm.machine.interrupts import OffLoop
from aiovmm.pci.services import IntxCircuit

__all__ = ["Circuit", "IntxPins", "IntxWire"]


class IntxWire:
    """One function's wire to a pin: a pci.services.IntxLine. Made by `IntxPins.line`."""

    def __init__(self, pin: _Pin, ended: Callable[[], None]) -> None:
        self.asserted = False
        self.ended = ended
        self._pin = pin

    @property
    def gsi(self) -> int:
        """The number of the SPI."""
        return self._pin.number

    def set_level(self, asserted: bool) -> None:
        """Assert or release the wire; the pin is asserted while any of its wires is. Idempotent."""
        self.asserted = asserted
        self._pin.update()

    def circuit(self) -> IntxCircuit | None:
        """See pci.services.IntxLine."""
        return self._pin.circuit()

    def close(self) -> None:
        """Release it and take it off the pin. Idempotent."""
        self.set_level(False)
        self.ended = _nobody
        self._pin.remove(self)


def _nobody() -> None:
    """Is told of an end."""


class IntxPins:
    """Those with these numbers (SPIs). Functions get them in turn."""

    def __init__(self, vm: VmFd, numbers: Sequence[int], off_loop: OffLoop) -> None:
        self._pins = [_Pin(vm, number, off_loop, self._may_be_left) for number in numbers]

    def line(self, ended: Callable[[], None]) -> IntxWire:
        """A wire to the pin that has fewest. `ended()`: see pci.services.PciServices.intx_line."""
        return min(self._open(), key=lambda pin: len(pin.wires)).add(ended)

    def _open(self) -> list[_Pin]:
        """Pins that take wires: always one at least."""
        return [pin for pin in self._pins if pin.is_open]

    def _may_be_left(self) -> bool:
        return len(self._open()) > 1

    def close(self) -> None:
        """Nothing is told any more. Idempotent."""
        for pin in self._pins:
            pin.close()
        self._pins.clear()


class _Pin:
    def __init__(self, vm: VmFd, number: int, off_loop: OffLoop, may_be_left: Callable[[], bool]) -> None:
        self.number = number
        self.is_open = True  # False: it is KVM's
        self.wires: list[IntxWire] = []
        self._vm = vm
        self._off_loop = off_loop
        self._may_be_left = may_be_left
        self._line = SpiLine(vm, number)
        self._asked = self._ready = self._closed = False
        self._ends: EndOfInterrupt | None = None

    def add(self, ended: Callable[[], None]) -> IntxWire:
        wire = IntxWire(self, ended)
        self.wires.append(wire)
        return wire

    def remove(self, wire: IntxWire) -> None:
        if wire in self.wires:
            self.wires.remove(wire)
        self.is_open = self.is_open or not self.wires

    def circuit(self) -> Circuit | None:
        """It, for its one wire and KVM alone."""
        if len(self.wires) != 1 or self._asked or not self._may_be_left():
            return None
        self.is_open = False
        return Circuit(self._vm, self.number)

    def update(self) -> None:
        """A wire has changed."""
        if not self.is_open:
            return
        level = any(wire.asserted for wire in self.wires)
        if level and not self._asked:
            self._asked = True
            self._off_loop(self._ask, self._asked_for)
        if self._ready and not self._closed:
            self._line.set_level(level)

    def close(self) -> None:
        self._closed = True
        ends, self._ends = self._ends, None
        if ends is not None:
            asyncio.get_running_loop().remove_reader(ends.fd)
            ends.drop()  # the VM is about to go

    def _ask(self) -> None:
        """In the machine's thread."""
        _route(self._vm, self.number)
        self._ends = EndOfInterrupt(self._vm, self.number)

    def _asked_for(self, _error: BaseException | None) -> None:
        """Without an answer the pin does what its wires say, which is all that a virtio function needs."""
        if self._closed:
            if self._ends is not None:
                self._ends.drop()
            return
        self._ready = True
        if self._ends is not None:
            fd = self._ends.fd
            asyncio.get_running_loop().add_reader(fd, partial(self._ended, fd))
        self.update()

    def _ended(self, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:  # an event loop may call once more for what has been read
            return
        asserted = [wire for wire in self.wires if wire.asserted]
        for wire in asserted:
            wire.asserted = False
        self.update()
        for wire in asserted:
            wire.ended()


class Circuit:
    """A pin between others and the guest. See pci.services.IntxCircuit."""

    def __init__(self, vm: VmFd, number: int) -> None:
        self._vm = vm
        self._number = number
        self._ends: EndOfInterrupt | None = None

    def connect(self, trigger: int, ended: int) -> None:
        """In the machine's thread."""
        _route(self._vm, self._number)
        self._ends = EndOfInterrupt(self._vm, self._number, trigger=trigger, fd=ended)

    def disconnect(self) -> None:
        """In the machine's thread. KVM releases the pin."""
        ends, self._ends = self._ends, None
        if ends is not None:
            ends.close()


def _route(vm: VmFd, number: int) -> None:
    routing = vm.routing
    assert routing is not None, "there is an interrupt controller"
    routing.set_pin(number, 0, number)
    routing.commit()
