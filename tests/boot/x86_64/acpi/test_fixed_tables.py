"""FADT, MADT, MCFG and VIOT, field by field at the offsets that the specifications give."""

from __future__ import annotations

import struct

import pytest

from aiovmm.boot.acpi.mcfg import mcfg
from aiovmm.boot.acpi.viot import viot
from aiovmm.boot.pci import PciSegment
from aiovmm.boot.x86_64.acpi import AcpiConfig, AcpiPorts, IoApic, SerialPort
from aiovmm.boot.x86_64.acpi.fadt import fadt
from aiovmm.boot.x86_64.acpi.madt import madt
from tests.boot.x86_64.acpi.machines import IOMMU, MACHINES, cpus, segments

IO_BYTE_AT_0X600 = bytes([1, 8, 0, 1]) + struct.pack("<Q", 0x600)
IO_DWORD_AT_0X608 = bytes([1, 32, 0, 3]) + struct.pack("<Q", 0x608)


def test_fadt_has_revision_6_and_leads_to_the_dsdt() -> None:
    table = fadt(AcpiConfig(), 0x1234567890)
    assert (len(table), table[8], table[131]) == (276, 6, 4)
    assert struct.unpack_from("<II", table, 36) == (0, 0), "no FACS, no 32-bit DSDT pointer that could differ"
    assert struct.unpack_from("<QQ", table, 132) == (0, 0x1234567890)


def test_fadt_is_hardware_reduced_with_a_reset_register() -> None:
    flags = struct.unpack_from("<I", fadt(AcpiConfig(), 0), 112)[0]
    assert flags & (1 << 20), "HW_REDUCED_ACPI"
    assert flags & (1 << 10), "RESET_REG_SUP"
    assert flags & (1 << 4), "PWR_BUTTON: a control method button"
    assert flags & (1 << 8), "TMR_VAL_EXT: the timer has 32 bits"


def test_fadt_registers_lie_where_the_acpi_device_is() -> None:
    table = fadt(AcpiConfig(), 0)
    assert table[116:128] == IO_BYTE_AT_0X600, "RESET_REG"
    assert table[128] == 1, "RESET_VALUE"
    assert table[244:256] == IO_BYTE_AT_0X600, "SLEEP_CONTROL_REG"
    assert table[256:268] == IO_BYTE_AT_0X600, "SLEEP_STATUS_REG"
    assert (struct.unpack_from("<I", table, 76)[0], table[91]) == (0x608, 4), "PM_TMR_BLK and its length"
    assert table[208:220] == IO_DWORD_AT_0X608, "X_PM_TMR_BLK"


def test_fadt_has_no_pm1_or_gpe_blocks() -> None:
    table = fadt(AcpiConfig(), 0)
    assert not any(table[48:76])
    assert not any(table[148:208])
    assert not any(table[220:244])


def test_fadt_without_a_timer_says_nothing_of_it() -> None:
    table = fadt(AcpiConfig(ports=AcpiPorts(pm_timer=None)), 0)
    assert struct.unpack_from("<I", table, 112)[0] & (1 << 8) == 0
    assert not any(table[76:80] + table[208:220])
    assert table[91] == 0


@pytest.mark.parametrize(
    ("config", "boot_arch"),
    [
        (AcpiConfig(), 0b000101),
        (AcpiConfig(serial_ports=()), 0b000100),
        (AcpiConfig(i8042=True), 0b000111),
        (AcpiConfig(rtc=False), 0b100101),
    ],
)
def test_fadt_boot_flags_say_which_pc_devices_exist(config: AcpiConfig, boot_arch: int) -> None:
    assert struct.unpack_from("<H", fadt(config, 0), 109)[0] == boot_arch


def madt_entries(config: AcpiConfig) -> list[bytes]:
    """The interrupt controller structures, walked by their own lengths to exactly the end of the table."""
    table, entries, offset = madt(config), [], 44
    while offset < len(table):
        length = table[offset + 1]
        entries.append(table[offset : offset + length])
        offset += length
    assert offset == len(table)
    return entries


def entries_of(config: AcpiConfig, kind: int) -> list[bytes]:
    return [e for e in madt_entries(config) if e[0] == kind]


def test_madt_names_the_local_apic_and_no_8259() -> None:
    assert struct.unpack_from("<II", madt(AcpiConfig()), 36) == (0xFEE00000, 0)
    assert madt(AcpiConfig())[8] == 5


def test_madt_has_present_processors_enabled_and_the_others_online_capable() -> None:
    local_apics = [struct.unpack("<BBBBI", e) for e in entries_of(AcpiConfig(cpus=cpus(2, 4)), 0)]
    assert local_apics == [(0, 8, 0, 0, 1), (0, 8, 1, 1, 1), (0, 8, 2, 2, 2), (0, 8, 3, 3, 2)]


def test_madt_uses_x2apic_entries_from_apic_id_255_on() -> None:
    config = MACHINES["scattered APIC IDs"]
    assert [e[2:4] for e in entries_of(config, 0)] == [b"\x00\x00", b"\x01\xfe"]
    x2apics = [struct.unpack("<BBHIII", e) for e in entries_of(config, 9)]
    assert x2apics == [(9, 16, 0, 255, 1, 2), (9, 16, 0, 4000, 2, 3)]


def test_madt_wires_nmi_to_lint1_of_every_processor() -> None:
    small, large = AcpiConfig(), AcpiConfig(cpus=cpus(256, 256))
    assert entries_of(small, 4) == [bytes([4, 6, 0xFF, 0, 0, 1])]
    assert entries_of(small, 10) == []
    assert entries_of(large, 10) == [bytes([10, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0])]


def test_madt_has_the_io_apic_and_the_isa_interrupt_of_com1() -> None:
    config = AcpiConfig(io_apic=IoApic(address=0xFEC00000, apic_id=0, gsi_base=0))
    assert [struct.unpack("<BBBBII", e) for e in entries_of(config, 1)] == [(1, 12, 0, 0, 0xFEC00000, 0)]
    assert [struct.unpack("<BBBBIH", e) for e in entries_of(config, 2)] == [(2, 10, 0, 4, 4, 0b0101)]


def test_madt_overrides_only_isa_interrupts() -> None:
    assert entries_of(AcpiConfig(serial_ports=(SerialPort(gsi=16),)), 2) == []


def test_mcfg_has_an_entry_for_each_segment() -> None:
    table = mcfg([*segments(2), PciSegment(7, 0xE0000000, start_bus=2, end_bus=4)])
    assert len(table) == 44 + 3 * 16
    entries = [struct.unpack_from("<QHBBI", table, 44 + 16 * n) for n in range(3)]
    assert entries == [(0xE8000000, 0, 0, 0, 0), (0xE8100000, 1, 0, 0, 0), (0xE0000000, 7, 2, 4, 0)]


def test_viot_leads_every_range_to_the_iommu() -> None:
    table = viot(IOMMU)
    assert struct.unpack_from("<HHQ", table, 36) == (3, 48, 0)
    assert struct.unpack_from("<BBHHHQ", table, 48) == (3, 0, 16, 0, 0x08, 0)
    ranges = [struct.unpack_from("<BBHIHHHHH6s", table, 64 + 24 * n) for n in range(2)]
    assert ranges == [
        (1, 0, 24, 0x00010, 0, 0, 0x10, 0x1F, 48, bytes(6)),
        (1, 0, 24, 0x10008, 1, 1, 0x08, 0x08, 48, bytes(6)),
    ]
    assert len(table) == 64 + 2 * 24
