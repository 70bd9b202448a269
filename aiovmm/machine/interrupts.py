"""Where messages of PCI functions meet KVM."""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import error
from aiovmm.kvm.routing import GsiRouting, IrqfdLine
from aiovmm.kvm.vmfd import VmFd
from aiovmm.pci.services import Place

__all__ = ["KvmMsiLine", "Message", "OffLoop", "ToKvm", "set_lines"]

OffLoop = Callable[[Callable[[], None], Callable[[BaseException | None], None] | None], Awaitable[None] | None]
"""See pci.services.PciServices."""


class Message(NamedTuple):
    """As KVM takes it: `device` says who sends it, where the interrupt controller asks."""

    address: int
    data: int
    device: int | None = None


ToKvm = Callable[[int, int, Place], Message | None]
"""See machine.board.Board.message."""


class KvmMsiLine:
    """A pci.services.MsiLine: an eventfd, joined to a GSI of its own while the vector is not masked.

    The eventfd is made at once, for it may be handed to another process before the guest opens the vector; the GSI and its
    irqfd come with the first unmasking, so that a guest with many idle vectors costs no routes.
    """

    def __init__(self, vm: VmFd, name: str, to_kvm: ToKvm, place: Place) -> None:
        self.name = name
        self._to_kvm = to_kvm
        self._place = place
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

        An address that no interrupt controller has is the guest's mistake: its interrupts go nowhere, as on hardware.
        """
        if self.prepare(address, data, masked):
            self._routing.commit()
            self.join()

    def prepare(self, address: int, data: int, masked: bool) -> bool:
        """The first part of `set`: whether the routes are to be committed now, and then the line joined. Raises KvmError."""
        if self._fd < 0:
            return False
        message = None if masked else self._to_kvm(address, data, self._place)
        if message is None:
            self._cut()
            return False
        if self._gsi is None:
            self._gsi = self._routing.allocate()
        self._routing.set_msi(self._gsi, *message)
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
