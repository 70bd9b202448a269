"""The machine itself: memory, what to boot, platform, policies; and the whole of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

from aiovmm.config.checks import check_path, encoded
from aiovmm.config.console import ConsoleConfig, ConsoleMode
from aiovmm.config.cpus import CpusConfig
from aiovmm.config.devices import DeviceConfig, FsConfig, PmemConfig, RngConfig, VsockConfig
from aiovmm.config.disk import DiskConfig
from aiovmm.config.kinds import dataclass
from aiovmm.config.net import NetConfig
from aiovmm.config.placed import PlacedConfig
from aiovmm.errors import ConfigError

__all__ = ["MemoryConfig", "PayloadConfig", "PlatformConfig", "RebootPolicy", "VMConfig"]

MIB = 1 << 20
MAX_SEGMENTS = 96  # as the reference's: the ECAM window has room for 160, and each has a share of the memory windows
MAX_MEMORY = 1 << 52  # bytes: no x86 processor has a wider physical address
PAGE = 4096
MAX_CMDLINE = 64 * 1024 - 1


@dataclass(frozen=True)
class MemoryConfig:
    """Guest RAM: `size` in bytes. `shared` memory can be given to other processes (None: if a device needs that, vhost-user
    does); memory that is not has huge pages where the kernel finds some (`thp`). `hugepages` are those that the host has
    reserved. `prefault` touches every page now.
    """

    size: int = 512 * MIB
    shared: bool | None = None
    hugepages: bool = False
    prefault: bool = False
    thp: bool = True

    def __post_init__(self) -> None:
        if self.size < 2 * MIB:
            raise ConfigError(
                "memory.size", f"{self.size} bytes are too few", "give at least 2M; Linux wants about 64M"
            )
        if self.size >= MAX_MEMORY:
            raise ConfigError("memory.size", f"{self.size} bytes are more than a processor can address")
        if self.size % PAGE:
            raise ConfigError("memory.size", f"{self.size} bytes are not a multiple of the page size, {PAGE}")
        if self.hugepages and self.size % (2 * MIB):
            raise ConfigError("memory.size", f"{self.size} bytes are not a multiple of a huge page, 2M")


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
    """`num_pci_segments` PCI domains, 1..96, each with a host bridge; devices in `iommu_segments` are behind the IOMMU."""

    num_pci_segments: int = 1
    iommu_segments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_pci_segments <= MAX_SEGMENTS:
            raise ConfigError("platform.num_pci_segments", f"{self.num_pci_segments} is not in 1..{MAX_SEGMENTS}")
        for segment in self.iommu_segments:
            if not 0 <= segment < self.num_pci_segments:
                raise ConfigError("platform.iommu_segments", f"there is no segment {segment}")


class RebootPolicy(enum.Enum):
    """What a guest's reboot does: `RESTART` it in the same VM, or `EXIT` with ExitReason.REBOOT."""

    RESTART = "restart"
    EXIT = "exit"


@dataclass(frozen=True)
class VMConfig:
    """A whole VM. `name` appears in events, logs and thread names."""

    payload: PayloadConfig
    cpus: CpusConfig = field(default_factory=CpusConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    serial: ConsoleConfig = field(default_factory=ConsoleConfig)
    console: ConsoleConfig = field(default_factory=lambda: ConsoleConfig(ConsoleMode.OFF))
    rng: RngConfig | None = field(default_factory=RngConfig)
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    vsock: VsockConfig | None = None
    pmems: tuple[PmemConfig, ...] = ()
    fs: tuple[FsConfig, ...] = ()
    devices: tuple[DeviceConfig, ...] = ()
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    on_reboot: RebootPolicy = RebootPolicy.EXIT
    on_panic: RebootPolicy = RebootPolicy.EXIT  # when a kernel resets the machine after it has panicked
    name: str = "vm"

    def __post_init__(self) -> None:
        if self.serial != ConsoleConfig(self.serial.mode, self.serial.path, self.serial.history):
            raise ConfigError("serial", "takes no id, and no place: the serial port is not on PCI")
        encoded("name", self.name, 64)
        self._check_places()

    def _check_places(self) -> None:
        ids: set[str] = set()
        slots: set[tuple[int, int | None]] = set()
        segments = self.platform.num_pci_segments
        for option, placed in self._placed():
            if placed.pci_segment >= segments:
                raise ConfigError(
                    f"{option}.pci_segment",
                    f"there is no segment {placed.pci_segment}",
                    f"raise platform.num_pci_segments, now {segments}",
                )
            if placed.id in ids:
                raise ConfigError(f"{option}.id", f"{placed.id!r} names two devices")
            if placed.id is not None:
                ids.add(placed.id)
            slot = (placed.pci_segment, placed.pci_device_id)
            if placed.pci_device_id is not None and slot in slots:
                raise ConfigError(
                    f"{option}.pci_device_id", f"slot {slot[1]} of segment {slot[0]} is given to two devices"
                )
            slots.add(slot)

    def _placed(self) -> list[tuple[str, PlacedConfig]]:
        rows: list[tuple[str, PlacedConfig]] = [("console", self.console)]
        for option, group in (
            ("disk", self.disks),
            ("net", self.nets),
            ("pmem", self.pmems),
            ("fs", self.fs),
            ("device", self.devices),
        ):
            rows += [(option, item) for item in group]
        rows += [(o, i) for o, i in (("rng", self.rng), ("vsock", self.vsock)) if i is not None]
        return rows

    @property
    def cmdline(self) -> str:
        """The kernel command line: the user's own, or one that talks on all consoles the VM has, chiefly on the terminal's."""
        if self.payload.cmdline is not None:
            return self.payload.cmdline
        there = {"hvc0": self.console.mode, "ttyS0": self.serial.mode}
        if there["hvc0"] is there["ttyS0"] is ConsoleMode.TTY:
            del there["hvc0"]  # all would be on the terminal twice
        names = [name for name, mode in there.items() if mode is not ConsoleMode.OFF]
        names.sort(key=lambda name: there[name] is ConsoleMode.TTY)  # the kernel's /dev/console is the last
        return " ".join([*(f"console={name}" for name in names), "panic=-1"])

    def with_changes(self, changes: Mapping[str, Any]) -> VMConfig:
        """A copy with some fields replaced, checked again. Raises ConfigError for a field that does not exist."""
        known = {f.name for f in fields(self)}
        for key in changes:
            if key not in known:
                raise ConfigError(key, "there is no such field in VMConfig", f"fields: {', '.join(sorted(known))}")
        return replace(self, **changes)
