r"""The Differentiated System Description Table: the devices that no bus can enumerate (ACPI 6.4, 5.2.11.1).

    \_S5            soft off
    \_SB.COM1..4    16550A serial ports
    \_SB.RTC0       CMOS clock
    \_SB.PWRB       power button
    \_SB.VGEN       VM generation identifier: who goes on from a snapshot notices by it
    \_SB.GED0       Generic Event Device: its interrupt runs _EVT, which tells the devices concerned
    \_SB.MBRD       motherboard resources: registers and ECAM that nothing else may be placed over
    \_SB.SIRQ       the interrupts of slots for hotplug, the same in each PCI segment
    \_SB.PCxx       host bridges, one a PCI segment (see `dsdt_pci`)
    \_SB.Cxxx       processors

All devices stand directly under \_SB, so that `_EVT` reaches each by its last segment alone.
"""

from __future__ import annotations

from aiovmm.boot.acpi import aml
from aiovmm.boot.acpi.sdt import sdt
from aiovmm.boot.pci import PciSegment
from aiovmm.boot.x86_64.acpi.config import (
    S5_SLEEP_TYPE,
    AcpiConfig,
    Cpu,
    GedEvent,
    MemoryModule,
    SerialPort,
    SlotPorts,
)
from aiovmm.boot.x86_64.acpi.dsdt_pci import bridge_name, host_bridge, slot_interrupts
from aiovmm.boot.x86_64.acpi.dsdt_slots import CHECK
from aiovmm.boot.x86_64.acpi.dsdt_units import CHECK as UNIT_CHECK
from aiovmm.boot.x86_64.acpi.dsdt_units import hot_unit
from aiovmm.boot.x86_64.acpi.madt import ApicFlags, local_apic

__all__ = ["dsdt"]

REVISION = 2  # integers have 64 bits from revision 2 on

_BUS_CHECK = 0x00  # device object notifications (ACPI 6.4, 5.6.6)
_BUTTON_PRESSED = 0x80  # power button notification (5.6.6)
_GENERATION_CHANGED = 0x80
_NOT_PRESENT, _WORKING = 0x00, 0x0F  # _STA (6.3.7)


def dsdt(config: AcpiConfig) -> bytes:
    """The DSDT of the machine."""
    devices = [_serial_port(index, port) for index, port in enumerate(config.serial_ports)]
    if config.rtc:
        devices.append(_rtc())
    if config.vm_generation is not None:
        devices.append(_vm_generation(config.vm_generation))
    devices += [_power_button(), _event_device(config), _motherboard(config)]
    if config.slot_wires:
        devices.append(slot_interrupts(config.slot_wires))
    near = {number: node.number for node in config.numa for number in node.pci_segments}
    devices += [
        host_bridge(
            segment, config.ports.slots_of(i), near.get(segment.segment), shared_routing=bool(config.slot_wires)
        )
        for i, segment in enumerate(config.pci_segments)
    ]
    devices += [_processor(uid, cpu, config.ports.processors) for uid, cpu in enumerate(config.cpus)]
    if config.ports.modules is not None:
        devices += [_module(i, module, config.ports.modules + i) for i, module in enumerate(config.modules)]
    return sdt("DSDT", REVISION, _soft_off() + aml.scope("_SB", *devices))


def _soft_off() -> bytes:
    r"""`\_S5`: only the first value, SLP_TYP for SLEEP_CONTROL_REG, means anything on this machine (ACPI 6.4, 7.4.2)."""
    zero = aml.integer(0)
    return aml.name("_S5", aml.package(aml.integer(S5_SLEEP_TYPE), zero, zero, zero))


def _serial_port(index: int, port: SerialPort) -> bytes:
    return aml.device(
        f"COM{index + 1}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_DDN", aml.string(f"COM{index + 1}")),
        aml.name("_CRS", aml.resource_template(aml.io_ports(port.port, 8), aml.interrupt(port.gsi))),
    )


def _rtc() -> bytes:
    """Without an interrupt: the clock has no alarm, and a guest that finds none asks for none."""
    return aml.device(
        "RTC0",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resource_template(aml.io_ports(0x70, 2))),
    )


def _power_button() -> bytes:
    return aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")))


def _vm_generation(address: int) -> bytes:
    """Microsoft, Virtual Machine Generation ID, 2012: ADDR is where it lies, in two halves; drivers go by the compatible ID."""
    name = aml.string("VM_Gen_Counter")
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("AVMM0001")),
        aml.name("_CID", name),
        aml.name("_DDN", name),
        aml.name("ADDR", aml.package(aml.integer(address & 0xFFFFFFFF), aml.integer(address >> 32))),
    )


