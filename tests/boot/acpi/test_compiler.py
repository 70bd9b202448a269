"""Every construct of the AML writer against what ACPICA's compiler makes of the same ASL, byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiovmm.boot.acpi import aml
from aiovmm.boot.acpi.aml import integer, local, name_string
from tests.boot.acpica import Acpica

WIDE_UUID = "33db4d5b-1ff7-401c-9657-7441c03dd766"

CASES = {
    "integers": (
        "Name (INTS, Package () { Zero, One, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, Ones })",
        aml.name(
            "INTS",
            aml.package(*map(integer, (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, (1 << 64) - 1))),
        ),
    ),
    "strings and buffers": (
        'Name (DATA, Package () { "ACPI0013", Buffer () { 1, 2, 3 }, Buffer (0) {} })',
        aml.name("DATA", aml.package(aml.string("ACPI0013"), aml.buffer(b"\1\2\3"), aml.buffer(b""))),
    ),
    "identifiers": (
        f'Name (IDS, Package () {{ EisaId ("PNP0A08"), EisaId ("ABC1DEF"), ToUUID ("{WIDE_UUID}") }})',
        aml.name("IDS", aml.package(aml.eisa_id("PNP0A08"), aml.eisa_id("ABC1DEF"), aml.uuid(WIDE_UUID))),
    ),
    "scopes and devices": (
        'Scope (_SB) { Device (DEV0) { Name (_HID, "ACPI0007") Device (SUB) { Name (_ADR, 1) } } }',
        aml.scope(
            "_SB",
            aml.device(
                "DEV0", aml.name("_HID", aml.string("ACPI0007")), aml.device("SUB", aml.name("_ADR", integer(1)))
            ),
        ),
    ),
    "regions and fields": (
        """OperationRegion (REGA, SystemIO, 0x604, 1)
           Field (REGA, ByteAcc, NoLock, WriteAsZeros) { BYTA, 8 }
           OperationRegion (REGB, SystemMemory, 0x100000000, 0x1000)
           Field (REGB, DWordAcc, Lock, Preserve) { Offset (0x10), BITA, 1, , 31, BITB, 64, , 4000, LAST, 3 }
           Field (REGB, QWordAcc, NoLock, WriteAsOnes) { WIDE, 64 }
           Field (REGB, WordAcc, NoLock, Preserve) { HALF, 16 }
           Field (REGB, AnyAcc, NoLock, Preserve) { SOME, 16 }""",
        aml.operation_region("REGA", aml.RegionSpace.SYSTEM_IO, 0x604, 1)
        + aml.field("REGA", aml.FieldUnit("BYTA", 8), access=aml.Access.BYTE, update=aml.Update.WRITE_AS_ZEROS)
        + aml.operation_region("REGB", aml.RegionSpace.SYSTEM_MEMORY, 0x100000000, 0x1000)
        + aml.field(
            "REGB",
            aml.Reserved(128),
            aml.FieldUnit("BITA", 1),
            aml.Reserved(31),
            aml.FieldUnit("BITB", 64),
            aml.Reserved(4000),
            aml.FieldUnit("LAST", 3),
            access=aml.Access.DWORD,
            lock=True,
        )
        + aml.field("REGB", aml.FieldUnit("WIDE", 64), access=aml.Access.QWORD, update=aml.Update.WRITE_AS_ONES)
        + aml.field("REGB", aml.FieldUnit("HALF", 16), access=aml.Access.WORD)
        + aml.field("REGB", aml.FieldUnit("SOME", 16)),
    ),
    "methods": (
        """Method (PLUS, 2, NotSerialized) { Return (Arg1) }
           Method (MANY, 7, Serialized, 3) { Local7 = Arg6 Return (Local7) }""",
        aml.method("PLUS", 2, aml.return_(aml.arg(1)))
        + aml.method("MANY", 7, aml.store(aml.arg(6), local(7)), aml.return_(local(7)), serialized=True, sync_level=3),
    ),
    "expressions": (
        """Name (STAT, 0)
           Method (EXPR, 1, NotSerialized) {
               Local0 = Arg0 & 0x08
               Local1 = Local0 | STAT
               Local2 = Local1 << 4
               If (Local2 == 0x80) { STAT = Local2 } Else { STAT = 1 }
               If (!Local0) { STAT |= 0x10 }
               While (Local1 != 3) { Local1 = 3 }
               If (Arg0 & 4) { Return (STAT) }
               Return (Zero)
           }""",
        aml.name("STAT", integer(0))
        + aml.method(
            "EXPR",
            1,
            aml.and_(aml.arg(0), integer(8), local(0)),
            aml.or_(local(0), name_string("STAT"), local(1)),
            aml.shift_left(local(1), integer(4), local(2)),
            aml.if_(aml.lequal(local(2), integer(0x80)), aml.store(local(2), name_string("STAT"))),
            aml.else_(aml.store(integer(1), name_string("STAT"))),
            aml.if_(aml.lnot(local(0)), aml.or_(name_string("STAT"), integer(0x10), name_string("STAT"))),
            aml.while_(aml.lnot(aml.lequal(local(1), integer(3))), aml.store(integer(3), local(1))),
            aml.if_(aml.and_(aml.arg(0), integer(4)), aml.return_(name_string("STAT"))),
            aml.return_(integer(0)),
        ),
    ),
    "notifications": (
        'Device (PWRB) { Name (_HID, EisaId ("PNP0C0C")) } Method (TELL) { Notify (PWRB, 0x80) }',
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")))
        + aml.method("TELL", 0, aml.notify("PWRB", integer(0x80))),
    ),
    "buffer fields": (
        "Method (BUFF, 1, Serialized) { CreateDWordField (Arg0, 8, CDW3) CDW3 = Ones Return (Arg0) }",
        aml.method(
            "BUFF",
            1,
            aml.create_dword_field(aml.arg(0), integer(8), "CDW3"),
            aml.store(integer((1 << 64) - 1), name_string("CDW3")),
            aml.return_(aml.arg(0)),
            serialized=True,
        ),
    ),
    "port and interrupt resources": (
        """Name (RES0, ResourceTemplate () {
               IO (Decode16, 0x3F8, 0x3F8, 1, 8)
               IRQ (Edge, ActiveHigh, Exclusive) {4}
               IRQ (Level, ActiveLow, Shared) {9}
               Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {5}
               Interrupt (ResourceConsumer, Level, ActiveLow, Shared) {300}
               Memory32Fixed (ReadWrite, 0xE8000000, 0x00100000)
           })""",
        aml.name(
            "RES0",
            aml.resource_template(
                aml.io_ports(0x3F8, 8),
                aml.irq(4),
                aml.irq(9, edge=False, active_low=True, shared=True),
                aml.interrupt(5),
                aml.interrupt(300, edge=False, active_low=True, shared=True),
                aml.fixed_memory(0xE8000000, 0x100000),
            ),
        ),
    ),
    "bridge windows": (
        """Name (RES1, ResourceTemplate () {
               WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
               WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300)
               DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                            0, 0xC0000000, 0xE7FFFFFF, 0, 0x28000000)
               QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                            0, 0x4000000000, 0x7FFFFFFFFF, 0, 0x4000000000)
           })""",
        aml.name(
            "RES1",
            aml.resource_template(
                aml.bus_numbers(0, 0xFF),
                aml.io_window(0xD00, 0xF300),
                aml.memory_window32(0xC0000000, 0x28000000),
                aml.memory_window64(0x4000000000, 0x4000000000),
            ),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_same_bytes_as_the_compiler(acpica: Acpica, case: str) -> None:
    asl, ours = CASES[case]
    assert ours.hex(" ") == acpica.compile(asl).hex(" ")


@pytest.mark.parametrize("count", [13, 14, 15, 62, 63, 64, 1361, 1362, 1363, 1364, 5000])
def test_same_package_lengths_as_the_compiler(acpica: Acpica, count: int) -> None:
    """A buffer grows through every boundary of its own length and that of the device around it."""
    asl = f"Device (DEV0) {{ Name (_ADR, 0) Name (BUFF, Buffer () {{ {', '.join(['7'] * 3 * count)} }}) }}"
    ours = aml.device("DEV0", aml.name("_ADR", integer(0)), aml.name("BUFF", aml.buffer(b"\7" * 3 * count)))
    assert ours == acpica.compile(asl)


@pytest.mark.parametrize(
    "call",
    [
        lambda: aml.method("ABCD", 8),
        lambda: aml.method("ABCD", 0, sync_level=16),
        lambda: aml.local(8),
        lambda: aml.arg(7),
        lambda: aml.memory_window32(0, 0),
    ],
)
def test_what_no_aml_can_say_is_refused(call: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError):
        call()
