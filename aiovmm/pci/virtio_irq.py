"""Which MSI-X vector a virtio notification goes to, looked up when it is sent: the driver may change its mind."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.pci.msix_lines import MsixVectors

__all__ = ["IsrStatus", "VirtioInterrupt"]

ISR_QUEUE = 1
ISR_CONFIG = 2


class IsrStatus:
    """The ISR structure (VIRTIO 1.2, 4.1.4.5): one byte, cleared by reading it. A BusDevice."""

    SIZE = 4

    def __init__(self) -> None:
        self.bits = 0

    def read(self, offset: int, size: int) -> bytes:
        """The bits, which it clears."""
        bits, self.bits = (self.bits, 0) if offset == 0 else (0, self.bits)
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
        """Notify the driver. Without a vector nothing is sent: there is no INTx."""
        vectors, vector = self._vectors, self._vector()
        # 4.1.4.5.1: the configuration bit always, the queue bit only while MSI-X is disabled
        if self._bit == ISR_CONFIG or not vectors.table.enabled:
            self._isr.bits |= self._bit
        send = vectors.open.get(vector)
        if send is not None:
            send()
        elif vector < vectors.table.vectors:
            vectors.pulse(vector)

    @property
    def fd(self) -> int | None:
        """An eventfd to signal instead, for a back end in another process; None without a vector. Raises HostError."""
        vector = self._vector()
        return self._vectors.share(vector) if vector < self._vectors.table.vectors else None
