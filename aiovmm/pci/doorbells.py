"""Queue notifications: one kick eventfd a queue, rung by the guest's writes without an exit (ioeventfd).

An ioeventfd follows its BAR: it exists while the queues are live and the BAR answers. A write that reaches us as an
exit all the same (a machine without ioeventfds, the PCI_CFG window) rings the same eventfd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from aiovmm.bus import Space
from aiovmm.errors import HostError
from aiovmm.native import lib
from aiovmm.pci.services import IoEventFd, PciServices

__all__ = ["NOTIFY_MULTIPLIER", "Doorbells"]

NOTIFY_MULTIPLIER = 4  # bytes between two queues' notification addresses; queue_notify_off is the queue's index
_ANY_WIDTH = 0


class Doorbells:
    """The notification structure of one device: `count` queues. A BusDevice; also owns the kick eventfds."""

    def __init__(self, services: PciServices, count: int) -> None:
        self._services = services
        self._count = count
        self._kicks: list[int] = []
        self._registered: list[IoEventFd] = []
        self._base: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the structure."""
        return max(self._count, 1) * NOTIFY_MULTIPLIER

    def open(self) -> Sequence[int]:
        """The device goes live: new kick eventfds, non-blocking, one a queue. Raises HostError."""
        try:
            for _ in range(self._count):
                self._kicks.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        except OSError as exc:
            self.close()
            raise HostError("making a kick eventfd", exc.errno or 0) from exc
        self._register()
        return tuple(self._kicks)

    def close(self) -> None:
        """The device has stopped and reads its eventfds no more. Idempotent."""
        self._unregister()
        for fd in self._kicks:
            os.close(fd)
        self._kicks.clear()

    def moved(self, base: int | None) -> None:
        """The structure lies at MMIO address `base` from now on, or nowhere."""
        self._unregister()
        self._base = base
        self._register()

    def read(self, offset: int, size: int) -> bytes:
        """Nothing is defined to be read here."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """A notification that came as an exit. Dropped while the device is not live, as is one across two queues."""
        index = offset // NOTIFY_MULTIPLIER
        if index < len(self._kicks) and offset % NOTIFY_MULTIPLIER == 0:
            lib.avmm_event_signal(
                self._kicks[index]
            )  # a back end in another process may have it: no write that could wait

    def _register(self) -> None:
        if self._base is None:
            return
        for index, fd in enumerate(self._kicks):
            address = self._base + index * NOTIFY_MULTIPLIER
            registered = self._services.ioeventfd(Space.MMIO, address, _ANY_WIDTH, fd)
            if registered is not None:
                self._registered.append(registered)

    def _unregister(self) -> None:
        for registered in self._registered:
            registered.close()
        self._registered.clear()
