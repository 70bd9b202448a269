"""Where interrupts of the machine's devices meet KVM: message lines of PCI functions, and the I/O APIC's messages."""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import error
from aiovmm.kvm.routing import GsiRouting, IrqfdLine
from aiovmm.kvm.vmfd import VmFd

__all__ = ["IoApicSink", "KvmMsiLine", "OffLoop", "message", "set_lines"]

OffLoop = Callable[[Callable[[], None], Callable[[BaseException | None], None] | None], Awaitable[None] | None]
"""See pci.services.PciServices."""


def message(vm: VmFd, address: int, data: int) -> Callable[[], None]:
    """See pci.services.PciServices."""
    return vm.message(_for_kvm(address), data)


class KvmMsiLine:
    """A pci.services.MsiLine: an eventfd, joined to a GSI of its own while the vector is not masked.

    The eventfd is made at once, for it may be handed to another process before the guest opens the vector; the GSI and its
    irqfd come with the first unmasking, so that a guest with many idle vectors costs no routes.
    """

    def __init__(self, vm: VmFd, name: str) -> None:
        self.name = name
        self._vm = vm
        try:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as exc:
            raise error(f"making the eventfd of {name}", exc.errno or 0) from exc
        self._gsi: int | None = None
        self._irqfd: IrqfdLine | None = None

    @property
    def fd(self) -> int | None:
        """The eventfd; None once closed."""
        return self._fd if self._fd >= 0 else None

    @property
    def pending(self) -> bool:
        """Signalled while it was masked: the eventfd is readable, for KVM would have read it."""
        if self._fd < 0 or self._irqfd is not None:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def set(self, address: int, data: int, masked: bool) -> None:
        """Program address and data, then join the eventfd to the GSI or cut it off. Raises KvmError.

        An address that no local APIC has (bits 39:32 must be zero; KVM would refuse the whole table for it) is the guest's
        mistake: its interrupts go nowhere, as on hardware.
        """
        if self.prepare(address, data, masked):
            self._routing.commit()
            self.join()

    def prepare(self, address: int, data: int, masked: bool) -> bool:
        """The first part of `set`: whether the routes are to be committed now, and then the line joined. Raises KvmError."""
        if self._fd < 0:
            return False
        if masked or address >> 32 & 0xFF:
            self._cut()
            return False
        if self._gsi is None:
            self._gsi = self._routing.allocate()
        self._routing.set_msi(self._gsi, _for_kvm(address), data)
        return True

    def join(self) -> None:
        """The last part of `set`. Raises KvmError."""
        if self._irqfd is None:
            assert self._gsi is not None
            self._irqfd = self._vm.irqfd(self._gsi, self._fd)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        if self._fd < 0:
            return
        self._cut()
        if self._gsi is not None and not self._vm.closed:
            self._routing.release(self._gsi)
            self._gsi = None
        fd, self._fd = self._fd, -1
        os.close(fd)

    @property
    def _routing(self) -> GsiRouting:
        routing = self._vm.routing
        assert routing is not None, "the machine makes the irqchip before any device"
        return routing

    def _cut(self) -> None:
        irqfd, self._irqfd = self._irqfd, None
        if irqfd is not None and not self._vm.closed:
            irqfd.close()


def set_lines(vm: VmFd, changes: Sequence[tuple[KvmMsiLine, int, int, bool]]) -> None:
    """`set` of all of them, with the routes committed once. Raises KvmError; one line that KVM refuses keeps no other from its
    message."""
    routing = vm.routing
    assert routing is not None
    ready = [line for line, address, data, masked in changes if line.prepare(address, data, masked)]
    if not ready:
        return
    try:
        routing.commit()
    except KvmError:  # all is as it was
        _set_one_by_one(changes)
        return
    for line in ready:
        line.join()


def _set_one_by_one(changes: Sequence[tuple[KvmMsiLine, int, int, bool]]) -> None:
    refused: KvmError | None = None
    for line, address, data, masked in changes:
        try:
            line.set(address, data, masked)
        except KvmError as exc:
            refused = exc
    if refused is not None:
        raise refused


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
