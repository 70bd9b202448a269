"""The Fixed ACPI Description Table of a hardware-reduced machine (ACPI 6.4, 5.2.9; revision 6, minor version 4).

Hardware-reduced means: no SCI, no PM1 or GPE blocks, no fixed buttons, no FACS (4.1). Fields at offsets 46 to 108 and 148
to 232 are ignored by the specification's word; Linux all the same takes the PM timer from X_PM_TMR_BLK (offset 208,
arch/x86/kernel/acpi/boot.c, acpi_parse_fadt) and without it has no clock to check the TSC with, so it is filled in.
"""

from __future__ import annotations

import struct

from aiovmm.boot.acpi.sdt import HEADER, AccessSize, GasSpace, gas, sdt
from aiovmm.boot.x86_64.acpi.config import RESET_VALUE, AcpiConfig

__all__ = ["BootArch", "Flags", "fadt"]

REVISION, MINOR_VERSION = 6, 4
SIZE = 276

# Offsets from the start of the table (table 5.9).
_PM_TMR_BLK = 76
_PM_TMR_LEN = 91
_IAPC_BOOT_ARCH = 109
_FLAGS = 112
_RESET_REG = 116
_RESET_VALUE = 128
_MINOR_VERSION = 131
_X_DSDT = 140
_X_PM_TMR_BLK = 208
_SLEEP_CONTROL_REG = 244
_SLEEP_STATUS_REG = 256
_HYPERVISOR_VENDOR = 268

_VENDOR = b"AIOVMM\0\0"


class Flags:
    """Fixed feature flags (table 5.10)."""

    WBINVD = 1 << 0
    PROC_C1 = 1 << 2
    PWR_BUTTON = 1 << 4  # the power button is a device, not a fixed feature
    SLP_BUTTON = 1 << 5  # so would a sleep button be
    FIX_RTC = 1 << 6  # the RTC wakes nobody
    TMR_VAL_EXT = 1 << 8  # the PM timer has 32 bits
    RESET_REG_SUP = 1 << 10
    HW_REDUCED_ACPI = 1 << 20


class BootArch:
    """IA-PC boot architecture flags (table 5.11)."""

    LEGACY_DEVICES = 1 << 0
    HAS_8042 = 1 << 1
    VGA_NOT_PRESENT = 1 << 2
    CMOS_RTC_NOT_PRESENT = 1 << 5


def fadt(config: AcpiConfig, dsdt_address: int) -> bytes:
    """The FADT, 276 bytes, that leads to the DSDT at `dsdt_address`."""
    table = bytearray(SIZE)

    def put(offset: int, data: bytes) -> None:
        table[offset : offset + len(data)] = data

    put(_IAPC_BOOT_ARCH, struct.pack("<H", _boot_arch(config)))
    put(_FLAGS, struct.pack("<I", _flags(config)))
    put(_RESET_VALUE, bytes([RESET_VALUE]))
    put(_MINOR_VERSION, bytes([MINOR_VERSION]))
    put(_X_DSDT, struct.pack("<Q", dsdt_address))
    put(_HYPERVISOR_VENDOR, _VENDOR)
    for offset in (_RESET_REG, _SLEEP_CONTROL_REG, _SLEEP_STATUS_REG):
        put(offset, gas(GasSpace.SYSTEM_IO, config.ports.sleep_reset, 8, AccessSize.BYTE))
    timer = config.ports.pm_timer
    if timer is not None:
        put(_PM_TMR_BLK, struct.pack("<I", timer))
        put(_PM_TMR_LEN, bytes([4]))
        put(_X_PM_TMR_BLK, gas(GasSpace.SYSTEM_IO, timer, 32, AccessSize.DWORD))
    return sdt("FACP", REVISION, bytes(table[HEADER.size :]))


def _flags(config: AcpiConfig) -> int:
    flags = Flags.WBINVD | Flags.PROC_C1 | Flags.PWR_BUTTON | Flags.SLP_BUTTON | Flags.FIX_RTC
    flags |= Flags.RESET_REG_SUP | Flags.HW_REDUCED_ACPI
    return flags if config.ports.pm_timer is None else flags | Flags.TMR_VAL_EXT


def _boot_arch(config: AcpiConfig) -> int:
    """MSI_NOT_SUPPORTED (bit 3) stays clear: MSI-X is how all PCI devices interrupt."""
    arch = BootArch.VGA_NOT_PRESENT
    if config.serial_ports:
        arch |= BootArch.LEGACY_DEVICES
    if config.i8042:
        arch |= BootArch.HAS_8042
    if not config.rtc:
        arch |= BootArch.CMOS_RTC_NOT_PRESENT
    return arch
