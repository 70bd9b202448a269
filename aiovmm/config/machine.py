"""The machine itself: memory, what to boot, platform."""

from __future__ import annotations

import enum
from pathlib import Path

from aiovmm.config.checks import check_descriptor, check_id, check_path, encoded
from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError

__all__ = [
    "HotplugMethod",
    "MemoryConfig",
    "MemoryZoneConfig",
    "NumaConfig",
    "PayloadConfig",
    "PciSegmentConfig",
    "PlatformConfig",
    "bare_uuid",
]

MIB = 1 << 20
MAX_SEGMENTS = 96  # as the reference's: the ECAM window has room for 160, and each has a share of the memory windows
MAX_MEMORY = 1 << 52  # bytes: no processor has a wider physical address
PAGE = 4096
MODULE = 128 * MIB  # what Linux takes and gives back as a whole, at least
MAX_MODULES = 256  # each is in the firmware's tables, and has a port
BLOCK = 2 * MIB  # of virtio-mem
_THP_FROM = (
    64 * MIB
)  # a guest that fills its memory is through 0.3 ms a MiB earlier with huge pages; one that does not has 2 MiB more
MIN_IOMMU_WIDTH = 32  # messages of devices go to addresses below 4 GiB
MAX_WEIGHT = 512  # shares: a window has room for 640 of the smallest
MAX_NODES = 64  # distances are a square of them
MAX_HOST_NODE = 1023
MAX_CMDLINE = 64 * 1024 - 1
MAX_IDENTITY = 47 * 1024  # bytes: the firmware's area for all of them together


class HotplugMethod(enum.Enum):
    """How memory comes while a guest runs: as modules that ACPI tells of, or in blocks of a virtio-mem device."""

    ACPI = "acpi"
    VIRTIO_MEM = "virtio-mem"


