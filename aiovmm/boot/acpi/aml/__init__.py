"""A writer of AML, the byte code of ACPI definition blocks (ACPI 6.4, chapter 20). Every function returns bytes.

A definition block is an expression, written as the ASL would be:

    device("COM1", name("_HID", eisa_id("PNP0501")), method("_STA", 0, return_(integer(0xF))))

The encoding is the shortest that the grammar allows, which is also what ACPICA's compiler writes. Invalid input (a name
of five letters, an integer of 65 bits) raises `ValueError`: it is the caller's mistake, never a guest's.
"""

from __future__ import annotations

from aiovmm.boot.acpi.aml.data import buffer, eisa_id, integer, package, string, uuid
from aiovmm.boot.acpi.aml.encoding import name_string, pkg_length
from aiovmm.boot.acpi.aml.named import (
    Access,
    FieldUnit,
    RegionSpace,
    Reserved,
    Update,
    device,
    field,
    method,
    name,
    operation_region,
    scope,
)
from aiovmm.boot.acpi.aml.resources import (
    bus_numbers,
    fixed_memory,
    interrupt,
    io_ports,
    io_window,
    irq,
    memory_range64,
    memory_window32,
    memory_window64,
    resource_template,
)
from aiovmm.boot.acpi.aml.terms import (
    NOWHERE,
    and_,
    arg,
    create_dword_field,
    else_,
    if_,
    lequal,
    lnot,
    local,
    notify,
    or_,
    return_,
    shift_left,
    store,
    while_,
)

__all__ = [
    "NOWHERE",
    "Access",
    "FieldUnit",
    "RegionSpace",
    "Reserved",
    "Update",
    "and_",
    "arg",
    "buffer",
    "bus_numbers",
    "create_dword_field",
    "device",
    "eisa_id",
    "else_",
    "field",
    "fixed_memory",
    "if_",
    "integer",
    "interrupt",
    "io_ports",
    "io_window",
    "irq",
    "lequal",
    "lnot",
    "local",
    "memory_range64",
    "memory_window32",
    "memory_window64",
    "method",
    "name",
    "name_string",
    "notify",
    "operation_region",
    "or_",
    "package",
    "pkg_length",
    "resource_template",
    "return_",
    "scope",
    "shift_left",
    "store",
    "string",
    "uuid",
    "while_",
]
