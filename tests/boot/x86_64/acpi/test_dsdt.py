"""The DSDT in ACPICA's interpreter, the one that Linux has: what a guest sees and is told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from aiovmm.boot.pci import IntxWire
from aiovmm.boot.x86_64.acpi import AcpiConfig, AcpiPorts, GedEvent, MemoryModule
from aiovmm.boot.x86_64.acpi.dsdt import dsdt
from tests.boot.acpica import Acpica
from tests.boot.x86_64.acpi.machines import MACHINES, cpus, segments, wired

PCI_UUID = "5B4DDB33F71F1C4096577441C03DD766"
OTHER_UUID = "00000000000000000000000000000000"
MACHINE = AcpiConfig(cpus=cpus(2, 4), pci_segments=segments(2))


def devices(output: str) -> set[str]:
    return set(re.findall(r"^ +0 +(\w{4}) Device", output, re.MULTILINE))


@pytest.mark.parametrize("name", MACHINES)
def test_the_interpreter_loads_it_without_a_complaint(acpica: Acpica, name: str) -> None:
    """`predefined` also checks that each reserved name has the arguments and the type it must have."""
    output = acpica.execute(dsdt(MACHINES[name]), "predefined", r"evaluate \_S5")
    assert "predefined names in the namespace" in output
    assert re.search(r"\[Package\] Contains 4 Elements", output), output


def test_the_namespace_holds_the_machine(acpica: Acpica) -> None:
    output = acpica.execute(dsdt(MACHINE), r"namespace \_SB")
    assert devices(output) == {
        *("COM1", "RTC0", "PWRB", "GED0", "MBRD"),
        *("PC00", "PC01"),
        *("C000", "C001", "C002", "C003"),
    }


def test_absent_devices_are_not_described(acpica: Acpica) -> None:
    output = acpica.execute(dsdt(AcpiConfig(serial_ports=(), rtc=False)), r"namespace \_SB")
    assert devices(output) == {"PWRB", "GED0", "MBRD", "C000"}


BRIDGES = AcpiConfig(cpus=cpus(2, 4), pci_segments=segments(2), ports=AcpiPorts(slots=None))
NOTIFIED = {
    0: set(),
    GedEvent.POWER_BUTTON: {("PWRB", 0x80)},
    GedEvent.CPU: set(),
    GedEvent.MEMORY: set(),
    GedEvent.PCI: {("PC00", 0), ("PC01", 0)},
    GedEvent.POWER_BUTTON | GedEvent.PCI: {("PWRB", 0x80), ("PC00", 0), ("PC01", 0)},
    0xFF: {("PWRB", 0x80), ("PC00", 0), ("PC01", 0)},
}


@pytest.mark.parametrize("pending", NOTIFIED)
def test_an_event_reaches_the_devices_it_concerns(acpica: Acpica, pending: int) -> None:
    output = acpica.execute(dsdt(BRIDGES), rf"execute \_SB.GED0._EVT {BRIDGES.ged_gsi}", region_fill=pending)
    assert notified(output) == NOTIFIED[pending]


@pytest.mark.parametrize("fill", [GedEvent.PCI, 0xFF])
def test_slots_are_told_what_their_registers_say(acpica: Acpica, fill: int) -> None:
    """All bytes of all registers read as `fill`: a bit for each slot, but for slot 0, which has the bridge."""
    output = acpica.execute(dsdt(MACHINE), rf"execute \_SB.GED0._EVT {MACHINE.ged_gsi}", region_fill=fill)
    mask = int.from_bytes(bytes([fill]) * 4, "little")
    slots = [f"S{slot:02X}_" for slot in range(1, 32) if mask >> slot & 1]
    for_others = notified(output) - {(slot, value) for slot in slots for value in (1, 3)}
    assert len(re.findall(r"Notify on \[S", output)) == 2 * 2 * len(slots)
    assert for_others == (NOTIFIED[0xFF] - {("PC00", 0), ("PC01", 0)} if fill == 0xFF else set())


def test_a_segment_without_a_bridge_has_slot_0_for_hotplug(acpica: Acpica) -> None:
    first, second = segments(2)
    table = dsdt(AcpiConfig(pci_segments=(first, replace(second, bridge=False))))
    names = acpica.execute(table, r"namespace \_SB")
    assert names.count("S00_ Device") + names.count("S00  Device") == 1
    output = acpica.execute(table, rf"execute \_SB.GED0._EVT {MACHINE.ged_gsi}", region_fill=0xFF)
    assert output.count("Notify on [S00_]") == 2
    assert acpica.execute(table, r"evaluate \_SB.PC01.S00._ADR").count("[Integer] = 0000000000000000") == 1


def test_each_of_as_many_segments_as_there_can_be_is_told_of_its_slots(acpica: Acpica) -> None:
    table = dsdt(AcpiConfig(pci_segments=segments(96)))
    event = rf"execute \_SB.GED0._EVT {MACHINE.ged_gsi}"
    output = acpica.execute(table, event, r"evaluate \_SB.PC5F._SEG", r"evaluate \_SB.PC5F.S1F._ADR", region_fill=4)
    assert output.count("Notify on [S02_]") == 2 * 96  # something new, and to be let go of
    assert len(re.findall(r"Notify on \[S", output)) == 2 * 96 * 4  # bit 2 of each byte
    assert f"[Integer] = {95:016X}" in output
    assert f"[Integer] = {31 << 16:016X}" in output


HOT = AcpiConfig(
    cpus=cpus(2, 3), modules=(MemoryModule(4 << 30, 1 << 30),), ports=AcpiPorts(processors=0x1000, modules=0xB00)
)


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (GedEvent.CPU | 2, {("C001", 1), ("C002", 1), ("M000", 1)}),  # PRESENT and LOOK; 2 is MEMORY, too
        (GedEvent.CPU | 4, {("C001", 3), ("C002", 3)}),  # PRESENT and LET_GO
        (GedEvent.CPU, set()),
        (7, {(name, value) for name in ("C001", "C002", "M000") for value in (1, 3)}),
    ],
)
def test_processors_and_modules_are_told_what_their_registers_say(
    acpica: Acpica, fill: int, told: set[tuple[str, int]]
) -> None:
    """All registers, the GED's too, read as `fill`."""
    output = acpica.execute(dsdt(HOT), rf"execute \_SB.GED0._EVT {HOT.ged_gsi}", region_fill=fill)
    assert notified(output) == told


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("_EJ0 1", 0x08),
        ("_OST 1 0 (00)", 0x10),
        ("_OST 1 1 (00)", 0x20),
        ("_OST 3 0x82 (00)", 0x40),
        ("_OST 0x103 0x81 (00)", 0x40),
        ("_OST 3 0x84 (00)", 0x01),
        ("_OST 3 0 (00)", 0x01),
        ("_OST 0x80 1 (00)", 0x01),
    ],
)
def test_what_became_of_it_is_written(acpica: Acpica, command: str, written: int) -> None:
    """By _EJ0 and _OST (source event, status); the register holds 1 before."""
    output = acpica.execute(dsdt(HOT), rf"evaluate \_SB.M000.{command}", r"evaluate \_SB.M000.UFLG", region_fill=0x01)
    assert int(re.findall(r"\[Integer\] = (\w{16})", output)[-1], 16) == written


