"""What a VM is made of, as frozen, typed values. The one place where user input is validated.

Each class checks itself when it is made and raises ConfigError, which names the option. `aiovmm.config.options` makes the
same values from option text (`size=512M,shared=on`), with the keys and the meaning of the reference monitor.
"""

from __future__ import annotations

from aiovmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig
from aiovmm.config.cpus import CoreScheduling, CpusConfig, TopologyConfig
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
    WatchdogAction,
    WatchdogConfig,
)
from aiovmm.config.disk import DiskConfig, ImageType, LockGranularity
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
from aiovmm.config.net import NetConfig, VhostMode
from aiovmm.config.placed import PlacedConfig
from aiovmm.config.rates import RateLimit, RateLimitGroupConfig
from aiovmm.config.vm import RebootPolicy, VMConfig

__all__ = [
    "BalloonConfig",
    "ConsoleConfig",
    "ConsoleMode",
    "CoreScheduling",
    "CpusConfig",
    "DebugConsoleConfig",
    "DeviceConfig",
    "DiskConfig",
    "FsConfig",
    "GenericVhostUserConfig",
    "HotplugMethod",
    "ImageType",
    "LimitsConfig",
    "LockGranularity",
    "MemoryConfig",
    "MemoryZoneConfig",
    "NetConfig",
    "NumaConfig",
    "PayloadConfig",
    "PciSegmentConfig",
    "PlacedConfig",
    "PlatformConfig",
    "PmemConfig",
    "PvpanicConfig",
    "RateLimit",
    "RateLimitGroupConfig",
    "RebootPolicy",
    "RngConfig",
    "RtcConfig",
    "TopologyConfig",
    "VMConfig",
    "VhostMode",
    "VsockConfig",
    "WatchdogAction",
    "WatchdogConfig",
]
