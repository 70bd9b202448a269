"""The whole of a VM, and what becomes of it when its guest resets or panics."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from aiovmm import architecture
from aiovmm.config.checks import encoded
from aiovmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig
from aiovmm.config.cpus import CpusConfig
from aiovmm.config.devices import (
    BalloonConfig,
    DeviceConfig,
    FsConfig,
    GenericVhostUserConfig,
    PmemConfig,
    PvpanicConfig,
    RngConfig,
    RtcConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.config.disk import DiskConfig
from aiovmm.config.kinds import dataclass
from aiovmm.config.limits import LimitsConfig
from aiovmm.config.machine import (
    HotplugMethod,
    MemoryConfig,
    MemoryZoneConfig,
    NumaConfig,
    PayloadConfig,
    PciSegmentConfig,
    PlatformConfig,
)
from aiovmm.config.net import NetConfig
from aiovmm.config.placed import PlacedConfig
from aiovmm.config.rates import RateLimitGroupConfig
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import field, field_types, replace

__all__ = ["RebootPolicy", "VMConfig"]

_PARSED = {  # what stands for a whole class: text in its syntax
    "CpusConfig": "parse_cpus",
    "MemoryConfig": "parse_memory",
    "MemoryZoneConfig": "parse_memory_zone",
    "NumaConfig": "parse_numa",
    "RngConfig": "parse_rng",
    "DiskConfig": "parse_disk",
    "NetConfig": "parse_net",
    "VsockConfig": "parse_vsock",
    "PmemConfig": "parse_pmem",
    "FsConfig": "parse_fs",
    "DeviceConfig": "parse_device",
    "BalloonConfig": "parse_balloon",
    "WatchdogConfig": "parse_watchdog",
    "PvpanicConfig": "parse_pvpanic",
    "RtcConfig": "parse_rtc",
    "GenericVhostUserConfig": "parse_generic_vhost_user",
    "DebugConsoleConfig": "parse_debug_console",
    "PlatformConfig": "parse_platform",
    "PciSegmentConfig": "parse_pci_segment",
    "RateLimitGroupConfig": "parse_rate_limit_group",
    "LimitsConfig": "parse_limits",
}


def _parse(kind: str, option: str, text: str) -> Any:
    from aiovmm.config import options  # for who gives text where an object is meant

    if kind == "ConsoleConfig":
        return options.parse_console(option, text)
    return getattr(options, _PARSED[kind])(text)


class RebootPolicy(enum.Enum):
    """What a guest's reboot does: `RESTART` it in the same VM, or `EXIT` with ExitReason.REBOOT."""

    RESTART = "restart"
    EXIT = "exit"