def test_a_module_is_where_it_is_and_a_processor_in_the_madt(acpica: Acpica) -> None:
    output = acpica.execute(dsdt(HOT), r"evaluate \_SB.M000._STA", r"evaluate \_SB.C002._MAT", region_fill=0x01)
    assert "[Integer] = 000000000000000F" in output
    assert "00 08 02 02 01 00 00 00" in output
    resources = acpica.execute(dsdt(HOT), r"resources \_SB.M000")
    assert re.findall(r"Address (?:Minimum|Maximum) : (\w+)", resources) == ["0000000100000000", "000000013FFFFFFF"]


def test_a_slot_has_a_number_of_its_own_and_ejects(acpica: Acpica) -> None:
    asked = (r"evaluate \_SB.PC01.S1F._SUN", r"evaluate \_SB.PC01.S1F._ADR", r"evaluate \_SB.PC01.S1F._EJ0 1")
    output = acpica.execute(dsdt(MACHINE), *asked, r"evaluate \_SB.PC01.SADD", region_fill=0)
    assert re.findall(r"\[Integer\] = (\w{16})", output) == [f"{n:016X}" for n in (63, 31 << 16, 1 << 31)]


def notified(output: str) -> set[tuple[str, int]]:
    """(device, value) of what was told."""
    told = re.findall(r"Notify on \[(\w{4})\] \S+ Value 0x(\w\w)", output)
    return {(name, int(value, 16)) for name, value in told}


