"""What an arm64 machine cannot tell or have is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiovmm.config import (
    ConsoleMode,
    CpusConfig,
    DebugConsoleConfig,
    HotplugMethod,
    MemoryConfig,
    NumaConfig,
    PayloadConfig,
    PlatformConfig,
    VMConfig,
)
from aiovmm.errors import ConfigError
from aiovmm.machine.aarch64.processors import check


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"platform": PlatformConfig(system_serial_number="s")}, r"platform: .* SMBIOS, .* EFI"),
        ({"debug_console": DebugConsoleConfig(ConsoleMode.NULL)}, r"debug_console: is a port, .*earlycon="),
        ({"numa": (NumaConfig(guest_numa_id=0),)}, r"numa: is not there on arm64"),
        ({"cpus": CpusConfig(features=("amx",))}, r"cpus.features: 'amx'"),
        ({"cpus": CpusConfig(1, 2)}, r"cpus.max: .* neither come nor go"),
        ({"cpus": CpusConfig(kvm_hyperv=True)}, r"cpus.kvm_hyperv: is for x86 guests"),
        ({"memory": MemoryConfig(hotplug_size=1 << 30)}, r"memory.hotplug_method: is not acpi on arm64"),
    ],
)
def test_with_the_reason(changes: dict[str, Any], message: str) -> None:
    config = VMConfig(PayloadConfig(Path("kernel")))
    check(config)
    with pytest.raises(ConfigError, match=message):
        check(config.with_changes(changes))


def test_memory_comes_by_virtio_mem() -> None:
    memory = MemoryConfig(hotplug_size=1 << 30, hotplug_method=HotplugMethod.VIRTIO_MEM)
    check(VMConfig(PayloadConfig(Path("kernel")), memory=memory))
