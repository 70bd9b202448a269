"""Where a virtio notification goes, an MSI-X vector or the pin, looked up when it is sent: the driver may change its mind."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.pci.msix_lines import MsixVectors

__all__ = ["IsrStatus", "VirtioInterrupt"]

ISR_QUEUE = 1
ISR_CONFIG = 2


class IsrStatus:
    """The ISR structure (VIRTIO 1.2, 4.1.4.5): one byte, cleared by reading it. A BusDevice."""

    SIZE = 4

    def __init__(self, changed: Callable[[int], None]) -> None:
        """`changed` is called with the bits when one was set, or all were cleared."""
        self.bits = 0
        self._changed = changed

    def set(self, bit: int) -> None:
        """Something happened that the driver will ask for."""
        if not self.bits & bit:
            self.bits |= bit
            self._changed(self.bits)

    def clear(self) -> None:
        """The driver has seen it, or was reset."""
        if self.bits:
            self.bits = 0
            self._changed(0)

    def read(self, offset: int, size: int) -> bytes:
        """The bits, which it clears."""
        if offset:
            return bytes(size)
        bits = self.bits
        self.clear()
        return bits.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Dropped."""


class VirtioInterrupt:
    """An IrqLine for a queue (`bit` ISR_QUEUE) or for the configuration (ISR_CONFIG); `vector` says where it goes now."""

    def __init__(self, vectors: MsixVectors, isr: IsrStatus, bit: int, vector: Callable[[], int]) -> None:
        self._vectors = vectors
        self._isr = isr
        self._bit = bit
        self._vector = vector

    def pulse(self) -> None:
        """Notify the driver: by its vector, or while MSI-X is off by the function's pin, which follows the ISR."""
        vectors, vector = self._vectors, self._vector()
        # 4.1.4.5.1: the configuration bit always, the queue bit only while MSI-X is disabled
        if self._bit == ISR_CONFIG or not vectors.table.enabled:
            self._isr.set(self._bit)
        send = vectors.open.get(vector)
        if send is not None:
            send()
        elif vector < vectors.table.vectors:
            vectors.pulse(vector)

    @property
    def fd(self) -> int | None:
        """An eventfd to signal instead, for a back end in another process; None without a vector: `pulse` it, unless it is
        `silent`. Raises HostError."""
        vector = self._vector()
        return self._vectors.share(vector) if vector < self._vectors.table.vectors else None

    @property
    def silent(self) -> bool:
        """The driver has MSI-X on and no vector here: it polls."""
        table = self._vectors.table
        return table.enabled and self._vector() >= table.vectors
