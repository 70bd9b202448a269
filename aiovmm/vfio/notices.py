"""What the host says of a device while a guest has it: an error that cannot be recovered from, or that it wants it back."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Protocol

from aiovmm.errors import HostError
from aiovmm.vfio.abi import Irq, IrqInfo
from aiovmm.vfio.interrupts import IrqSource

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


class NoticeSource(IrqSource, Protocol):
    """See HostDevice."""

    name: str
    irqs: dict[Irq, IrqInfo]


class Notices:
    """Listens from `open` to `close` and calls `on_error(name, exc)`, once a kind: a request is repeated until it is met."""

    def __init__(self, source: NoticeSource, on_error: Callable[[str, Exception], None]) -> None:
        self._source = source
        self._on_error = on_error
        self._fds: dict[Irq, int] = {}

    def open(self) -> None:
        """Kinds that this kernel does not have are left out. Raises HostError."""
        loop = asyncio.get_running_loop()
        for kind in _MEANING:
            info = self._source.irqs.get(kind)
            if info is None or not info.count:
                continue
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds[kind] = fd
            loop.add_reader(fd, self._heard, kind)
            self._source.set_irqs(kind, 0, [fd])

    def close(self) -> None:
        """Idempotent. Raises HostError, with nothing left open."""
        errors: list[HostError] = []
        for kind in list(self._fds):
            try:
                self._source.irqs_off(kind)
            except HostError as exc:
                errors.append(exc)
            fd = self._fds.pop(kind)
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        if errors:
            raise errors[0]

    def _heard(self, kind: Irq) -> None:
        asyncio.get_running_loop().remove_reader(self._fds[kind])
        code, what, hint = _MEANING[kind]
        self._on_error(self._source.name, HostError(f"{self._source.name} {what}", code, hint))