@dataclass(frozen=True, parse=_parse)
class VMConfig:
    """A whole VM. `name` appears in events, logs and thread names."""

    payload: PayloadConfig
    cpus: CpusConfig = field(default_factory=CpusConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    memory_zones: tuple[MemoryZoneConfig, ...] = ()
    numa: tuple[NumaConfig, ...] = ()
    serial: ConsoleConfig = field(default_factory=ConsoleConfig)
    console: ConsoleConfig = field(default_factory=lambda: ConsoleConfig(ConsoleMode.OFF))
    rng: RngConfig | None = field(default_factory=RngConfig)
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    vsock: VsockConfig | None = None
    pmems: tuple[PmemConfig, ...] = ()
    fs: tuple[FsConfig, ...] = ()
    devices: tuple[DeviceConfig, ...] = ()
    balloon: BalloonConfig | None = None
    watchdog: WatchdogConfig | None = None
    pvpanic: PvpanicConfig | None = None
    rtc: RtcConfig | None = None
    generic_vhost_user: tuple[GenericVhostUserConfig, ...] = ()
    debug_console: DebugConsoleConfig = field(default_factory=DebugConsoleConfig)
    rate_limit_groups: tuple[RateLimitGroupConfig, ...] = ()
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    pci_segments: tuple[PciSegmentConfig, ...] = ()
    on_reboot: RebootPolicy = RebootPolicy.EXIT
    on_panic: RebootPolicy = RebootPolicy.EXIT  # when a kernel resets the machine after it has panicked
    name: str = "vm"

    def __post_init__(self) -> None:
        serial = self.serial
        if serial != ConsoleConfig(serial.mode, serial.path, serial.history, serial.filter):
            raise ConfigError("serial", "takes no id, and no place: the serial port is not on PCI")
        encoded("name", self.name, 64)
        if self.memory_zones or self.numa or not self.memory.size:
            from aiovmm.config.zones import check_zones  # for who has some

            check_zones(self)
        if self.pci_segments:
            self._check_segments()
        if self.devices:
            self._check_host_devices()
        self._check_places()
        self._check_groups()
        if self.balloon is not None:
            self._check_balloon(self.balloon)

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

    def _check_segments(self) -> None:
        numbers = [segment.pci_segment for segment in self.pci_segments]
        for number in numbers:
            if not 0 <= number < self.platform.num_pci_segments:
                raise ConfigError("pci_segment.pci_segment", f"there is no segment {number}")
            if numbers.count(number) > 1:
                raise ConfigError("pci_segment.pci_segment", f"{number} is given twice")

    def _check_host_devices(self) -> None:
        if not self.platform.iommufd and any(device.fd is not None for device in self.devices):
            raise ConfigError("device.fd", "goes with platform.iommufd", "say --platform iommufd=on")
        if self.platform.vfio_p2p_dma:
            reason = "is on, and devices of the host cannot reach each other's registers here"
            raise ConfigError("platform.vfio_p2p_dma", reason, "leave it out")

    def _check_balloon(self, balloon: BalloonConfig) -> None:
        if balloon.size >= self.most_ram:
            raise ConfigError(
                "balloon.size", f"{balloon.size} is not less than the memory that there is", f"{self.most_ram}"
            )
        if self.memory.hugepages or any(zone.hugepages for zone in self.memory_zones):
            raise ConfigError(
                "balloon", "does not go with hugepages=on", "a guest cannot give back parts of such pages"
            )
        if self.devices:
            raise ConfigError(
                "balloon", "does not go with devices of the host", "all of the guest's memory is locked for them"
            )

    def _check_groups(self) -> None:
        groups = [group.id for group in self.rate_limit_groups]
        if len(set(groups)) < len(groups):
            raise ConfigError("rate_limit_group.id", "names two groups", f"there are {', '.join(groups)}")
        for disk in self.disks:
            if disk.rate_limit_group is not None and disk.rate_limit_group not in groups:
                hint = f"say rate-limit-group id={disk.rate_limit_group},bw_size=..."
                raise ConfigError("disk.rate_limit_group", f"there is no group {disk.rate_limit_group!r}", hint)

    def _placed(self) -> list[tuple[str, PlacedConfig]]:
        rows: list[tuple[str, PlacedConfig]] = [("console", self.console)]
        for option, group in (
            ("disk", self.disks),
            ("net", self.nets),
            ("pmem", self.pmems),
            ("fs", self.fs),
            ("device", self.devices),
            ("generic_vhost_user", self.generic_vhost_user),
        ):
            rows += [(option, item) for item in group]
        single: tuple[tuple[str, PlacedConfig | None], ...] = (
            ("rng", self.rng),
            ("vsock", self.vsock),
            ("balloon", self.balloon),
            ("watchdog", self.watchdog),
            ("pvpanic", self.pvpanic),
            ("rtc", self.rtc),
        )
        return rows + [(option, item) for option, item in single if item is not None]

    @property
    def chosen_ids(self) -> set[str]:
        """Of devices; those that have none chosen get others, see `config.ids`."""
        return {placed.id for _, placed in self._placed() if placed.id is not None}

    @property
    def aperture_weights(self) -> list[tuple[int, int]]:
        """Shares of the windows for 32-bit and 64-bit BARs, by PCI segment; empty: all are equal."""
        if not self.pci_segments:
            return []
        weights = {s.pci_segment: (s.mmio32_aperture_weight, s.mmio64_aperture_weight) for s in self.pci_segments}
        return [weights.get(number, (1, 1)) for number in range(self.platform.num_pci_segments)]

    @property
    def ram_size(self) -> int:
        """Bytes of RAM: in one piece, or in all zones."""
        return self.memory.size + sum(zone.size for zone in self.memory_zones)

    @property
    def most_ram(self) -> int:
        """Bytes of RAM with all that hotplug may bring."""
        return self.ram_size + self.memory.hotplug_size + sum(zone.hotplug_size for zone in self.memory_zones)

    @property
    def mapped_ram(self) -> int:
        """Bytes of RAM with what hotplug has brought, or may bring without a further mapping."""
        memory = self.memory
        whole = memory.hotplug_method is HotplugMethod.VIRTIO_MEM
        more = sum(zone.hotplug_size for zone in self.memory_zones)
        return self.ram_size + more + (memory.hotplug_size if whole else memory.hotplugged_size)

    @property
    def lockable_ram(self) -> int:
        """Bytes of RAM that devices of the host reach: what there is, and what has come since."""
        return self.ram_size + self.memory.hotplugged_size + sum(zone.hotplugged_size for zone in self.memory_zones)

    @property
    def cmdline(self) -> str:
        """The kernel command line: the user's own, or one that talks on all consoles the VM has, chiefly on the terminal's."""
        if self.payload.cmdline is not None:
            return self.payload.cmdline
        there = {"hvc0": self.console.mode, architecture.host().serial: self.serial.mode}
        if self.console.mode is self.serial.mode is ConsoleMode.TTY:
            del there["hvc0"]  # all would be on the terminal twice
        names = [name for name, mode in there.items() if mode is not ConsoleMode.OFF]
        names.sort(key=lambda name: there[name] is ConsoleMode.TTY)  # the kernel's /dev/console is the last
        return " ".join([*(f"console={name}" for name in names), "panic=-1"])

    def with_changes(self, changes: Mapping[str, Any]) -> VMConfig:
        """A copy with some fields replaced, checked again. Raises ConfigError for a field that does not exist."""
        known = field_types(self)
        for key in changes:
            if key not in known:
                raise ConfigError(key, "there is no such field in VMConfig", f"fields: {', '.join(sorted(known))}")
        return replace(self, **changes)
