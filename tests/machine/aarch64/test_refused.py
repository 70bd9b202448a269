"""What an arm64 machine cannot tell or have is refused by name."""

from __future__ import annotations

import pytest

from aiovmm.config import CpusConfig, PlatformConfig
from aiovmm.errors import ConfigError
from aiovmm.machine.aarch64.processors import check


def test_who_the_machine_is_needs_efi() -> None:
    with pytest.raises(ConfigError, match=r"platform: .* SMBIOS, .* EFI"):
        check(CpusConfig(), PlatformConfig(system_serial_number="s"))
    check(CpusConfig(), PlatformConfig(num_pci_segments=2))
