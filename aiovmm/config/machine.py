"""The machine itself: processors, memory, what to boot, consoles, platform, policies."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

from aiovmm.config.devices import (
    DeviceConfig,
    DiskConfig,
    FsConfig,
    NetConfig,
    PmemConfig,
    RngConfig,
    VsockConfig,
)
from aiovmm.dataclass import dataclass
from aiovmm.errors import ConfigError

__all__ = [
    "CPU_FEATURES",
    "ConsoleConfig",
    "ConsoleMode",
    "CpusConfig",
    "MemoryConfig",
    "PayloadConfig",
    "PlatformConfig",
    "RebootPolicy",
    "TopologyConfig",
    "VMConfig",
]

MIB = 1 << 20
MAX_CPUS = 254  # xAPIC ids are 8 bits wide and 255 is the broadcast id
MAX_SEGMENTS = 16  # the ECAM window has room for more; the reference document allows 16
PAGE = 4096
MAX_CMDLINE = 64 * 1024 - 1
CPU_FEATURES = ("amx",)
"""Processor features that a guest gets only if it is asked for."""


@dataclass(frozen=True)
class TopologyConfig:
    """How the guest sees its processors laid out; `threads` per core, `cores` per die, `dies` per package, `packages`."""

    threads: int = 1
    cores: int = 1
    dies: int = 1
    packages: int = 1

    def __post_init__(self) -> None:
        for name in ("threads", "cores", "dies", "packages"):
            if not 1 <= getattr(self, name) <= MAX_CPUS:
                raise ConfigError("cpus.topology", f"{getattr(self, name)} {name} are not in 1..{MAX_CPUS}")

    @property
    def cpus(self) -> int:
        """Logical processors in all."""
        return self.threads * self.cores * self.dies * self.packages


@dataclass(frozen=True)
class CpusConfig:
    """`boot` processors at start; room for `max` in all (those above `boot` are described to the guest as absent).

    `topology`: None is one package of `max` cores. `max_phys_bits` caps the width of guest-physical addresses, in bits (None:
    as wide as the host's). `nested`: the guest may use virtualization itself, where the host lets it. `features` are those
    that have to be asked for, of CPU_FEATURES.
    """

    boot: int = 1
    max: int | None = None
    topology: TopologyConfig | None = None
    max_phys_bits: int | None = None
    nested: bool = True
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.boot <= MAX_CPUS:
            raise ConfigError("cpus.boot", f"{self.boot} is not in 1..{MAX_CPUS}")
        if self.max is not None and not self.boot <= self.max <= MAX_CPUS:
            raise ConfigError("cpus.max", f"{self.max} is not in boot ({self.boot})..{MAX_CPUS}")
        if self.topology is not None and self.topology.cpus != (self.max or self.boot):
            raise ConfigError(
                "cpus.topology",
                f"{self.topology.cpus} processors are laid out, and there are {self.max or self.boot}",
                "threads x cores x dies x packages must be max=, or boot= where that is not given",
            )
        if self.max_phys_bits is not None and not 32 <= self.max_phys_bits <= 52:
            raise ConfigError("cpus.max_phys_bits", f"{self.max_phys_bits} is not in 32..52")
        for feature in self.features:
            if feature not in CPU_FEATURES:
                raise ConfigError("cpus.features", f"{feature!r} is not known", f"known: {', '.join(CPU_FEATURES)}")


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
        if self.cmdline is not None:
            if "\0" in self.cmdline or "\n" in self.cmdline:
                raise ConfigError("cmdline", "contains a NUL or a newline")
            if len(self.cmdline.encode()) > MAX_CMDLINE:
                raise ConfigError("cmdline", f"is longer than {MAX_CMDLINE} bytes")


class ConsoleMode(enum.Enum):
    """Where a console goes besides the program's own stream."""

    OFF = "off"  # no such device in the guest
    NULL = "null"  # the device is there; only the program's stream has its output
    TTY = "tty"
    PTY = "pty"
    SOCKET = "socket"
    FILE = "file"


@dataclass(frozen=True)
class ConsoleConfig:
    """A serial port or virtio console: its mode, the path for `socket` and `file`, the history kept, in bytes."""

    mode: ConsoleMode = ConsoleMode.NULL
    path: Path | None = None
    history: int = MIB

    def __post_init__(self) -> None:
        needs_path = self.mode in (ConsoleMode.SOCKET, ConsoleMode.FILE)
        if needs_path and self.path is None:
            raise ConfigError("console.path", f"mode {self.mode.value} needs a path", f"say {self.mode.value}=PATH")
        if not needs_path and self.path is not None:
            raise ConfigError("console.path", f"mode {self.mode.value} takes no path")
        if not PAGE <= self.history <= 1 << 30:
            raise ConfigError("console.history", f"{self.history} bytes are not in {PAGE}..{1 << 30}")


@dataclass(frozen=True)
class PlatformConfig:
    """`num_pci_segments` PCI domains, 1..16, each with a host bridge; devices in `iommu_segments` are behind the IOMMU."""

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
        ids: set[str] = set()
        segments = self.platform.num_pci_segments
        for option, placed in self._placed():
            if placed.pci_segment >= segments:
                raise ConfigError(
                    f"{option}.pci_segment",
                    f"there is no segment {placed.pci_segment}",
                    f"raise platform.num_pci_segments, now {segments}",
                )
            if placed.id is not None and placed.id in ids:
                raise ConfigError(f"{option}.id", f"{placed.id!r} names two devices")
            if placed.id is not None:
                ids.add(placed.id)
        if self.serial.mode is ConsoleMode.TTY and self.console.mode is ConsoleMode.TTY:
            raise ConfigError("console", "serial and console cannot both have the terminal", "set one of them to null")

    def _placed(self) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
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