@pytest.mark.parametrize(
    ("uuid", "revision", "asked", "status", "granted"),
    [
        (PCI_UUID, 1, "1D000000", "00", "1D"),
        (PCI_UUID, 1, "3D000000", "00", "3D"),
        (PCI_UUID, 1, "00000000", "00", "00"),
        (PCI_UUID, 1, "FF010000", "10", "3D"),
        (PCI_UUID, 2, "1D000000", "08", "1D"),
        (OTHER_UUID, 1, "1D000000", "04", "1D"),
    ],
)
def test_osc_grants_native_control(
    acpica: Acpica, uuid: str, revision: int, asked: str, status: str, granted: str
) -> None:
    """Status: bit 2 unknown UUID, bit 3 unknown revision, bit 4 something was masked."""
    command = rf"evaluate \_SB.PC01._OSC ({uuid}) {revision} 3 (00000000FFFFFFFF{asked})"
    output = acpica.execute(dsdt(MACHINE), command)
    match = re.search(r"\[Buffer\] Length 0C = +0000: ((?:\w\w ){12})", output)
    assert match is not None, output
    expected = f"{status} 00 00 00 FF FF FF FF {granted} " + asked[2:4].replace("01", "00") + " 00 00 "
    assert match[1] == expected


def test_interrupt_pins_are_routed_where_there_are_any(acpica: Acpica) -> None:
    table = dsdt(AcpiConfig(pci_segments=wired((1, 16), (31, 23))))
    output = acpica.execute(table, r"evaluate \_SB.PC01._PRT")
    numbers = [int(n, 16) for n in re.findall(r"\[Integer\] = (\w{16})", output)]
    assert numbers == [0x0001FFFF, 0, 0, 16, 0x001FFFFF, 0, 0, 23]
    assert "_PRT" not in acpica.execute(table, r"namespace \_SB.PC00")


def test_slots_that_are_empty_have_interrupts_too(acpica: Acpica) -> None:
    """A _PRT is read once, and what comes later may have a pin."""
    wires = tuple(IntxWire(slot, 16 + slot % 8) for slot in range(1, 32))
    table = dsdt(AcpiConfig(pci_segments=segments(2), slot_wires=wires))
    for bridge in ("PC00", "PC01"):
        output = acpica.execute(table, rf"evaluate \_SB.{bridge}._PRT")
        numbers = [int(n, 16) for n in re.findall(r"\[Integer\] = (\w{16})", output)]
        assert numbers == [n for wire in wires for n in (wire.slot << 16 | 0xFFFF, 0, 0, wire.gsi)]


def test_absent_processors_are_absent_and_the_others_work(acpica: Acpica) -> None:
    output = acpica.execute(dsdt(MACHINE), r"evaluate \_SB.C001._STA", r"evaluate \_SB.C002._STA")
    assert re.findall(r"\[Integer\] = (\w{16})", output) == ["000000000000000F", "0000000000000000"]


@pytest.mark.parametrize(("device", "trigger", "gsi"), [("GED0", "Level", "05"), ("COM1", "Edge", "04")])
def test_interrupts_are_triggered_as_their_devices_do(acpica: Acpica, device: str, trigger: str, gsi: str) -> None:
    output = acpica.execute(dsdt(MACHINE), rf"resources \_SB.{device}")
    assert re.findall(r"(Triggering|Polarity|Dword00) : (\w+)", output) == [
        ("Triggering", trigger),
        ("Polarity", "ActiveHigh"),
        ("Dword00", f"000000{gsi}"),
    ]
