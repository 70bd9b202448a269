"""What firmware tells a guest of PCI, by whatever tables: segments, their windows and wires, and a virtio-iommu. Pure."""

from __future__ import annotations

from aiovmm.boot.checks import U16, U32, U64, require, require_window
from aiovmm.runtime.dataclass import dataclass

__all__ = ["EndpointRange", "IntxWire", "PciSegment", "VirtioIommu", "Window"]

MAX_SEGMENTS = 256  # host bridges are named PC00 to PCFF
_SLOTS = 32


@dataclass(frozen=True)
class Window:
    """`size` addresses from `base` that a host bridge passes on to its bus."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the window."""
        return self.base + self.size


@dataclass(frozen=True)
class IntxWire:
    """INTA of the device in `slot` of the first bus is global system interrupt `gsi`, level-triggered; it may be shared."""

    slot: int
    gsi: int


@dataclass(frozen=True)
class PciSegment:
    """A PCI segment group with one host bridge. `ecam_base` is where bus 0 would be; `end_bus` is included."""

    segment: int
    ecam_base: int
    mmio32: Window | None = None
    mmio64: Window | None = None
    io: tuple[Window, ...] = ()
    start_bus: int = 0
    end_bus: int = 0
    intx: tuple[IntxWire, ...] = ()
    bridge: bool = True  # has slot 0

    @property
    def ecam(self) -> Window:
        """The part of the configuration space that this segment's buses have: 1 MiB a bus."""
        return Window(self.ecam_base + (self.start_bus << 20), (self.end_bus - self.start_bus + 1) << 20)

    @property
    def memory(self) -> list[Window]:
        """All memory addresses that belong to the segment."""
        return [w for w in (self.ecam, self.mmio32, self.mmio64) if w is not None]

    def __post_init__(self) -> None:
        option = f"acpi.pci_segments[{self.segment}]"
        require(0 <= self.segment < MAX_SEGMENTS, option, f"a segment's number must be in 0..{MAX_SEGMENTS - 1}")
        require(0 <= self.start_bus <= self.end_bus <= 255, option, "its buses must be a range in 0..255")
        require(self.ecam_base % (1 << 20) == 0, option, f"ECAM at {self.ecam_base:#x} is not aligned to 1 MiB")
        require_window(f"{option}.ecam", self.ecam, U32)
        if self.mmio32 is not None:
            require_window(f"{option}.mmio32", self.mmio32, U32)
        if self.mmio64 is not None:
            require_window(f"{option}.mmio64", self.mmio64, U64)
        for window in self.io:
            require_window(f"{option}.io", window, U16)
            require(window.size < U16, f"{option}.io", "the window must be smaller than all ports")
        slots = [wire.slot for wire in self.intx]
        require(all(0 <= slot < _SLOTS for slot in slots), f"{option}.intx", f"slots are 0..{_SLOTS - 1}")
        require(len(set(slots)) == len(slots), f"{option}.intx", "a slot's INTA has one wire")


@dataclass(frozen=True)
class EndpointRange:
    """PCI functions `first_bdf` to `last_bdf` (bus << 8 | device << 3 | function, included) of one segment."""

    segment: int
    first_bdf: int
    last_bdf: int

    @property
    def endpoint_id(self) -> int:
        """The virtio-iommu endpoint ID of the first of them; the others follow."""
        return self.segment << 16 | self.first_bdf

    def __post_init__(self) -> None:
        option = "acpi.iommu.endpoints"
        require(0 <= self.segment < U16, option, f"there is no PCI segment {self.segment}")
        require(0 <= self.first_bdf <= self.last_bdf < U16, option, "a range of BDFs must lie in 0..0xffff")


@dataclass(frozen=True)
class VirtioIommu:
    """A virtio-iommu on PCI function `bdf` of `segment`, and the functions whose DMA goes through it."""

    segment: int
    bdf: int
    endpoints: tuple[EndpointRange, ...] = ()

    def __post_init__(self) -> None:
        option = "acpi.iommu"
        require(0 <= self.segment < U16 and 0 <= self.bdf < U16, option, "there is no such PCI function")
        for r in self.endpoints:
            own = r.segment == self.segment and r.first_bdf <= self.bdf <= r.last_bdf
            require(not own, option, "the IOMMU cannot be behind itself")
