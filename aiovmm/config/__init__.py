"""What a VM is made of, as frozen, typed values. The one place where user input is validated.

Each class checks itself when it is made and raises ConfigError, which names the option. `aiovmm.config.options` makes the
same values from option text (`size=512M,shared=on`), with the keys and the meaning of the reference monitor.
"""

from __future__ import annotations

from aiovmm.config.devices import (
    DeviceConfig,
    DiskConfig,
    FsConfig,
    NetConfig,
    PlacedConfig,
    PmemConfig,
    RngConfig,
    VsockConfig,
)
from aiovmm.config.machine import (
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    MemoryConfig,
    PayloadConfig,
    PlatformConfig,
    RebootPolicy,
    TopologyConfig,
    VMConfig,
)

__all__ = [
    "ConsoleConfig",
    "ConsoleMode",
    "CpusConfig",
    "DeviceConfig",
    "DiskConfig",
    "FsConfig",
    "MemoryConfig",
    "NetConfig",
    "PayloadConfig",
    "PlacedConfig",
    "PlatformConfig",
    "PmemConfig",
    "RebootPolicy",
    "RngConfig",
    "TopologyConfig",
    "VMConfig",
    "VsockConfig",
]
