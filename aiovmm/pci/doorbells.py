"""Queue notifications: kick eventfds, rung by the guest's writes without an exit (ioeventfd). A device's queues share them,
but not where another process serves these (virtqueue/bell.py).

Eventfds are made when a driver first starts the device, and live as long as the device; an ioeventfd lives as long as its BAR's
address. To bind and unbind takes KVM milliseconds, so neither a reset nor decoding turned off unbinds anything: who kicks then
rings a bell that nobody listens to, or makes the next driver's device look at its ring once in vain. They are unbound when the
BAR has moved, or another one answers at their addresses.

A write that reaches us as an exit all the same (a machine without ioeventfds, a doorbell about to be bound, the PCI_CFG
window) rings the same eventfd.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Sequence
from functools import partial

from aiovmm.bus import Space
from aiovmm.errors import HostError
from aiovmm.native import lib
from aiovmm.pci.services import IoEventFd, PciServices
from aiovmm.virtqueue.bell import distinct

__all__ = ["NOTIFY_MULTIPLIER", "Doorbells", "notify_size"]

NOTIFY_MULTIPLIER = 4  # bytes between two queues' notification addresses; queue_notify_off is the queue's index
_ANY_WIDTH = 0


def notify_size(queues: int) -> int:
    """Bytes of the structure of a device with so many queues."""
    return max(queues, 1) * NOTIFY_MULTIPLIER


class Doorbells:
    """The notification structure of one device: `count` queues, each with an eventfd of its own if they are `apart`. A BusDevice;
    also owns the kick eventfds."""

    def __init__(self, services: PciServices, count: int, *, apart: bool = False) -> None:
        self._services = services
        self._count = count
        self._apart = apart
        self._made: list[int] = []
        self._kicks: list[int] = []  # of each queue
        self._registered: list[IoEventFd] = []  # touched off the loop only
        self._base: int | None = None  # where the BAR has answered last, unless another one does now
        self._bound: int | None = None  # where the doorbells are, or are about to be

    @property
    def size(self) -> int:
        """Bytes of the structure."""
        return notify_size(self._count)

    def open(self) -> Sequence[int]:
        """The device goes live: the kick eventfd of each queue, non-blocking. Raises HostError.

        The driver does not wait for its doorbells: what it writes before they are bound comes as an exit, and rings as well.
        """
        if not self._kicks:
            self._make()
        self._bind()
        return tuple(self._kicks)

    async def close(self) -> None:
        """The device goes for good, and reads its eventfds no more. Idempotent."""
        self._base = self._bound = None
        if self._kicks:  # behind what was asked for before, for KVM is told by their descriptors which to unbind
            pending = self._services.off_loop(partial(self._rebind, None, ()))
            if pending is not None:
                await pending
        self._let_go()

    def moved(self, base: int | None) -> Awaitable[None] | None:
        """The structure lies at MMIO address `base` from now on, or nowhere: then the doorbells stay where they are."""
        if base is None:
            return None
        self._base = base
        return self._bind()

    def displaced(self) -> Awaitable[None] | None:
        """Something else answers where it last was."""
        self._base = None
        return self._bind()

    def read(self, offset: int, size: int) -> bytes:
        """Nothing is defined to be read here."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """A notification that came as an exit. Dropped before a driver has started the device, as is one across two queues."""
        index = offset // NOTIFY_MULTIPLIER
        if index < len(self._kicks) and offset % NOTIFY_MULTIPLIER == 0:
            lib.avmm_event_signal(
                self._kicks[index]
            )  # a back end in another process may have it: no write that could wait

    def _make(self) -> None:
        try:
            self._kicks = (
                [self._eventfd() for _ in range(self._count)] if self._apart else distinct(self._count, self._eventfd)
            )
        except OSError as exc:
            self._let_go()
            raise HostError("making a kick eventfd", exc.errno or 0) from exc

    def _eventfd(self) -> int:
        self._made.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self._made[-1]

    def _let_go(self) -> None:
        self._kicks.clear()
        for fd in self._made:
            os.close(fd)
        self._made.clear()

    def _bind(self) -> Awaitable[None] | None:
        """Have the doorbells where the structure is, if there are any."""
        if self._base == self._bound or not self._kicks:
            return None
        self._bound = self._base
        return self._services.off_loop(partial(self._rebind, self._base, tuple(self._kicks)))

    def _rebind(self, base: int | None, kicks: tuple[int, ...]) -> None:
        while self._registered:
            self._registered.pop().close()
        if base is None:
            return
        for index, fd in enumerate(kicks):
            registered = self._services.ioeventfd(Space.MMIO, base + index * NOTIFY_MULTIPLIER, _ANY_WIDTH, fd)
            if registered is not None:
                self._registered.append(registered)
