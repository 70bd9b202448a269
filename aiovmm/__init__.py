"""A KVM virtual machine monitor that lives inside an asyncio program.

    async with aiovmm.VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"login: ")

The public names are loaded when they are first used, so that importing aiovmm costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.agent import (
        Agent,
        AgentError,
        AgentLost,
        BootTimeout,
        CommandFailed,
        CommandNotFound,
        CommandTimeout,
        Completed,
        GuestOSError,
        OutputTooLong,
        Process,
    )
    from aiovmm.bus import Space
    from aiovmm.config import (
        BalloonConfig,
        ConsoleConfig,
        ConsoleMode,
        CoreScheduling,
        CpusConfig,
        DebugConsoleConfig,
        DeviceConfig,
        DiskConfig,
        FsConfig,
        GenericVhostUserConfig,
        HotplugMethod,
        LimitsConfig,
        MemoryConfig,
        MemoryZoneConfig,
        NetConfig,
        NumaConfig,
        PayloadConfig,
        PciSegmentConfig,
        PlatformConfig,
        PmemConfig,
        PvpanicConfig,
        RateLimit,
        RateLimitGroupConfig,
        RebootPolicy,
        RngConfig,
        RtcConfig,
        VMConfig,
        VsockConfig,
        WatchdogAction,
        WatchdogConfig,
    )
    from aiovmm.config.landlock import LandlockRuleConfig
    from aiovmm.confine.confinement import Confinement, Seccomp
    from aiovmm.console import Console, ConsoleReader
    from aiovmm.devices.port import PortDevice
    from aiovmm.errors import (
        AiovmmError,
        ChainError,
        ConfigError,
        ConsoleEnded,
        ExpectTimeout,
        GuestError,
        GuestFault,
        HostError,
        HotplugError,
        HotplugTimeout,
        ImageError,
        KvmError,
        PatternTooSlow,
        PeerError,
        SnapshotError,
        StateError,
        UsageError,
    )
    from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus, VMState
    from aiovmm.pool import Pool, PoolEvent, PoolEventKind, PoolStats
    from aiovmm.rootfs import BuiltImage, Image, ImageConfig
    from aiovmm.runtime.plain import Fields, State
    from aiovmm.sandboxes import Network, Sandbox, Volume, sandbox
    from aiovmm.snapshot.taking import Snapshot
    from aiovmm.snapshot.template import Template
    from aiovmm.stats import ConsoleStats, DeviceStats, LoopStats, VMStats
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = [
    "VM",
    "Agent",
    "AgentError",
    "AgentLost",
    "AiovmmError",
    "BalloonConfig",
    "BootTimeout",
    "BuiltImage",
    "ChainError",
    "CommandFailed",
    "CommandNotFound",
    "CommandTimeout",
    "Completed",
    "ConfigError",
    "Confinement",
    "Console",
    "ConsoleConfig",
    "ConsoleEnded",
    "ConsoleMode",
    "ConsoleReader",
    "ConsoleStats",
    "CoreScheduling",
    "CpusConfig",
    "DebugConsoleConfig",
    "DeviceConfig",
    "DeviceStats",
    "DiskConfig",
    "Event",
    "EventKind",
    "ExitReason",
    "ExitStatus",
    "ExpectTimeout",
    "Fields",
    "FsConfig",
    "GenericVhostUserConfig",
    "GuestError",
    "GuestFault",
    "GuestOSError",
    "HostError",
    "HotplugError",
    "HotplugMethod",
    "HotplugTimeout",
    "Image",
    "ImageConfig",
    "ImageError",
    "KvmError",
    "LandlockRuleConfig",
    "LimitsConfig",
    "LoopStats",
    "MemoryConfig",
    "MemoryZoneConfig",
    "NetConfig",
    "Network",
    "NumaConfig",
    "OutputTooLong",
    "PatternTooSlow",
    "PayloadConfig",
    "PciSegmentConfig",
    "PeerError",
    "PlatformConfig",
    "PmemConfig",
    "Pool",
    "PoolEvent",
    "PoolEventKind",
    "PoolStats",
    "PortDevice",
    "Process",
    "PvpanicConfig",
    "RateLimit",
    "RateLimitGroupConfig",
    "RebootPolicy",
    "RngConfig",
    "RtcConfig",
    "Sandbox",
    "Seccomp",
    "Snapshot",
    "SnapshotError",
    "Space",
    "State",
    "StateError",
    "Template",
    "UsageError",
    "VMConfig",
    "VMState",
    "VMStats",
    "VirtioDevice",
    "Volume",
    "VsockConfig",
    "WatchdogAction",
    "WatchdogConfig",
    "sandbox",
]


__getattr__ = lazy_names(
    __name__,
    {
        "aiovmm.agent": "Agent AgentError AgentLost BootTimeout CommandFailed CommandNotFound CommandTimeout Completed "
        "GuestOSError OutputTooLong Process",
        "aiovmm.config": "BalloonConfig ConsoleConfig ConsoleMode CoreScheduling CpusConfig DebugConsoleConfig DeviceConfig "
        "DiskConfig FsConfig GenericVhostUserConfig HotplugMethod LimitsConfig MemoryConfig MemoryZoneConfig NetConfig "
        "NumaConfig PayloadConfig PciSegmentConfig PlatformConfig PmemConfig PvpanicConfig RateLimit "
        "RateLimitGroupConfig RebootPolicy RngConfig RtcConfig VMConfig VsockConfig WatchdogAction "
        "WatchdogConfig",
        "aiovmm.config.landlock": "LandlockRuleConfig",
        "aiovmm.confine.confinement": "Confinement Seccomp",
        "aiovmm.bus": "Space",
        "aiovmm.devices.port": "PortDevice",
        "aiovmm.console": "Console ConsoleReader",
        "aiovmm.errors": "AiovmmError ChainError ConfigError ConsoleEnded ExpectTimeout GuestError GuestFault HostError "
        "HotplugError HotplugTimeout "
        "ImageError KvmError PatternTooSlow PeerError SnapshotError StateError UsageError",
        "aiovmm.lifecycle": "Event EventKind ExitReason ExitStatus VMState",
        "aiovmm.pool": "Pool PoolEvent PoolEventKind PoolStats",
        "aiovmm.rootfs": "BuiltImage Image ImageConfig",
        "aiovmm.snapshot.taking": "Snapshot",
        "aiovmm.snapshot.template": "Template",
        "aiovmm.runtime.plain": "Fields State",
        "aiovmm.sandboxes": "Network Sandbox Volume sandbox",
        "aiovmm.stats": "ConsoleStats DeviceStats LoopStats VMStats",
        "aiovmm.virtqueue.device": "VirtioDevice",
        "aiovmm.vm": "VM",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
