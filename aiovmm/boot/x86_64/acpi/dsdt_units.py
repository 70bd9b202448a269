"""Processors and memory modules in the DSDT that come and go while the guest runs (ACPI 6.4, 5.6.6, 6.3.3, 6.3.5, 6.3.7).

Inside the device of each:

    UREG, UFLG   its register; see `config.UnitBits`
    _STA         whether it is there
    _EJ0         the guest has let go of it
    _OST         what became of what the guest was told
    UCHK()       the GED's event: notify it, if that is what its register says
"""

from __future__ import annotations

from aiovmm.boot.acpi import aml
from aiovmm.boot.x86_64.acpi.config import UnitBits

__all__ = ["CHECK", "hot_unit"]

CHECK = "UCHK"
_DEVICE_CHECK, _EJECT_REQUEST = 0x01, 0x03  # device object notifications (ACPI 6.4, 5.6.6)
_NOT_PRESENT, _WORKING = 0x00, 0x0F  # _STA (6.3.7)
_SUCCESS, _IN_PROGRESS = 0x00, 0x84  # _OST status codes (6.3.5, tables 6.55 and 6.57)
_EVENT = 0xFF  # of _OST's source event: an ejection that the guest itself began is 0x103


def hot_unit(name: str, port: int, *terms: bytes) -> bytes:
    """The device called `name`, whose register is at `port`, with `terms` of its own."""
    flags = aml.name_string("UFLG")

    def when(bit: int, value: int) -> bytes:
        told = aml.store(aml.integer(bit), flags)
        return aml.if_(aml.and_(aml.local(0), aml.integer(bit)), told, aml.notify(name, aml.integer(value)))

    return aml.device(
        name,
        *terms,
        aml.operation_region("UREG", aml.RegionSpace.SYSTEM_IO, port, 1),
        aml.field("UREG", aml.FieldUnit("UFLG", 8), access=aml.Access.BYTE, update=aml.Update.WRITE_AS_ZEROS),
        _status(flags),
        aml.method("_EJ0", 1, aml.store(aml.integer(UnitBits.EJECT), flags)),
        _outcome(flags),
        aml.method(
            CHECK,
            0,
            aml.store(flags, aml.local(0)),
            when(UnitBits.LOOK, _DEVICE_CHECK),
            when(UnitBits.LET_GO, _EJECT_REQUEST),
            serialized=True,
        ),
    )


def _status(flags: bytes) -> bytes:
    there = aml.and_(flags, aml.integer(UnitBits.PRESENT))
    return aml.method(
        "_STA", 0, aml.if_(there, aml.return_(aml.integer(_WORKING))), aml.return_(aml.integer(_NOT_PRESENT))
    )


def _outcome(flags: bytes) -> bytes:
    """_OST (source event, status code, information)."""
    event, status = aml.local(0), aml.arg(1)

    def say(bit: int) -> bytes:
        return aml.store(aml.integer(bit), flags)

    def is_(value: int) -> bytes:
        return aml.lequal(status, aml.integer(value))

    return aml.method(
        "_OST",
        3,
        aml.and_(aml.arg(0), aml.integer(_EVENT), event),
        aml.if_(
            aml.lequal(event, aml.integer(_DEVICE_CHECK)),
            aml.if_(is_(_SUCCESS), say(UnitBits.TAKEN)),
            aml.else_(say(UnitBits.REFUSED)),
        ),
        aml.if_(
            aml.lequal(event, aml.integer(_EJECT_REQUEST)),
            aml.if_(aml.lnot(is_(_SUCCESS)), aml.if_(aml.lnot(is_(_IN_PROGRESS)), say(UnitBits.KEPT))),
        ),
    )
