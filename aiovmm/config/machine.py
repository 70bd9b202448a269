"""The machine itself: memory, what to boot, platform."""

from __future__ import annotations

import enum
from pathlib import Path

from aiovmm.config.checks import check_path, encoded
from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError

__all__ = ["HotplugMethod", "MemoryConfig", "PayloadConfig", "PlatformConfig"]

MIB = 1 << 20
MAX_SEGMENTS = 96  # as the reference's: the ECAM window has room for 160, and each has a share of the memory windows
MAX_MEMORY = 1 << 52  # bytes: no processor has a wider physical address
PAGE = 4096
MODULE = 128 * MIB  # what Linux takes and gives back as a whole, at least
BLOCK = 2 * MIB  # of virtio-mem
_THP_FROM = (
    64 * MIB
)  # a guest that fills its memory is through 0.3 ms a MiB earlier with huge pages; one that does not has 2 MiB more
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
    small guest has barely touched takes more memory than all the rest of it). `hugepages` are those that the host has reserved.
    `prefault` touches every page now. `mergeable` lets the kernel hold pages that are equal in several guests once (KSM), if its
    administrator has switched that on. While the guest runs, `hotplug_size` bytes more can come and go (`vm.resize`) by
    `hotplug_method`; `hotplugged_size` of them are there from the start.
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

    def __post_init__(self) -> None:
        if self.size < 2 * MIB:
            raise ConfigError(
                "memory.size", f"{self.size} bytes are too few", "give at least 2M; Linux wants about 64M"
            )
        if self.size >= MAX_MEMORY:
            raise ConfigError("memory.size", f"{self.size} bytes are more than a processor can address")
        if self.size % PAGE:
            raise ConfigError("memory.size", f"{self.size} bytes are not a multiple of the page size, {PAGE}")
        if self.mergeable and (self.shared or self.hugepages):
            other = "hugepages" if self.hugepages else "shared"
            raise ConfigError(
                "memory.mergeable", f"does not go with {other}=on", "the kernel merges private, small pages"
            )
        if self.hugepages and self.size % (2 * MIB):
            raise ConfigError("memory.size", f"{self.size} bytes are not a multiple of a huge page, 2M")
        if self.hotplug_size or self.hotplugged_size:
            self._check_hotplug()

    def _check_hotplug(self) -> None:
        if self.hotplug_size < 0 or self.hotplug_size % MODULE:
            raise ConfigError("memory.hotplug_size", f"{self.hotplug_size} bytes are not a multiple of 128M")
        if self.size + self.hotplug_size >= MAX_MEMORY:
            raise ConfigError("memory.hotplug_size", "with size= it is more than a processor can address")
        if self.hotplug_method is HotplugMethod.ACPI:
            raise ConfigError("memory.hotplug_method", "acpi is not there", "memory comes by virtio-mem")
        step, text = (BLOCK, "2M")
        if not 0 <= self.hotplugged_size <= self.hotplug_size or self.hotplugged_size % step:
            reason = (
                f"{self.hotplugged_size} bytes are not a multiple of {text} up to hotplug_size, {self.hotplug_size}"
            )
            raise ConfigError("memory.hotplugged_size", reason)

    @property
    def wants_huge_pages(self) -> bool:
        """Whether the kernel is asked for them: what `thp` says, or the size."""
        return self.size >= _THP_FROM if self.thp is None else self.thp


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


@dataclass(frozen=True)
class PlatformConfig:
    """`num_pci_segments` PCI domains, 1..96, each with a host bridge; devices in `iommu_segments` are behind the IOMMU.

    The others are what firmware says of the machine (SMBIOS types 1, 3 and 11), which a guest has only if one of them is given.
    `serial_number` and `uuid` are older names for those of the system. `oem_strings` is where systemd looks for credentials:
    `io.systemd.credential:NAME=TEXT`. A UUID is 32 hexadecimal digits, in five groups or in one.
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

    def __post_init__(self) -> None:
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


def _is_uuid(text: str) -> bool:
    parts = [len(part) for part in text.split("-")]
    digits = text.replace("-", "")
    return parts in ([8, 4, 4, 4, 12], [32]) and all(c in "0123456789abcdefABCDEF" for c in digits)
