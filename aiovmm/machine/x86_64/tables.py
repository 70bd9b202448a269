"""What firmware would tell a guest of this machine: ACPI, and the MP table for those that do without."""

from __future__ import annotations

import os
from collections.abc import Sequence

from aiovmm.boot.pci import IntxWire
from aiovmm.boot.x86_64 import acpi, layout
from aiovmm.boot.x86_64.cpuid import apic_id
from aiovmm.config import VMConfig
from aiovmm.devices.ioapic import pin_of_slot
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.pci import describe_segments, wires_of
from aiovmm.machine.x86_64.legacy import GED_PIN, LegacyDevices
from aiovmm.machine.x86_64.vcpus import topology_of
from aiovmm.memory import GuestMemory
from aiovmm.pci.segment import SLOTS, PciSegment
from aiovmm.runtime.prepared import Prepared

__all__ = ["Description", "describe", "write_generation", "write_tables"]


class Description:
    """A machine as firmware would tell of it, and its tables once they are made: of all guests that are alike."""

    def __init__(self, machine: acpi.AcpiConfig) -> None:
        self.machine = machine
        self.made: tuple[acpi.AcpiImage, bytes] | None = None


def describe(
    config: VMConfig,
    legacy: LegacyDevices,
    ports: acpi.AcpiPorts,
    segments: Sequence[PciSegment],
    iommu: MachineIommu | None,
    end_of_ram: int,
    numa: tuple[acpi.NumaNode, ...] = (),
) -> Description:
    """The machine with all that is plugged into it, and places for what may come after `end_of_ram`."""
    cpus, serial = config.cpus, legacy.serial is not None
    modules = _modules(config, end_of_ram) if ports.modules is not None else ()
    viot = iommu.describe() if iommu is not None else None

    def made() -> Description:
        topology = topology_of(cpus)
        apic_ids = (apic_id(topology, i) for i in range(cpus.max or cpus.boot))
        machine = acpi.AcpiConfig(
            cpus=tuple(acpi.Cpu(id_, enabled=i < cpus.boot) for i, id_ in enumerate(apic_ids)),
            pci_segments=describe_segments(segments),
            serial_ports=(acpi.SerialPort(),) if serial else (),
            modules=modules,
            ports=ports,
            ged_gsi=GED_PIN,
            slot_wires=_SLOT_WIRES if ports.slots is not None else (),
            vm_generation=layout.VM_GENERATION,
            iommu=viot,
            numa=numa,
        )
        return Description(machine)

    pci = tuple((segment.plan, wires_of(segment), segment.bare) for segment in segments)
    return _tables.get((cpus.boot, cpus.max, cpus.topology, pci, serial, modules, ports, viot, numa), made)


_SLOT_WIRES = tuple(IntxWire(slot, pin_of_slot(slot)) for slot in range(SLOTS))


def _modules(config: VMConfig, end_of_ram: int) -> tuple[acpi.MemoryModule, ...]:
    from aiovmm.machine.hotplug.places import modules  # for who has some

    return tuple(acpi.MemoryModule(*place) for place in modules(config.memory, end_of_ram))


def write_tables(memory: GuestMemory, description: Description) -> None:
    """All of them, to where they are looked for. It may be called in a thread."""
    if description.made is None:
        from aiovmm.boot.x86_64.mptable import mp_table

        machine = description.machine
        description.made = acpi.build(machine, layout.RSDP), mp_table(machine, layout.MP_TABLE)
    tables, mp = description.made
    memory.write(tables.base, tables.blob)
    memory.write(layout.MP_TABLE, mp)
    write_generation(memory)


def write_generation(memory: GuestMemory) -> None:
    """It is a machine that there has not been before."""
    memory.write(layout.VM_GENERATION, os.urandom(16))


_tables: Prepared[Description] = Prepared(64)
