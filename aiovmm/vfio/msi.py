"""The MSI capability of a passed-through device, emulated: where its messages go. PCI Local Bus 3.0, 6.8.1. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from aiovmm.pci.config_space import ConfigSpace

__all__ = ["MsiCapability", "MsiMessage"]

_ENABLE, _CAPABLE, _ENABLED, _WIDE, _MASKABLE = 0x0001, 0x000E, 0x0070, 0x0080, 0x0100


@dataclass(frozen=True)
class MsiMessage:
    """What one vector sends, unless `masked`."""

    address: int
    data: int
    masked: bool


class MsiCapability:
    """Registers at `offset` of `config`; its shape (64-bit addresses, masking, vectors) is the host device's `control`."""

    def __init__(self, config: ConfigSpace, offset: int, control: int) -> None:
        self.offset = offset
        self.wide = bool(control & _WIDE)
        self.maskable = bool(control & _MASKABLE)
        self.capable = 1 << min((control & _CAPABLE) >> 1, 5)
        self.size = 10 + 4 * self.wide + 10 * self.maskable
        self._config = config
        self._data = offset + (12 if self.wide else 8)
        shape = control & (_CAPABLE | _WIDE | _MASKABLE)
        config.define(offset + 2, shape, 2, writable=_ENABLE | _ENABLED)
        config.define(offset + 4, 0, 4, writable=0xFFFF_FFFC)
        if self.wide:
            config.define(offset + 8, 0, 4, writable=0xFFFF_FFFF)
        config.define(self._data, 0, 2, writable=0xFFFF)
        if self.maskable:
            config.define(self._data + 4, 0, 4, writable=(1 << self.capable) - 1)
            config.define(self._data + 8, 0, 4)

    @property
    def vectors(self) -> int:
        """How many are on: 0, or a power of two up to `capable`."""
        control = self._config.get(self.offset + 2, 2)
        return min(1 << ((control & _ENABLED) >> 4), self.capable) if control & _ENABLE else 0

    def message(self, vector: int) -> MsiMessage:
        """What `vector` sends: the low bits of the data are its number."""
        address = self._config.get(self.offset + 4, 8 if self.wide else 4)
        data = self._config.get(self._data, 2) & ~(max(self.vectors, 1) - 1) | vector
        masked = self.maskable and bool(self._config.get(self._data + 4, 4) >> vector & 1)
        return MsiMessage(address, data, masked)
