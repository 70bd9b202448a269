"""Configuration mechanism #1: ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, 3.2.2.3.2), for segment 0, and the reset port.

0xCF8 is a register for dword accesses only; narrower ones are other ports (Linux's probe writes a byte to 0xCFB and
expects nothing). 0xCF9 among them is the reset control register.

A vCPU writes the address into the shadow itself, and accesses data as it does the ECAM's page that the address names (see
FastPage): what Linux does of both, hundreds of times at its start and each time that a device comes, mostly waits for nobody.
Guests take a lock around both accesses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.bus import FastPage, Policy
from aiovmm.pci.segment import PciSegment
from aiovmm.runtime.plain import Fields, State

__all__ = ["CONFIG_PORTS", "CONFIG_PORTS_SIZE", "ConfigPorts"]

CONFIG_PORTS = 0xCF8
CONFIG_PORTS_SIZE = 8
_RESET_CONTROL = 1  # 0xCF9
_DATA = 4  # 0xCFC
_ENABLE = 1 << 31
_ADDRESS_BITS = 0x80FFFFFC
_RESET_CPU = 0x04  # a rising edge resets; bit 1 says how hard, which is the same to us


class ConfigPorts:
    """A BusDevice of 8 ports at 0xCF8. `reset` is called when the guest asks 0xCF9 for one."""

    def __init__(self, segment: PciSegment, reset: Callable[[], None] | None = None) -> None:
        self._segment = segment
        self._reset = reset
        self._reset_control = 0
        self.fast = FastPage(CONFIG_PORTS_SIZE)
        self.fast.policy[:_DATA] = bytes([Policy.LATCH_WRITE]) * _DATA
        self.fast.policy[0] |= Policy.POSTED_DWORD | Policy.IGNORE_WRITE
        self.fast.ecam = segment.plan.ecam_base

    def read(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """The address register, the data window, or the reset control byte; ones elsewhere."""
        if offset >= _DATA:
            target = self._target(offset)
            return b"\xff" * size if target is None else self._segment.read_config(*target, size)
        if offset == 0 and size == 4:
            return self._address.to_bytes(4, "little")
        if offset == _RESET_CONTROL and size == 1:
            return bytes([self._reset_control])
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """See `read`."""
        if offset >= _DATA:
            target = self._target(offset)
            return None if target is None else self._segment.write_config(*target, data)
        if offset == 0 and len(data) == 4:
            self.fast.shadow[:_DATA] = data
        elif offset == _RESET_CONTROL and len(data) == 1:
            self._write_reset_control(data[0])
        return None

    def save(self) -> State:
        """Both registers."""
        return {"address": self._address, "reset_control": self._reset_control}

    def load(self, state: State) -> None:
        """Raises SnapshotError."""
        fields = Fields(state, "PCI configuration ports")
        address, reset = fields.number("address", 0, 0xFFFFFFFF), fields.number("reset_control", 0, 0xFF)
        fields.end()
        self.fast.shadow[:_DATA] = address.to_bytes(_DATA, "little")
        self._reset_control = reset & 0x0E & ~_RESET_CPU

    @property
    def _address(self) -> int:
        return int.from_bytes(self.fast.shadow[:_DATA], "little") & _ADDRESS_BITS

    def _target(self, offset: int) -> tuple[int, int] | None:
        """(slot, register) that the data window shows, or None: off, another bus, or a function but 0."""
        address = self._address
        bus, slot, function = address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 0x7
        if not address & _ENABLE or bus or function:
            return None
        return slot, (address & 0xFC) + offset - _DATA

    def _write_reset_control(self, value: int) -> None:
        rising = value & ~self._reset_control & _RESET_CPU
        self._reset_control = value & 0x0E & ~_RESET_CPU
        if rising and self._reset is not None:
            self._reset()
