"""A KVM virtual machine monitor that lives inside an asyncio program.

    async with aiovmm.VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"login: ")

The public names are loaded when they are first used, so that importing aiovmm costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiovmm.config import (
        ConsoleConfig,
        ConsoleMode,
        CpusConfig,
        DeviceConfig,
        DiskConfig,
        FsConfig,
        MemoryConfig,
        NetConfig,
        PayloadConfig,
        PlatformConfig,
        PmemConfig,
        RebootPolicy,
        RngConfig,
        VMConfig,
        VsockConfig,
    )
    from aiovmm.console import Console, ConsoleReader
    from aiovmm.errors import (
        AiovmmError,
        ChainError,
        ConfigError,
        ConsoleEnded,
        ExpectTimeout,
        GuestError,
        GuestFault,
        HostError,
        ImageError,
        KvmError,
        PeerError,
        StateError,
        UsageError,
    )
    from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus, VMState
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

_HOMES = {
    "aiovmm.config": "ConsoleConfig ConsoleMode CpusConfig DeviceConfig DiskConfig FsConfig MemoryConfig NetConfig PayloadConfig "
    "PlatformConfig PmemConfig RebootPolicy RngConfig VMConfig VsockConfig",
    "aiovmm.console": "Console ConsoleReader",
    "aiovmm.errors": "AiovmmError ChainError ConfigError ConsoleEnded ExpectTimeout GuestError GuestFault HostError ImageError "
    "KvmError PeerError StateError UsageError",
    "aiovmm.lifecycle": "Event EventKind ExitReason ExitStatus VMState",
    "aiovmm.virtqueue.device": "VirtioDevice",
    "aiovmm.vm": "VM",
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "VM",
    "AiovmmError",
    "ChainError",
    "ConfigError",
    "Console",
    "ConsoleConfig",
    "ConsoleEnded",
    "ConsoleMode",
    "ConsoleReader",
    "CpusConfig",
    "DeviceConfig",
    "DiskConfig",
    "Event",
    "EventKind",
    "ExitReason",
    "ExitStatus",
    "ExpectTimeout",
    "FsConfig",
    "GuestError",
    "GuestFault",
    "HostError",
    "ImageError",
    "KvmError",
    "MemoryConfig",
    "NetConfig",
    "PayloadConfig",
    "PeerError",
    "PlatformConfig",
    "PmemConfig",
    "RebootPolicy",
    "RngConfig",
    "StateError",
    "UsageError",
    "VMConfig",
    "VMState",
    "VirtioDevice",
    "VsockConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'aiovmm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