def _event_device(config: AcpiConfig) -> bytes:
    """The GED (ACPI 6.4, 5.6.9). `_EVT` reads the register once, which clears it, and passes on every event it holds.

    The interrupt is level-triggered: an edge that comes while the guest has the pin masked would be lost.
    """
    pending = aml.local(0)
    actions = [aml.store(aml.name_string("GSTA"), pending)]
    for event, notifications in _event_targets(config).items():
        if notifications:
            actions.append(aml.if_(aml.and_(pending, aml.integer(event)), *notifications))
    return aml.device(
        "GED0",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(config.ged_gsi, edge=False))),
        aml.operation_region("GREG", aml.RegionSpace.SYSTEM_IO, config.ports.ged, 1),
        aml.field("GREG", aml.FieldUnit("GSTA", 8), access=aml.Access.BYTE, update=aml.Update.WRITE_AS_ZEROS),
        aml.method("_EVT", 1, *actions, serialized=True),
    )


def _event_targets(config: AcpiConfig) -> dict[int, list[bytes]]:
    """Whom each event concerns."""
    processors = range(1, len(config.cpus)) if config.ports.processors is not None else ()
    modules = range(len(config.modules)) if config.ports.modules is not None else ()
    generation = [aml.notify("VGEN", aml.integer(_GENERATION_CHANGED))] if config.vm_generation is not None else []
    return {
        GedEvent.VM_GENERATION: generation,
        GedEvent.POWER_BUTTON: [aml.notify("PWRB", aml.integer(_BUTTON_PRESSED))],
        GedEvent.CPU: [aml.name_string(f"^^{_processor_name(uid)}.{UNIT_CHECK}") for uid in processors],
        GedEvent.MEMORY: [aml.name_string(f"^^{_module_name(i)}.{UNIT_CHECK}") for i in modules],
        GedEvent.PCI: [_slots_changed(config, segment) for segment in config.pci_segments],
    }


def _slots_changed(config: AcpiConfig, segment: PciSegment) -> bytes:
    """Its slots' registers say which; without them, the bridge is to look at all of its bus."""
    if config.ports.slots is None:
        return aml.notify(bridge_name(segment), aml.integer(_BUS_CHECK))
    return aml.name_string(f"^^{bridge_name(segment)}.{CHECK}")  # from \\_SB.GED0._EVT


def _motherboard(config: AcpiConfig) -> bytes:
    """PNP0C02. Linux believes an MCFG entry only if its whole ECAM window is reserved here (x86 is_acpi_reserved).

    The PM timer's ports are left out: Linux claims those itself, from the FADT.
    """
    registers = [aml.io_ports(port, 1) for port in (config.ports.sleep_reset, config.ports.ged)]
    slots = (config.ports.slots_of(i) for i in range(len(config.pci_segments)))
    registers += [aml.io_ports(port, SlotPorts.SIZE) for port in slots if port is not None]
    registers += _unit_ports(config.ports.processors, len(config.cpus))
    registers += _unit_ports(config.ports.modules, len(config.modules))
    ecam = [aml.fixed_memory(s.ecam.base, s.ecam.size) for s in config.pci_segments]
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(*registers, *ecam)),
    )


def _unit_ports(first: int | None, count: int) -> list[bytes]:
    """A descriptor has room for 255 ports."""
    if first is None:
        return []
    return [aml.io_ports(first + at, min(count - at, 255)) for at in range(0, count, 255)]


def _processor_name(uid: int) -> str:
    return f"C{uid:03X}"


def _processor(uid: int, cpu: Cpu, registers: int | None) -> bytes:
    """A processor device (ACPI 6.4, 8.4); `_UID` ties it to its entry in the MADT. One that comes and goes has that entry,
    as it is when it is there (_MAT, 6.2.10), too; the first is always there."""
    name = _processor_name(uid)
    identity = (aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(uid)))
    if registers is None or uid == 0:
        return aml.device(name, *identity, aml.name("_STA", aml.integer(_WORKING if cpu.enabled else _NOT_PRESENT)))
    entry = aml.name("_MAT", aml.buffer(local_apic(uid, cpu, ApicFlags.ENABLED)))
    return hot_unit(name, registers + uid, *identity, entry)


def _module_name(index: int) -> str:
    return f"M{index:03X}"


def _module(index: int, module: MemoryModule, register: int) -> bytes:
    """A memory device (ACPI 6.4, 9.11)."""
    return hot_unit(
        _module_name(index),
        register,
        aml.name("_HID", aml.eisa_id("PNP0C80")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CRS", aml.resource_template(aml.memory_range64(module.base, module.size))),
    )
