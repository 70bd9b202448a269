"""What the host says of a device while a guest has it: an error that cannot be recovered from, or that it wants it back."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

from aiovmm.errors import HostError
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.calls import DeviceCalls
from aiovmm.vfio.device import HostDevice

__all__ = ["Notices"]

_MEANING = {
    Irq.ERR: (
        errno.EIO,
        "has reported an error that cannot be recovered from",
        "stop the guest; then see the host's log",
    ),
    Irq.REQ: (
        errno.EBUSY,
        "is wanted back by the host (it is to be unbound or removed)",
        "stop the guest, or unplug it",
    ),
}


class Notices:
    """Listens from `open` to `close` and calls `on_error(name, exc)`, once a kind: a request is repeated until it is met."""

    def __init__(self, device: HostDevice, calls: DeviceCalls, on_error: Callable[[str, Exception], None]) -> None:
        self._device = device
        self._calls = calls
        self._on_error = on_error
        self._fds: dict[Irq, int] = {}

    def open(self) -> None:
        """Kinds that this kernel does not have are left out."""
        loop = asyncio.get_running_loop()
        for kind in _MEANING:
            info = self._device.irqs.get(kind)
            if info is None or not info.count:
                continue
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds[kind] = fd
            loop.add_reader(fd, self._heard, kind)
            self._calls.turn_on(kind, [fd])

    def close(self) -> None:
        """Idempotent."""
        for kind in list(self._fds):
            fd = self._fds.pop(kind)
            asyncio.get_running_loop().remove_reader(fd)
            self._calls.turn_off(kind)
            self._calls.close_fd(fd)

    def _heard(self, kind: Irq) -> None:
        asyncio.get_running_loop().remove_reader(self._fds[kind])
        code, what, hint = _MEANING[kind]
        self._on_error(self._device.name, HostError(f"{self._device.name} {what}", code, hint))
