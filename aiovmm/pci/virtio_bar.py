"""BAR 0 of a virtio-pci function: where its structures lie, and the two of them that need an adapter to the bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache

from aiovmm.bus import BusDevice, FastPage, Policy
from aiovmm.errors import GuestError
from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.capabilities import MSIX, VENDOR, VirtioCap, VirtioCapType, msix
from aiovmm.pci.common_config import ACTING, COMMON_SIZE, CommonConfig
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.config_window import add_window
from aiovmm.pci.doorbells import NOTIFY_MULTIPLIER, Doorbells, notify_size
from aiovmm.pci.function import BarRegion
from aiovmm.pci.msix_lines import MsixPendingBits, MsixTableRegisters, MsixVectors
from aiovmm.pci.virtio_irq import IsrStatus
from aiovmm.runtime.dataclass import dataclass
from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["BAR", "MAX_QUEUES", "NOTIFY", "CommonRegisters", "DeviceRegisters", "VirtioStructures", "laid_out"]

BAR = Bar(0, BarKind.MEM64, 0x10000)
ISR, DEVICE, NOTIFY, PBA, TABLE = 0x1000, 0x2000, 0x3000, 0x7000, 0x8000
DEVICE_SIZE = 0x1000
MAX_QUEUES = (PBA - NOTIFY) // NOTIFY_MULTIPLIER


@dataclass(frozen=True)
class VirtioStructures:
    """What stands in the BAR."""

    common: CommonRegisters
    isr: IsrStatus
    device: DeviceRegisters
    doorbells: Doorbells
    vectors: MsixVectors

    def regions(self, name: str) -> list[BarRegion]:
        """All of it, at its place."""
        table, pending = MsixTableRegisters(self.vectors), MsixPendingBits(self.vectors)
        parts: list[tuple[int, int, BusDevice, str, FastPage | None]] = [
            (0, COMMON_SIZE, self.common, "common", self.common.fast),
            (ISR, IsrStatus.SIZE, self.isr, "isr", None),
            (DEVICE, DEVICE_SIZE, self.device, "device", self.device.fast),
            (NOTIFY, self.doorbells.size, self.doorbells, "notify", None),
            (PBA, len(self.vectors.table.pending), pending, "pba", None),
            (TABLE, len(self.vectors.table.table), table, "msix", table.fast),
        ]
        return [BarRegion(0, at, size, device, f"{name} {part}", fast) for at, size, device, part, fast in parts]


@dataclass(frozen=True, eq=False)
class Layout:
    """The registers of a function, to be copied, and where the capabilities are in them that it looks at."""

    config: ConfigSpace
    msix: int
    window: int
    still: bytes


@lru_cache(64)
def laid_out(identity: Identity, queues: int) -> Layout:
    """Of a function with so many queues, which tells the driver where its structures are: it is the same in each."""
    config = ConfigSpace(identity)
    for kind, offset, length, extra in (
        (VirtioCapType.COMMON, 0, COMMON_SIZE, b""),
        (VirtioCapType.ISR, ISR, IsrStatus.SIZE, b""),
        (VirtioCapType.DEVICE, DEVICE, DEVICE_SIZE, b""),
        (VirtioCapType.NOTIFY, NOTIFY, notify_size(queues), NOTIFY_MULTIPLIER.to_bytes(4, "little")),
    ):
        config.add_capability(VENDOR, VirtioCap(kind, 0, offset, length).body(extra))
    body, writable = msix(queues + 1, bar=0, table=TABLE, pba=PBA)
    at = config.add_capability(MSIX, body, writable)
    BAR.install(config)
    return Layout(config, at, add_window(config), config.still())


_COMMON_POLICY = bytes(
    Policy.SHADOW_READ | (0 if at in ACTING else Policy.DROP_SAME) for at in range(COMMON_SIZE)
)  # Linux selects the queue that is selected before each of its registers, and writes the zeros in the addresses' upper halves


class CommonRegisters:
    """The common configuration on the bus. Reads do not wait, nor do writes of what a register holds."""

    def __init__(self, common: CommonConfig, write: Callable[[int, bytes], Awaitable[None] | None]) -> None:
        self._write = write
        self._common = common
        self.fast = FastPage(COMMON_SIZE, common.image)
        self.fast.policy[:] = _COMMON_POLICY

    def read(self, offset: int, size: int) -> bytes:
        """The registers as they are."""
        return bytes(self._common.image[offset : offset + size])

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """A register write."""
        return self._write(offset, data)


@lru_cache(64)
def _lasting_policy(parts: tuple[tuple[int, int], ...]) -> bytes:
    """Of a device's own configuration, of which these (offset, size) stay as they are."""
    policy = bytearray(DEVICE_SIZE)
    for at, size in parts:
        policy[at : at + size] = bytes([Policy.SHADOW_READ]) * size
    return bytes(policy)


class DeviceRegisters:
    """The device's own configuration on the bus; `fast` if parts of it stay as they are."""

    def __init__(self, device: VirtioDevice, broken: Callable[[Exception], None]) -> None:
        self._device = device
        self._broken = broken
        self.fast: FastPage | None = None
        if parts := device.lasting_config:
            shown = bytearray(device.read_config(0, max(at + size for at, size in parts)))
            self.fast = FastPage(DEVICE_SIZE, shown, _lasting_policy(parts))

    def read(self, offset: int, size: int) -> bytes:
        """What the device says."""
        return self._device.read_config(offset, size)

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """What it does not understand breaks it, as a malformed request does."""
        try:
            pending = self._device.write_config(offset, data)
        except GuestError as exc:
            self._broken(exc)
            return None
        return None if pending is None else self._finish(pending)

    async def _finish(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception as exc:  # the border, as for all that a device does on its own
            self._broken(exc)