@dataclass(frozen=True)
class MemoryConfig:
    """Guest RAM: `size` in bytes. `shared` memory can be given to other processes (None: if a device needs that, vhost-user
    does); memory that is not has huge pages where the kernel finds some, if `thp` is on (None: from 64 MiB on, for one that a
    small guest has barely touched takes more memory than all the rest of it). `hugepages` are those that the host has
    reserved, of `hugepage_size` bytes (None: of its default size). `prefault` touches every page now; `reserve` has the
    kernel promise all of it now, or refuse. `mergeable` lets the kernel hold pages that are equal in several guests once
    (KSM), if its administrator has switched that on. While the guest runs, `hotplug_size` bytes more can come and go
    (`vm.resize`) by `hotplug_method`; `hotplugged_size` of them are there from the start.
    """

    size: int = 512 * MIB
    shared: bool | None = None
    hugepages: bool = False
    prefault: bool = False
    thp: bool | None = None
    mergeable: bool = False
    hotplug_size: int = 0
    hotplugged_size: int = 0
    hotplug_method: HotplugMethod = HotplugMethod.ACPI
    hugepage_size: int | None = None
    reserve: bool = False

    def __post_init__(self) -> None:
        if 0 < self.size < 2 * MIB or self.size < 0:
            raise ConfigError(
                "memory.size", f"{self.size} bytes are too few", "give at least 2M; Linux wants about 64M"
            )
        _check_huge_pages("memory", self.hugepages, self.hugepage_size, self.size)
        if self.size >= MAX_MEMORY:
            raise ConfigError("memory.size", f"{self.size} bytes are more than a processor can address")
        if self.size % PAGE:
            raise ConfigError("memory.size", f"{self.size} bytes are not a multiple of the page size, {PAGE}")
        if self.mergeable and (self.shared or self.hugepages):
            other = "hugepages" if self.hugepages else "shared"
            raise ConfigError(
                "memory.mergeable", f"does not go with {other}=on", "the kernel merges private, small pages"
            )
        if self.hotplug_size or self.hotplugged_size:
            self._check_hotplug()

    def _check_hotplug(self) -> None:
        by_modules = self.hotplug_method is HotplugMethod.ACPI
        _check_hotplug_size("memory", self.size, self.hotplug_size, PAGE if by_modules else MODULE)
        step = self.module_size if by_modules else BLOCK
        there, most = self.hotplugged_size, self.modules_size if by_modules else self.hotplug_size
        if not 0 <= there <= most or (there % step and (there != most or step == BLOCK)):
            reason = f"{there} bytes are not a multiple of {step >> 20}M up to hotplug_size, {most}"
            raise ConfigError("memory.hotplugged_size", reason)

    @property
    def modules_size(self) -> int:
        """Bytes that memory modules of ACPI can have in all: Linux takes no part of 128 MiB."""
        return self.hotplug_size - self.hotplug_size % MODULE

    @property
    def module_size(self) -> int:
        """Bytes of a memory module of ACPI: 128 MiB, or as much more as it takes to do with MAX_MODULES of them."""
        return max(-(-self.hotplug_size // (MODULE * MAX_MODULES)), 1) * MODULE

    @property
    def wants_huge_pages(self) -> bool:
        """Whether the kernel is asked for them: what `thp` says, or the size."""
        return self.size >= _THP_FROM if self.thp is None else self.thp


def _check_hotplug_size(option: str, size: int, more: int, step: int) -> None:
    if more < 0 or more % step:
        unit = "128M" if step == MODULE else "the page size"
        raise ConfigError(f"{option}.hotplug_size", f"{more} bytes are not a multiple of {unit}")
    if size + more >= MAX_MEMORY:
        raise ConfigError(f"{option}.hotplug_size", "with size= it is more than a processor can address")


def _check_huge_pages(option: str, hugepages: bool, page: int | None, size: int) -> None:
    if page is not None and not hugepages:
        raise ConfigError(f"{option}.hugepage_size", "is given without hugepages=on")
    if page is not None and (page & (page - 1) or not 64 << 10 <= page <= 16 << 30):
        raise ConfigError(f"{option}.hugepage_size", f"{page} is no size of huge pages", "2M and 1G are usual")
    if hugepages and size % (page or 2 * MIB):
        raise ConfigError(
            f"{option}.size", f"{size} bytes are not a multiple of a huge page, {(page or 2 * MIB) >> 20}M"
        )


@dataclass(frozen=True, kw_only=True)
class MemoryZoneConfig:
    """A part of the guest's RAM, `size` bytes, with its own backing; parts follow each other in the order given, and
    `memory.size` is 0. `file` is a file to be it, at least as large, or a directory for a file without a name; a hugetlbfs
    has its own pages. `host_numa_node`: the node of the host that its pages come from. `hotplug_size` bytes more come and go by a
    virtio-mem device of its own, which is in the zone's NUMA node, and are not in `file`; a zone may have no other memory
    (`size` 0). The rest is as for MemoryConfig, and None is what that says (`hugepages` not for a zone with a file)."""

    id: str
    size: int = 512 * MIB
    file: Path | None = None
    shared: bool | None = None
    hugepages: bool | None = None
    hugepage_size: int | None = None
    host_numa_node: int | None = None
    prefault: bool | None = None
    reserve: bool | None = None
    mergeable: bool | None = None
    hotplug_size: int = 0
    hotplugged_size: int = 0

    def __post_init__(self) -> None:
        check_id("memory_zone.id", self.id)
        if self.size < 0 or self.size % PAGE or self.size >= MAX_MEMORY or not (self.size or self.hotplug_size):
            raise ConfigError("memory_zone.size", f"{self.size} bytes are not a number of pages")
        _check_huge_pages("memory_zone", bool(self.hugepages), self.hugepage_size, self.size)
        if self.file is not None:
            check_path("memory_zone.file", self.file)
            if self.hugepages:
                raise ConfigError("memory_zone.hugepages", "does not go with file=", "give a file of a hugetlbfs")
        if self.host_numa_node is not None and not 0 <= self.host_numa_node <= MAX_HOST_NODE:
            raise ConfigError("memory_zone.host_numa_node", f"{self.host_numa_node} is not in 0..{MAX_HOST_NODE}")
        if self.mergeable and (self.shared or self.hugepages or self.file):
            raise ConfigError("memory_zone.mergeable", "does not go with pages that the kernel does not merge")
        if self.hotplug_size or self.hotplugged_size:
            self._check_hotplug()

    def _check_hotplug(self) -> None:
        _check_hotplug_size("memory_zone", self.size, self.hotplug_size, MODULE)
        if not 0 <= self.hotplugged_size <= self.hotplug_size or self.hotplugged_size % BLOCK:
            reason = f"{self.hotplugged_size} bytes are not a multiple of 2M up to hotplug_size, {self.hotplug_size}"
            raise ConfigError("memory_zone.hotplugged_size", reason)


@dataclass(frozen=True, kw_only=True)
class NumaConfig:
    """A NUMA node of the guest: which of its processors, parts of its memory (ids of zones) and PCI segments are near each
    other, and how far it is to others, (node, distance): 10 is the node itself, others have 20 unless it is said, and the
    same back. What is in no node is in the first. A node may also be that of a device alone, by its id (a generic initiator of
    ACPI): it has neither processors nor memory. Of a processor that two nodes have the last of them has it; of one that is not
    there, and of a distance to the node itself that is not 10, it is only remarked."""

    guest_numa_id: int
    cpus: tuple[int, ...] = ()
    distances: tuple[tuple[int, int], ...] = ()
    memory_zones: tuple[str, ...] = ()
    pci_segments: tuple[int, ...] = ()
    device_id: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.guest_numa_id < MAX_NODES:
            raise ConfigError("numa.guest_numa_id", f"{self.guest_numa_id} is not in 0..{MAX_NODES - 1}")
        if self.device_id is not None and (self.cpus or self.memory_zones):
            raise ConfigError("numa.device_id", "has a node of its own", "say cpus=, memory_zones= in another --numa")
        for node, distance in self.distances:
            if node != self.guest_numa_id and not 11 <= distance <= 255:
                raise ConfigError("numa.distances", f"{distance} is not in 11..255", "10 is the node itself")


@dataclass(frozen=True)
class PayloadConfig:
    """What to boot: a kernel (bzImage, ELF, PVH), an initramfs, a command line (None: one that fits the consoles)."""

    kernel: Path
    initramfs: Path | None = None
    cmdline: str | None = None

    def __post_init__(self) -> None:
        for option, path in (("kernel", self.kernel), ("initramfs", self.initramfs)):
            if path is not None:
                check_path(option, path)
        if self.cmdline:
            if "\0" in self.cmdline or "\n" in self.cmdline:
                raise ConfigError("cmdline", "contains a NUL or a newline")
            if len(self.cmdline) > MAX_CMDLINE:
                raise ConfigError("cmdline", f"is longer than {MAX_CMDLINE} bytes")
            encoded("cmdline", self.cmdline, MAX_CMDLINE)


@dataclass(frozen=True, kw_only=True)
class PciSegmentConfig:
    """How many shares PCI segment `pci_segment` has of the address space for 32-bit and for 64-bit BARs; the others have
    one."""

    pci_segment: int
    mmio32_aperture_weight: int = 1
    mmio64_aperture_weight: int = 1

    def __post_init__(self) -> None:
        for name in ("mmio32_aperture_weight", "mmio64_aperture_weight"):
            if not 1 <= getattr(self, name) <= MAX_WEIGHT:
                raise ConfigError(f"pci_segment.{name}", f"{getattr(self, name)} is not in 1..{MAX_WEIGHT}")


@dataclass(frozen=True)
class PlatformConfig:
    """`num_pci_segments` PCI domains, 1..96, each with a host bridge; devices in `iommu_segments` are behind the IOMMU,
    whose addresses have `iommu_address_width` bits. With `iommufd` devices of the host go through /dev/iommu and files of their
    own (Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV), and not through a VFIO container; `iommufd_fd` is a descriptor of /dev/iommu,
    of which the VM uses a copy. `vfio_p2p_dma` cannot be on where there are such devices.

    The others are what firmware says of the machine (SMBIOS types 1, 3 and 11), which a guest has only if one of them is
    given. `serial_number` and `uuid` are older names for those of the system. `oem_strings` is where systemd looks for
    credentials: `io.systemd.credential:NAME=TEXT`. A UUID is 32 hexadecimal digits, in five groups or in one.
    """

    num_pci_segments: int = 1
    iommu_segments: tuple[int, ...] = ()
    serial_number: str | None = None
    uuid: str | None = None
    oem_strings: tuple[str, ...] = ()
    system_manufacturer: str | None = None
    system_product_name: str | None = None
    system_version: str | None = None
    system_serial_number: str | None = None
    system_uuid: str | None = None
    system_sku_number: str | None = None
    system_family: str | None = None
    chassis_asset_tag: str | None = None
    iommu_address_width: int = 48
    iommufd: bool = False
    iommufd_fd: int | None = None
    vfio_p2p_dma: bool | None = None

    def __post_init__(self) -> None:
        if not MIN_IOMMU_WIDTH <= self.iommu_address_width <= 64:
            reason = f"{self.iommu_address_width} is not in {MIN_IOMMU_WIDTH}..64"
            raise ConfigError("platform.iommu_address_width", reason)
        if self.iommufd_fd is not None:
            check_descriptor("platform.iommufd_fd", self.iommufd_fd)
            if not self.iommufd:
                raise ConfigError("platform.iommufd_fd", "goes with iommufd=on")
        if not 1 <= self.num_pci_segments <= MAX_SEGMENTS:
            raise ConfigError("platform.num_pci_segments", f"{self.num_pci_segments} is not in 1..{MAX_SEGMENTS}")
        for segment in self.iommu_segments:
            if not 0 <= segment < self.num_pci_segments:
                raise ConfigError("platform.iommu_segments", f"there is no segment {segment}")
        if self.has_identity:
            self._check_identity()

    @property
    def has_identity(self) -> bool:
        """Whether anything is to be said of who the machine is."""
        return bool(self.oem_strings) or any(getattr(self, name) is not None for name in _IDENTITY)

    def _check_identity(self) -> None:
        for name in _IDENTITY:
            if (text := getattr(self, name)) is not None:
                encoded(f"platform.{name}", text, MAX_IDENTITY)
        for text in self.oem_strings:
            encoded("platform.oem_strings", text, MAX_IDENTITY)
        for name in ("uuid", "system_uuid"):
            if (text := getattr(self, name)) is not None and not _is_uuid(text):
                hint = "like 12345678-1234-1234-1234-1234567890ab"
                raise ConfigError(f"platform.{name}", f"{text!r} is no UUID", hint)


_IDENTITY = (
    "serial_number",
    "uuid",
    "system_manufacturer",
    "system_product_name",
    "system_version",
    "system_serial_number",
    "system_uuid",
    "system_sku_number",
    "system_family",
    "chassis_asset_tag",
)


def bare_uuid(text: str) -> str:
    """Without what may be around it: `urn:uuid:`, or braces."""
    return text[1:-1] if text[:1] + text[-1:] == "{}" else text.removeprefix("urn:uuid:")


def _is_uuid(text: str) -> bool:
    text = bare_uuid(text)
    parts = [len(part) for part in text.split("-")]
    digits = text.replace("-", "")
    return parts in ([8, 4, 4, 4, 12], [32]) and all(c in "0123456789abcdefABCDEF" for c in digits)
