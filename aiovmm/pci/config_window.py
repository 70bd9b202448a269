"""The PCI configuration access capability (VIRTIO 1.2, 4.1.4.9): BARs through configuration space, for early firmware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.pci.capabilities import VENDOR, VirtioCap, VirtioCapType
from aiovmm.pci.config_space import ConfigSpace, overlaps

__all__ = ["ConfigWindow", "add_window"]

_BAR, _OFFSET, _LENGTH, _DATA = 4, 8, 12, 16
_DATA_SIZE = 4


def add_window(config: ConfigSpace) -> int:
    """Append the capability to `config`; its offset."""
    body = VirtioCap(VirtioCapType.PCI_CFG, 0, 0, 0).body(bytes(_DATA_SIZE))
    writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12  # bar, offset, length, data
    return config.add_capability(VENDOR, body, writable)


class ConfigWindow:
    """The capability at `at` in `config`.

    Length must be 1, 2 or 4 and the offset a multiple of it (4.1.4.9.2); else nothing is accessed.
    """

    def __init__(self, config: ConfigSpace, at: int) -> None:
        self._at = at
        self._config = config

    @property
    def data(self) -> tuple[int, int]:
        """(offset, size) of the data register in configuration space: reading it does something."""
        return self._at + _DATA, _DATA_SIZE

    def before_read(self, offset: int, size: int, read: Callable[[int, int, int], bytes]) -> None:
        """The guest reads configuration space: if it touches the data, fetch it by `read(bar, offset, size)`."""
        target = self._target()
        if target is not None and overlaps(offset, size, *self.data):
            value = read(*target)
            self._config.data[self._at + _DATA : self._at + _DATA + len(value)] = value

    def after_write(
        self, offset: int, size: int, write: Callable[[int, int, bytes], Awaitable[None] | None]
    ) -> Awaitable[None] | None:
        """The guest wrote configuration space: if it touched the data, pass it on by `write(bar, offset, data)`."""
        target = self._target()
        if target is None or not overlaps(offset, size, *self.data):
            return None
        bar, at, length = target
        return write(bar, at, self._config.read(self._at + _DATA, length))

    def _target(self) -> tuple[int, int, int] | None:
        bar = self._config.get(self._at + _BAR, 1)
        offset = self._config.get(self._at + _OFFSET, 4)
        length = self._config.get(self._at + _LENGTH, 4)
        if length not in (1, 2, 4) or offset % length:
            return None
        return bar, offset, length
