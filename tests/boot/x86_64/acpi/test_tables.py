"""The tables as a guest finds them, and as ACPICA reads them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.boot.x86_64.acpi import AcpiConfig, AcpiImage, SerialPort, build
from aiovmm.errors import ConfigError
from tests.boot.acpica import Acpica, without_creator
from tests.boot.x86_64.acpi.machines import BASE, IOMMU, MACHINES, cpus, segments

KNOWN_TO_IASL = ("DSDT", "FACP", "APIC", "MCFG", "SRAT", "SLIT", "XSDT")  # iasl of 2020 knows nothing inside a VIOT


def read(image: AcpiImage, address: int, size: int) -> bytes:
    offset = address - image.base
    assert offset >= 0
    assert offset + size <= len(image.blob)
    return image.blob[offset : offset + size]


def read_table(image: AcpiImage, address: int) -> bytes:
    length = struct.unpack("<I", read(image, address + 4, 4))[0]
    table = read(image, address, length)
    assert sum(table) % 256 == 0, "checksum"
    return table


def walk(image: AcpiImage) -> dict[str, bytes]:
    """Follow the pointers as a guest does: RSDP, XSDT, all it lists, and the DSDT behind the FADT."""
    rsdp = read(image, image.rsdp_address, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert rsdp[15] == 2
    assert sum(rsdp[:20]) % 256 == 0
    assert sum(rsdp) % 256 == 0
    xsdt = read_table(image, struct.unpack_from("<Q", rsdp, 24)[0])
    found = {"RSDP": rsdp, "XSDT": xsdt}
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = read_table(image, address)
        found[table[:4].decode()] = table
    found["DSDT"] = read_table(image, struct.unpack_from("<Q", found["FACP"], 140)[0])
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_a_guest_finds_every_table_from_the_rsdp(name: str) -> None:
    image = build(MACHINES[name], BASE)
    found = walk(image)
    assert found == dict(image.tables)
    assert {a for a in image.addresses.values() if a % 16} == set()


@settings(deadline=None)
@given(
    most=st.integers(1, 400),
    present=st.integers(1, 400),
    pci_segments=st.integers(0, 16),
    serial_ports=st.integers(0, 3),
    base=st.integers(0, 1 << 28).map(lambda n: n * 16),
)
def test_every_machine_has_sound_tables(
    most: int, present: int, pci_segments: int, serial_ports: int, base: int
) -> None:
    config = AcpiConfig(
        cpus=cpus(min(present, most), most),
        pci_segments=segments(pci_segments),
        serial_ports=tuple(SerialPort(0x3F8 - 0x100 * n, 4 - n) for n in range(serial_ports)),
    )
    found = walk(build(config, base))
    assert set(found) == {"RSDP", "XSDT", "FACP", "APIC", "DSDT"} | ({"MCFG"} if pci_segments else set())


def test_the_largest_machine_fits_below_the_smbios_area() -> None:
    image = build(AcpiConfig(cpus=cpus(1, 4096), pci_segments=segments(16), iommu=IOMMU), BASE)
    assert image.end <= 0xF0000
    walk(image)


def test_tables_of_absent_parts_are_absent() -> None:
    assert "MCFG" not in walk(build(AcpiConfig(), BASE))
    assert "VIOT" not in walk(build(AcpiConfig(pci_segments=segments(1)), BASE))
    assert {"MCFG", "VIOT"} <= set(walk(build(MACHINES["two segments and an IOMMU"], BASE)))


def test_every_table_names_its_maker() -> None:
    for signature, table in build(MACHINES["usual"], BASE).tables.items():
        if signature != "RSDP":
            assert (table[:4], table[10:24]) == (signature.encode(), b"AIOVMMAVMM" + signature.encode())


@pytest.mark.parametrize("base", [-64, 0xA0008])
def test_an_unaligned_base_is_refused(base: int) -> None:
    with pytest.raises(ConfigError, match="aligned"):
        build(AcpiConfig(), base)


def without_x2apic_online_capable(table: bytes) -> bytes:
    """iasl of 2020 knows this flag (ACPI 6.3) in local APIC structures, but drops it from x2APIC ones."""
    result, offset = bytearray(table), 44
    while offset < len(result):
        if result[offset] == 9:
            result[offset + 8] &= ~2
        offset += result[offset + 1]
    return bytes(result)


@pytest.mark.parametrize("signature", KNOWN_TO_IASL)
@pytest.mark.parametrize("name", MACHINES)
def test_iasl_reads_each_table_and_compiles_it_to_the_same_bytes(acpica: Acpica, name: str, signature: str) -> None:
    image = build(MACHINES[name], BASE)
    if signature not in image.tables:
        absent = {"MCFG": MACHINES[name].pci_segments, "SRAT": MACHINES[name].numa, "SLIT": MACHINES[name].numa}
        assert absent[signature] == ()
        return
    table = image.tables[signature]
    result = acpica.round_trip(table)
    assert (result.errors, result.warnings) == (0, 0), result.output
    assert "Invalid" not in result.output, result.output
    ours, theirs = without_creator(table), without_creator(result.compiled)
    if signature == "APIC":
        ours, theirs = without_x2apic_online_capable(ours), without_x2apic_online_capable(theirs)
    assert theirs.hex(" ") == ours.hex(" ")
