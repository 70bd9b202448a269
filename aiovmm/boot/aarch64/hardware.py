"""What the device tree describes, as plain data. The machine gives the same numbers to its devices and to KVM."""

from __future__ import annotations

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.checks import require, require_apart
from aiovmm.boot.pci import PciSegment, VirtioIommu
from aiovmm.runtime.dataclass import dataclass

__all__ = ["GPIO", "RTC", "UART", "CpuTopology", "Hardware", "PrimeCell", "Seeds"]

_MPIDR_AFFINITY = 0xFF_00FF_FFFF  # Aff3, and Aff2 to Aff0 (DDI 0487, MPIDR_EL1)
_SPIS = 988


@dataclass(frozen=True)
class PrimeCell:
    """A peripheral of Arm's: its registers' address, its SPI (level-triggered), and the four PeriphID registers as one number.

    The number is in the tree so that the guest need not read eight registers for it, an exit each.
    """

    base: int
    spi: int
    peripheral_id: int

    def __post_init__(self) -> None:
        require(0 <= self.spi < _SPIS, "hardware.spi", f"there is no SPI {self.spi}")


UART = PrimeCell(layout.UART, layout.UART_SPI, 0x00141011)
RTC = PrimeCell(layout.RTC, layout.RTC_SPI, 0x00141031)
GPIO = PrimeCell(layout.GPIO, layout.GPIO_SPI, 0x00141061)


@dataclass(frozen=True)
class CpuTopology:
    """How the guest sees its processors laid out: `threads` a core, `cores` a cluster, `clusters` a package."""

    threads: int = 1
    cores: int = 1
    clusters: int = 1

    def place(self, index: int) -> tuple[int, int, int, int]:
        """(package, cluster, core, thread) of processor `index`."""
        core, thread = divmod(index, self.threads)
        cluster, core = divmod(core, self.cores)
        package, cluster = divmod(cluster, self.clusters)
        return package, cluster, core, thread


@dataclass(frozen=True)
class Seeds:
    """Randomness for a guest that has none yet: `rng` for its random numbers, `kaslr` for where its kernel is (0: do not)."""

    rng: bytes
    kaslr: int


@dataclass(frozen=True)
class Hardware:
    """A machine. `mpidrs` are MPIDR_EL1 of each vCPU as KVM has it; `topology` None is one package of cores; `pmu`: they have a
    PMUv3; `uart`, `rtc` and `gpio` may be absent; `generation`: it says which machine it is (layout.GENERATION). The GSI of a PCI
    segment's wire is the number of an SPI.

    Raises ConfigError for a machine that a tree cannot describe.
    """

    mpidrs: tuple[int, ...]
    gic: layout.Gic
    pci_segments: tuple[PciSegment, ...] = ()
    topology: CpuTopology | None = None
    pmu: bool = False
    uart: PrimeCell | None = UART
    rtc: PrimeCell | None = RTC
    gpio: PrimeCell | None = GPIO
    generation: bool = False
    iommu: VirtioIommu | None = None

    @property
    def affinities(self) -> tuple[int, ...]:
        """What `reg` of each processor's node holds."""
        return tuple(mpidr & _MPIDR_AFFINITY for mpidr in self.mpidrs)

    def __post_init__(self) -> None:
        require(bool(self.mpidrs), "hardware.cpus", "a machine has at least one processor")
        require(len(self.mpidrs) == self.gic.vcpus, "hardware.gic", "there is a redistributor for each processor")
        require(len(set(self.affinities)) == len(self.mpidrs), "hardware.cpus", "two have the same affinity")
        numbers = [s.segment for s in self.pci_segments]
        require(len(set(numbers)) == len(numbers), "hardware.pci_segments", "two have the same number")
        require_apart("hardware.pci_segments", [w for s in self.pci_segments for w in s.memory])
        for wire in (wire for segment in self.pci_segments for wire in segment.intx):
            require(0 <= wire.gsi < _SPIS, "hardware.pci_segments.intx", f"there is no SPI {wire.gsi}")
        if self.iommu is not None:
            require(self.iommu.segment in numbers, "hardware.iommu", f"there is no PCI segment {self.iommu.segment}")
