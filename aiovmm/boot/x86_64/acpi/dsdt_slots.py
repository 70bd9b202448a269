r"""The slots of a PCI segment in the DSDT, so that devices come and go while the guest runs (ACPI 6.4, 5.6.6, 6.3.3 and 6.1.11).

Inside the host bridge, for each segment:

    SLOT, SADD, SWNT    its two registers; see `config.SlotPorts`
    SNOT(slots, value)  Notify each of these slots
    SCHK()              the GED's event: slots with something new are to be looked at, those that are wanted to be given up
    S01 to S1F          the slots, whose _EJ0 ejects; S00 where that has no bridge

What is in a slot says its configuration space, so none has a _STA: a guest's start then costs not one access more.
"""

from __future__ import annotations

from functools import lru_cache

from aiovmm.boot.acpi import aml
from aiovmm.boot.x86_64.acpi.config import SlotPorts

__all__ = ["CHECK", "slots"]

CHECK = "SCHK"
_DEVICE_CHECK, _EJECT_REQUEST = 0x01, 0x03  # device object notifications (ACPI 6.4, 5.6.6)
_LAST = 31


@lru_cache(maxsize=128)
def slots(segment: int, port: int, first: int = 1) -> bytes:
    """Of the segment with this number, whose registers begin at `port`, from slot `first` on."""
    return b"".join(
        (
            aml.operation_region("SLOT", aml.RegionSpace.SYSTEM_IO, port, SlotPorts.SIZE),
            aml.field(
                "SLOT",
                aml.FieldUnit("SADD", 32),
                aml.FieldUnit("SWNT", 32),
                access=aml.Access.DWORD,
                update=aml.Update.WRITE_AS_ZEROS,
            ),
            *(_slot(segment, slot) for slot in range(first, _LAST + 1)),
            _notify(first),
            _check(),
        )
    )


def _name(slot: int) -> str:
    return f"S{slot:02X}"


def _slot(segment: int, slot: int) -> bytes:
    """_SUN is a number that no other slot of the machine has (6.1.11)."""
    return aml.device(
        _name(slot),
        aml.name("_ADR", aml.integer(slot << 16)),
        aml.name("_SUN", aml.integer(segment << 5 | slot)),
        aml.method("_EJ0", 1, aml.store(aml.integer(1 << slot), aml.name_string("SADD"))),
    )


def _notify(first: int) -> bytes:
    told = (
        aml.if_(aml.and_(aml.arg(0), aml.integer(1 << slot)), aml.notify(_name(slot), aml.arg(1)))
        for slot in range(first, _LAST + 1)
    )
    return aml.method("SNOT", 2, *told)


def _check() -> bytes:
    """A register forgets what it has told, so it is read once."""
    actions = [
        aml.name_string("SNOT") + aml.name_string(register) + aml.integer(value)
        for register, value in (("SADD", _DEVICE_CHECK), ("SWNT", _EJECT_REQUEST))
    ]
    return aml.method(CHECK, 0, *actions, serialized=True)
